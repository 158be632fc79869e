"""Deformable DETR on the last feature map alone (stride 32): 39.4 AP as published."""

_base_ = 'deformable_detr_r50.py'

model = dict(num_levels=1, backbone=dict(stages=(4, )))
