"""DETR, ResNet-101, last feature map of stride 16 (DC5), 500 epochs: 44.9 AP as published (batch 64, one a GPU)."""

_base_ = 'detr_r50_dc5.py'

model = dict(backbone=dict(depth=101))
