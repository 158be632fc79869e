"""Deformable DETR on the last feature map at stride 16 (DC5): 41.5 AP as published."""

_base_ = 'deformable_detr_r50_single_scale.py'

model = dict(backbone=dict(dilation=True))
