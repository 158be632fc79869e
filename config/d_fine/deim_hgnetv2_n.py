"""DEIM on D-FINE N, HGNetv2-B0, 160 epochs: 43.0 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/deim_hgnetv2_n.py

Rates, epochs, images a step and the second stage are D-FINE's, for want of published ones.
"""

_base_ = ['dfine_hgnetv2_n.py', '../_base_/deim_d_fine.py']

data = dict(mosaic=dict(stop_epoch=80), mixup=dict(stop_epoch=80))
schedule = dict(flat_epochs=84, final_epochs=12)
