"""RT-DETRv2, the network of rtdetr_r34vd with a longer or gentler recipe, 120 epochs: 49.9 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/rtdetrv2_r34vd.py
"""

_base_ = ['rtdetr_r34vd.py', '../_base_/rt_detr_v2.py']
data = dict(augment=dict(stop_epoch=117), multi_scale=dict(stop_epoch=117))
optimizer = dict(
    scale={'backbone': 0.5},
    no_decay=(r'^(?!backbone\.).*(norm|bias)', r'^backbone\..*norm'),
)
schedule = dict(epochs=120)
