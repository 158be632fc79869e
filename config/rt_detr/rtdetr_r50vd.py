"""RT-DETR, ResNet-50-vd, 72 epochs: 53.1 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/rtdetr_r50vd.py

Images are stretched to 640x640 and not normalised. The 80 classes of COCO are counted from 0, as in the papers' files.
"""

_base_ = ['../_base_/coco.py', '../_base_/training.py', '../_base_/rt_detr_recipe.py']

official_keys = 'rt_detr'
model = dict(
    d_model=256,
    num_heads=8,
    num_levels=3,
    num_classes=80,
    attention=dict(type='MSDeformAttn', num_points=4),
    head=dict(type='IndependentHead', eps=1e-5),
    backbone=dict(type='ResNetVd', depth=50, stages=(2, 3, 4), norm='frozen', frozen=1, pretrained='imagenet'),
    neck=dict(type='ConvNormNeck', d_model=256),
    encoder=dict(
        type='HybridEncoder',
        width=256,
        layer=dict(type='GELUEncoderLayer', ffn_dim=1024, dropout=0.0),
        position=dict(type='IndexPosition', temperature=10000),
        fusion=dict(type='CSPFusion', expansion=1.0, num_blocks=3),
        downsampling=dict(type='ConvDownsampling'),
        num_layers=1,
        lateral_activation='silu',
        project=True,
    ),
    queries=dict(
        type='WithPaddedDenoising',
        dn_number=100,
        label_noise_ratio=0.5,
        box_noise_scale=1.0,
        base=dict(
            type='TopKProposals',
            num_queries=300,
            init=dict(type='FromFeatures'),
            score='max',
            boxes_of='all',
            supervise='chosen',
        ),
    ),
    decoder=dict(
        type='DeformableDecoder',
        num_layers=6,
        layer=dict(type='PlainDeformableDecoderLayer', ffn_dim=1024, dropout=0.0),
        refine='look_forward_twice',
        share_head=False,
        start_alike=False,
        query_pos=dict(type='BoxMLP', limit=None),
    ),
)
criterion = dict(
    matcher=dict(type='HungarianMatcher', ce=2.0, bbox=5.0, giou=2.0),
    losses=dict(
        vfl=dict(type='VarifocalLoss', weight=1.0, alpha=0.75, gamma=2.0),
        bbox=dict(type='BoxL1', weight=5.0),
        giou=dict(type='BoxGIoU', weight=2.0),
    ),
    supervise=dict(
        matching=dict(name='loss_{loss}{aux}'),
        proposals=dict(name='loss_{loss}_aux_5'),
        denoising=dict(name='loss_{loss}_dn_{index}', known=True),
    ),
)
postprocess = dict(type='SigmoidTopK', num_select=300, nms_iou=None)
