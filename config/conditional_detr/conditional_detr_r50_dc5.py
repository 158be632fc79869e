"""Conditional DETR on a last feature map of stride 16 (DC5), 50 epochs: 43.7 AP as published (batch 8, one a GPU).

Evaluate it with one image a GPU too: padding costs it AP.
"""

_base_ = 'conditional_detr_r50.py'

model = dict(backbone=dict(dilation=True))
data = dict(batch_size=1)
optimizer = dict(total_batch_size=8)
