"""Deformable DETR, Swin-T, four levels, 50 epochs: 45.7 AP as published with Sparse DETR. The first stage is frozen.

torchrun --nproc_per_node=8 main.py -c config/deformable_detr/deformable_detr_swint.py
"""

_base_ = ['deformable_detr_r50.py', '../_base_/swint.py']

model = dict(backbone=dict(frozen=2))
optimizer = dict(total_batch_size=16)
