"""DETR on a last feature map of stride 16 (DC5), 500 epochs: 43.3 AP as published (batch 64, one image a GPU).

torchrun --nnodes=8 --nproc_per_node=8 main.py -c config/detr/detr_r50_dc5.py

Evaluate it with one image a GPU too: padding costs it AP.
"""

_base_ = 'detr_r50.py'

model = dict(backbone=dict(dilation=True))
data = dict(batch_size=1)
