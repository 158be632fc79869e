"""Deformable DETR, CoaT-Lite Small, four levels, 50 epochs: 47.0 AP as published by CoaT.

torchrun --nproc_per_node=8 main.py -c config/deformable_detr/deformable_detr_coat_lite_small.py \\
    --options model.backbone.pretrained=FILE

FILE: the CoaT authors' ImageNet-1k weights, from which the published model was trained.
"""

_base_ = 'deformable_detr_r50.py'

model = dict(backbone=dict(type='CoaT', arch='lite_small', drop_path=0.0, pretrained=None))
optimizer = dict(total_batch_size=16)
