"""Lite-DETR's encoder H3L1-(2+1)x3, key-aware, in two-stage Deformable DETR, ResNet-50, 50 epochs.

torchrun --nproc_per_node=8 main.py -c config/lite_detr/lite_deformable_detr_r50.py --batch_size 4
"""

_base_ = '../deformable_detr/deformable_detr_r50_two_stage.py'

_layer = dict(ffn_dim=1024, dropout=0.1)
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
)
