"""Sparse DETR, Swin-T, updates 30 % of the encoder's tokens: 49.1 AP as published."""

_base_ = 'sparse_detr_swint_rho_0.1.py'

model = dict(encoder=dict(keep_ratio=0.3))
