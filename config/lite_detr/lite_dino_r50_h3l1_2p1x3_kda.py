"""Lite-DINO H3L1-(2+1)x3, key-aware, ResNet-50, 36 epochs: 50.4 AP as published.

Three coarse levels ask in every layer, the finest one in every second; samples are weighed by their keys.
"""

_base_ = ['../DINO/dino_4scale_r50.py', '../_base_/schedule_36e.py']

official_keys = 'lite_dino'
_layer = dict(ffn_dim=2048, dropout=0.0)
model = dict(
    attention=dict(type='KeyAwareDeformAttn', num_points=4),
    encoder=dict(
        type='InterleavedEncoder',
        num_layers=6,
        num_blocks=3,
        high_levels=3,
        layer=dict(type='DeformableEncoderLayer', **_layer),
        last_layer=dict(type='SplitFFNEncoderLayer', low_ffn_dim=256, **_layer),
    ),
    queries=dict(base=dict(boxes_of='chosen')),
)
schedule = dict(drop=(31, ))  # its code says 30, and hands its scheduler the number of the epoch that is over: one later
