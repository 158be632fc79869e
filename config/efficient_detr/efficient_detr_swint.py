"""Efficient DETR as Sparse DETR builds it, Swin-T, 50 epochs: 48.0 AP as published. The first stage is frozen."""

_base_ = ['efficient_detr_r50.py', '../_base_/swint.py']

model = dict(backbone=dict(frozen=2))
