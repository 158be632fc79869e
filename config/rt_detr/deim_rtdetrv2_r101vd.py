"""DEIM on RT-DETRv2, the network of rtdetrv2_r101vd, 72 epochs: 55.5 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/deim_rtdetrv2_r101vd.py

Rates, epochs and images a step are RT-DETRv2's, for want of published ones.
"""

_base_ = ['rtdetrv2_r101vd.py', '../_base_/deim.py']

data = dict(mosaic=dict(stop_epoch=36), mixup=dict(stop_epoch=36))
schedule = dict(flat_epochs=40, final_epochs=1)
