"""DINO, four scales, ResNet-50, 24 epochs: 50.4 AP as published."""

_base_ = ['dino_4scale_r50.py', '../_base_/schedule_24e.py']
