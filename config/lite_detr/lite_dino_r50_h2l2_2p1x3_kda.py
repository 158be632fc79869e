"""Lite-DINO H2L2-(2+1)x3, key-aware, ResNet-50, 36 epochs: 49.9 AP as published. Two coarse and two fine levels."""

_base_ = 'lite_dino_r50_h3l1_2p1x3_kda.py'

model = dict(encoder=dict(high_levels=2))
