"""PnP-DETR, ResNet-50, takes 50 % of the tokens: 41.8 AP as published, after 500 epochs."""

_base_ = 'pnp_detr_r50_ratio033.py'

model = dict(encoder=dict(ratio=0.5))
