"""RT-DETRv2, the network of rtdetr_r18vd with a longer or gentler recipe, 120 epochs: 48.1 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/rtdetrv2_r18vd.py
"""

_base_ = ['rtdetr_r18vd.py', '../_base_/rt_detr_v2.py']
data = dict(augment=dict(stop_epoch=117), multi_scale=None)
optimizer = dict(scale={'backbone': 1.0}, no_decay=(r'norm', ))
schedule = dict(epochs=120)
aliases = dict(stop_epoch='data.augment.stop_epoch')
