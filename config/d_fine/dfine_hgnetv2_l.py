"""D-FINE L, HGNetv2-B4, 80 epochs: 54.0 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/dfine_hgnetv2_l.py
"""

_base_ = ['../rt_detr/rtdetr_r50vd.py', '../_base_/d_fine_recipe.py']

official_keys = 'd_fine'
model = dict(
    attention=dict(type='BareDeformAttn', num_points=(3, 6, 3)),
    head=dict(type='DetectionHead', eps=1e-5),
    backbone=dict(type='HGNetv2',
                  arch='B4',
                  affine=False,
                  stages=(2, 3, 4),
                  norm='frozen',
                  frozen=1,
                  pretrained='imagenet'),
    encoder=dict(
        fusion=dict(type='ELANFusion', expansion=1.0, num_blocks=3),
        downsampling=dict(type='SeparateDownsampling'),
        lateral_activation=None,
        project=False,
    ),
    queries=dict(
        type='WithFoldedDenoising',
        dn_number=100,
        label_noise_ratio=0.5,
        box_noise_scale=1.0,
        base=dict(
            type='TopKProposals',
            num_queries=300,
            init=dict(type='FromFeatures'),
            score='max',
            boxes_of='chosen',
            supervise='chosen',
        ),
    ),
    decoder=dict(
        type='DistributionDecoder',
        num_layers=6,
        layer=dict(type='GatedDecoderLayer', ffn_dim=1024, dropout=0.0),
        head=dict(type='EdgeHead', bins=33),
        query_pos=dict(type='BoxMLP', limit=10.0),
        scale=4.0,
        reach=0.5,
    ),
)
criterion = dict(
    losses=dict(fgl=dict(type='FineGrainedLocalization', weight=0.15, scale=4.0, reach=0.5)),
    joint=dict(ddf=dict(type='Distillation', weight=1.5, temperature=5.0)),
    union=dict(type='UnionOfMatchings', losses=('bbox', 'giou', 'fgl', 'ddf')),
    supervise=dict(
        matching=dict(name='loss_{loss}{aux}'),
        initial=dict(name='loss_{loss}_pre', losses=('vfl', 'bbox', 'giou')),
        proposals=dict(name='loss_{loss}_enc_{index}', losses=('vfl', 'bbox', 'giou')),
        denoising=dict(name='loss_{loss}_dn_{index}', known=True),
        initial_denoising=dict(name='loss_{loss}_dn_pre',
                               known=True,
                               groups='denoising',
                               losses=('vfl', 'bbox', 'giou')),
    ),
)
