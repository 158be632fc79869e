"""DINO, five scales, ResNet-50, 24 epochs: 51.3 AP as published."""

_base_ = ['dino_5scale_r50.py', '../_base_/schedule_24e.py']
