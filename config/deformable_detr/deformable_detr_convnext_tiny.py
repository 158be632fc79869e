"""Deformable DETR with a backbone of timm, here ConvNeXt-T, four levels, 50 epochs. Not in any of the papers' tables.

torchrun --nproc_per_node=8 main.py -c config/deformable_detr/deformable_detr_convnext_tiny.py --batch_size 4

Others that were tried are listed in models/backbones/timm.py; those with batch norm want norm='frozen'.
"""

_base_ = 'deformable_detr_r50.py'

model = dict(
    backbone=dict(
        type='TimmBackbone',
        name='convnext_tiny',
        strides=(8, 16, 32),
        divisor=1,
        norm='own',
        drop_path=0.1,
        pretrained='in12k_ft_in1k',
    ))
