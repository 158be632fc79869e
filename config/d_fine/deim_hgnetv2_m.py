"""DEIM on D-FINE M, HGNetv2-B2, 132 epochs: 52.7 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/deim_hgnetv2_m.py

Rates are twice D-FINE's, as those of S are. Epochs, images a step and the second stage are D-FINE's, for want of
published ones.
"""

_base_ = ['dfine_hgnetv2_m.py', '../_base_/deim_d_fine.py']

data = dict(mosaic=dict(stop_epoch=66), mixup=dict(stop_epoch=66))
optimizer = dict(lr=4e-4)
schedule = dict(flat_epochs=70, final_epochs=12)
