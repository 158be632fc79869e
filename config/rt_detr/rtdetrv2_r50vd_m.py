"""RT-DETRv2, the network of rtdetr_r50vd_m with a longer or gentler recipe, 84 epochs: 51.9 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/rtdetrv2_r50vd_m.py
"""

_base_ = ['rtdetr_r50vd_m.py', '../_base_/rt_detr_v2.py']
data = dict(augment=dict(stop_epoch=81), multi_scale=dict(stop_epoch=81))
schedule = dict(epochs=84)
