"""Deformable DETR, CoaT Small, four levels, 50 epochs: 48.4 AP as published by CoaT."""

_base_ = 'deformable_detr_coat_lite_small.py'

model = dict(backbone=dict(arch='small', drop_path=0.2))
