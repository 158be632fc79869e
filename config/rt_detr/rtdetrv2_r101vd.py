"""RT-DETRv2, the network of rtdetr_r101vd with a longer or gentler recipe, 72 epochs: 54.3 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/rtdetrv2_r101vd.py
"""

_base_ = ['rtdetr_r101vd.py', '../_base_/rt_detr_v2.py']
optimizer = dict(scale={'backbone': 0.01})
