"""DETR, ResNet-50, 500 epochs: 42.0 AP as published (batch 64).

torchrun --nnodes=4 --nproc_per_node=8 main.py -c config/detr/detr_r50.py
"""

_base_ = ['../_base_/coco.py', '../_base_/training.py', '../_base_/schedule_500e.py']

official_keys = 'detr'
model = dict(
    d_model=256,
    num_heads=8,
    num_classes=91,
    head=dict(type='SoftmaxHead'),
    backbone=dict(
        type='ResNet', depth=50, stages=(4, ), norm='frozen', frozen=2, dilation=False, pretrained='IMAGENET1K_V1'),
    neck=dict(type='SingleMapNeck', position=dict(type='SinePosition', offset=0.0, temperature=10000)),
    encoder=dict(
        type='DenseEncoder',
        num_layers=6,
        layer=dict(type='DenseEncoderLayer', ffn_dim=2048, dropout=0.1),
    ),
    queries=dict(type='LearnedQueries', num_queries=100),
    decoder=dict(
        type='DenseDecoder',
        num_layers=6,
        layer=dict(type='DenseDecoderLayer', ffn_dim=2048, dropout=0.1),
    ),
)
criterion = dict(
    matcher=dict(type='SoftmaxHungarianMatcher', ce=1.0, bbox=5.0, giou=2.0),
    losses=dict(
        ce=dict(type='SoftmaxCrossEntropy', weight=1.0, no_object=0.1),
        bbox=dict(type='BoxL1', weight=5.0),
        giou=dict(type='BoxGIoU', weight=2.0),
    ),
    supervise=dict(matching=dict(name='loss_{loss}{layer}')),
)
postprocess = dict(type='SoftmaxBest')
optimizer = dict(total_batch_size=64)
