"""DEIM on RT-DETRv2, the network of rtdetrv2_r50vd_m, 84 epochs: 53.2 AP as published.

torchrun --nproc_per_node=4 main.py -c config/rt_detr/deim_rtdetrv2_r50vd_m.py

Rates, epochs and images a step are RT-DETRv2's, for want of published ones.
"""

_base_ = ['rtdetrv2_r50vd_m.py', '../_base_/deim.py']

data = dict(mosaic=dict(stop_epoch=42), mixup=dict(stop_epoch=42))
schedule = dict(flat_epochs=46, final_epochs=3)
