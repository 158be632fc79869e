"""RT-DETR, ResNet-34-vd, four decoder layers, 72 epochs: 48.9 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/rtdetr_r34vd.py
"""

_base_ = 'rtdetr_r18vd.py'

model = dict(
    backbone=dict(depth=34),
    decoder=dict(num_layers=4),
)
criterion = dict(supervise=dict(proposals=dict(name='loss_{loss}_aux_3')))
