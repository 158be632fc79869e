"""DINO, four scales, ResNet-50, 36 epochs: 50.9 AP as published."""

_base_ = ['dino_4scale_r50.py', '../_base_/schedule_36e.py']
