"""DINO, five scales (stride 4 too), ResNet-50, 12 epochs: 49.4 AP as published (batch 1 on each of 16 GPUs)."""

_base_ = 'dino_4scale_r50.py'

model = dict(num_levels=5, backbone=dict(stages=(1, 2, 3, 4)))
data = dict(batch_size=1)
