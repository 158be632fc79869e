"""DETR, Swin-T, 500 epochs: 45.4 AP as published (35.9 after 50), in Sparse DETR's table. The first stage is frozen.

torchrun --nnodes=4 --nproc_per_node=8 main.py -c config/detr/detr_swint.py
"""

_base_ = ['detr_r50.py', '../_base_/swint.py']

model = dict(backbone=dict(stages=(4, ), frozen=2))
