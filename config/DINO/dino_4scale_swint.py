"""DINO, four scales, Swin-T, 12 epochs.

torchrun --nproc_per_node=8 main.py -c config/DINO/dino_4scale_swint.py
"""

_base_ = ['dino_4scale_r50.py', '../_base_/swint.py']
