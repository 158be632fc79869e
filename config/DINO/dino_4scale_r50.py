"""DINO, four scales, ResNet-50, 12 epochs: 49.0 AP as published.

torchrun --nproc_per_node=8 main.py -c config/DINO/dino_4scale_r50.py

box_noise_scale is 1.0, as in all published runs, which pass it on the command line; the paper's config file says 0.4.
"""

_base_ = ['../_base_/coco.py', '../_base_/training.py', '../_base_/schedule_12e.py']

official_keys = 'dino'
model = dict(
    d_model=256,
    num_heads=8,
    num_levels=4,
    num_classes=91,
    attention=dict(type='MSDeformAttn', num_points=4),
    head=dict(type='DetectionHead', eps=1e-3),
    backbone=dict(
        type='ResNet', depth=50, stages=(2, 3, 4), norm='frozen', frozen=2, dilation=False, pretrained='IMAGENET1K_V1'),
    neck=dict(type='PyramidNeck', position=dict(type='SinePosition', offset=0.0, temperature=20)),
    encoder=dict(
        type='DeformableEncoder',
        num_layers=6,
        layer=dict(type='DeformableEncoderLayer', ffn_dim=2048, dropout=0.0),
    ),
    queries=dict(
        type='WithDenoising',
        dn_number=100,
        label_noise_ratio=0.5,
        box_noise_scale=1.0,
        base=dict(
            type='TopKProposals',
            num_queries=900,
            init=dict(type='LearnedContent'),
            score='max',
            boxes_of='all',
            supervise='chosen',
        ),
    ),
    decoder=dict(
        type='DeformableDecoder',
        num_layers=6,
        layer=dict(type='DeformableDecoderLayer', ffn_dim=2048, dropout=0.0),
        refine='look_forward_twice',
        share_head=True,
        query_pos=dict(type='BoxPosition'),
        norm=True,
    ),
)
criterion = dict(
    matcher=dict(type='HungarianMatcher', ce=2.0, bbox=5.0, giou=2.0, eps=1e-6),
    losses=dict(
        ce=dict(type='FocalLoss', weight=1.0, alpha=0.25),
        bbox=dict(type='BoxL1', weight=5.0),
        giou=dict(type='BoxGIoU', weight=2.0, eps=1e-6),
    ),
    supervise=dict(
        matching=dict(name='loss_{loss}{layer}'),
        proposals=dict(name='loss_{loss}_interm'),
        denoising=dict(name='loss_{loss}_dn{layer}', known=True),
    ),
)
postprocess = dict(type='SigmoidTopK', num_select=300, nms_iou=None)
