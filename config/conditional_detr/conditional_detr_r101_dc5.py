"""Conditional DETR, ResNet-101, stride 16 (DC5), 50 epochs: 45.0 AP as published (batch 8, one image a GPU)."""

_base_ = 'conditional_detr_r50_dc5.py'

model = dict(backbone=dict(depth=101))
