"""DETR, ResNet-101, 500 epochs: 43.5 AP as published (batch 64)."""

_base_ = 'detr_r50.py'

model = dict(backbone=dict(depth=101))
