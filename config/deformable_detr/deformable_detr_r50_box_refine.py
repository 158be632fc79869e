"""Deformable DETR with iterative bounding box refinement: 46.2 AP as published."""

_base_ = 'deformable_detr_r50.py'

model = dict(decoder=dict(refine='iterative', share_head=False))
