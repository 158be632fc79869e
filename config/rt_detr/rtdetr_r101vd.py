"""RT-DETR, ResNet-101-vd, a wider encoder, 72 epochs: 54.3 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/rtdetr_r101vd.py
"""

_base_ = 'rtdetr_r50vd.py'

model = dict(
    backbone=dict(depth=101),
    neck=dict(d_model=384),
    encoder=dict(width=384, layer=dict(ffn_dim=2048)),
)
optimizer = dict(scale={'backbone': 0.01}, no_decay=())
