"""Deformable DETR, ResNet-101, four levels, 50 epochs."""

_base_ = 'deformable_detr_r50.py'

model = dict(backbone=dict(depth=101))
