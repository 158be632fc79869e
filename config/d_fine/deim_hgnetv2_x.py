"""DEIM on D-FINE X, HGNetv2-B5, 80 epochs: 56.5 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/deim_hgnetv2_x.py

Rates are twice D-FINE's, as those of S are. Epochs, images a step and the second stage are D-FINE's, for want of
published ones.
"""

_base_ = ['dfine_hgnetv2_x.py', '../_base_/deim_d_fine.py']

optimizer = dict(lr=5e-4)
