"""DEIM on D-FINE L, HGNetv2-B4, 80 epochs: 54.7 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/deim_hgnetv2_l.py

Rates are twice D-FINE's, as those of S are. Epochs, images a step and the second stage are D-FINE's, for want of
published ones.
"""

_base_ = ['dfine_hgnetv2_l.py', '../_base_/deim_d_fine.py']

optimizer = dict(lr=5e-4)
