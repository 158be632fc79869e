"""DINO, five scales, ResNet-50, 36 epochs: 51.2 AP as published."""

_base_ = ['dino_5scale_r50.py', '../_base_/schedule_36e.py']
