"""Two-stage Deformable DETR with iterative bounding box refinement: 46.9 AP as published."""

_base_ = 'deformable_detr_r50_box_refine.py'

model = dict(
    queries=dict(
        type='TopKProposals',
        num_queries=300,
        init=dict(type='FromBox'),
        score='first',
        boxes_of='all',
        supervise='all',
    ),
    decoder=dict(size_bias=0.0),
)
criterion = dict(supervise=dict(proposals=dict(name='loss_{loss}_enc', labels='foreground')))
