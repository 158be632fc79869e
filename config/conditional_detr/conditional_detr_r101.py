"""Conditional DETR, ResNet-101, 50 epochs: 42.8 AP as published (batch 16)."""

_base_ = 'conditional_detr_r50.py'

model = dict(backbone=dict(depth=101))
