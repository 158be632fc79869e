"""Deformable DETR, ResNet-50, four levels, 50 epochs: 44.5 AP as published (batch 32).

torchrun --nproc_per_node=8 main.py -c config/deformable_detr/deformable_detr_r50.py --batch_size 4
"""

_base_ = ['../_base_/coco.py', '../_base_/training.py', '../_base_/schedule_50e.py']

official_keys = 'deformable_detr'
model = dict(
    d_model=256,
    num_heads=8,
    num_levels=4,
    num_classes=91,
    attention=dict(type='MSDeformAttn', num_points=4),
    head=dict(type='DetectionHead', eps=1e-5),
    backbone=dict(
        type='ResNet', depth=50, stages=(2, 3, 4), norm='frozen', frozen=2, dilation=False, pretrained='IMAGENET1K_V1'),
    neck=dict(type='PyramidNeck', position=dict(type='SinePosition', offset=-0.5, temperature=10000)),
    encoder=dict(
        type='DeformableEncoder',
        num_layers=6,
        layer=dict(type='DeformableEncoderLayer', ffn_dim=1024, dropout=0.1),
    ),
    queries=dict(type='LearnedPointQueries', num_queries=300),
    decoder=dict(
        type='DeformableDecoder',
        num_layers=6,
        layer=dict(type='DeformableDecoderLayer', ffn_dim=1024, dropout=0.1),
        refine='none',
        share_head=True,
        size_bias=-2.0,
    ),
)
criterion = dict(
    matcher=dict(type='HungarianMatcher', ce=2.0, bbox=5.0, giou=2.0),
    losses=dict(
        ce=dict(type='FocalLoss', weight=2.0, alpha=0.25),
        bbox=dict(type='BoxL1', weight=5.0),
        giou=dict(type='BoxGIoU', weight=2.0),
    ),
    supervise=dict(matching=dict(name='loss_{loss}{layer}')),
)
postprocess = dict(type='SigmoidTopK', num_select=100, nms_iou=None)
optimizer = dict(
    lr=2e-4,
    total_batch_size=32,
    scale={
        'backbone': 0.1,
        'reference_points|sampling_offsets': 0.1
    },
)
