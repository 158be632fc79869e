"""Deformable DETR, MPViT Small, four levels, 50 epochs: 49.0 AP as published by MPViT.

torchrun --nproc_per_node=8 main.py -c config/deformable_detr/deformable_detr_mpvit_small.py \\
    --options model.backbone.pretrained=FILE

FILE: the MPViT authors' ImageNet-1k weights, from which the published model was trained.
"""

_base_ = 'deformable_detr_r50.py'

model = dict(backbone=dict(type='MPViT', arch='small', norm='sync', pretrained=None))
optimizer = dict(total_batch_size=16)
