"""RT-DETR, ResNet-18-vd of which all trains, three decoder layers, 72 epochs: 46.5 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/rtdetr_r18vd.py
"""

_base_ = 'rtdetr_r50vd.py'

model = dict(
    backbone=dict(depth=18, norm='batch', frozen=0),
    encoder=dict(fusion=dict(expansion=0.5)),
    decoder=dict(num_layers=3),
)
criterion = dict(supervise=dict(proposals=dict(name='loss_{loss}_aux_2')))
optimizer = dict(no_decay=(r'^(?!backbone\.).*bias', r'^(encoder|decoder)\..*norm.*weight', r'^backbone\..*norm'))
