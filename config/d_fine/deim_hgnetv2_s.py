"""DEIM on D-FINE S, HGNetv2-B0, 132 epochs: 49.0 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/deim_hgnetv2_s.py

The published rates. Epochs, images a step and the second stage are D-FINE's, for want of published ones.
"""

_base_ = ['dfine_hgnetv2_s.py', '../_base_/deim_d_fine.py']

data = dict(mosaic=dict(stop_epoch=66), mixup=dict(stop_epoch=66))
optimizer = dict(lr=4e-4)
schedule = dict(flat_epochs=70, final_epochs=12)
