"""Conditional DETR, ResNet-50, 50 epochs: 41.0 AP as published (batch 16).

torchrun --nproc_per_node=8 main.py -c config/conditional_detr/conditional_detr_r50.py
"""

_base_ = ['../detr/detr_r50.py', '../_base_/schedule_50e.py']

_layer = dict(ffn_dim=2048, dropout=0.1)
official_keys = 'conditional_detr'
model = dict(
    head=dict(type='DetectionHead', eps=1e-5),
    queries=dict(num_queries=300),
    decoder=dict(
        type='ConditionalDecoder',
        num_layers=6,
        first_layer=dict(type='FirstConditionalDecoderLayer', **_layer),
        layer=dict(type='ConditionalDecoderLayer', **_layer),
    ),
)
criterion = dict(
    matcher=dict(type='HungarianMatcher', ce=2.0, bbox=5.0, giou=2.0),
    losses=dict(ce=dict(type='FocalLoss', weight=2.0, alpha=0.25)),
)
postprocess = dict(type='SigmoidTopK', num_select=100, nms_iou=None)
optimizer = dict(total_batch_size=16)
