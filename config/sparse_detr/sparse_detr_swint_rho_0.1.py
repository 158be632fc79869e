"""Sparse DETR, Swin-T, updates 10 % of the encoder's tokens: 48.2 AP as published. The first stage is frozen.

torchrun --nproc_per_node=8 main.py -c config/sparse_detr/sparse_detr_swint_rho_0.1.py
"""

_base_ = ['sparse_detr_r50_rho_0.1.py', '../_base_/swint.py']

model = dict(backbone=dict(frozen=2))
