"""RT-DETR, ResNet-50-vd, a narrower encoder, the third of six decoder layers answers, 72 epochs: 51.3 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/rtdetr_r50vd_m.py
"""

_base_ = 'rtdetr_r50vd.py'

model = dict(encoder=dict(fusion=dict(expansion=0.5)), decoder=dict(answer_layer=3))
