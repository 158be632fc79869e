"""Efficient DETR as Sparse DETR builds it, ResNet-50, 50 epochs: 46.0 AP as published.

torchrun --nproc_per_node=8 main.py -c config/efficient_detr/efficient_detr_r50.py

Two-stage Deformable DETR whose first stage tells the classes apart and hands its tokens on as queries.
"""

_base_ = '../deformable_detr/deformable_detr_r50_two_stage.py'

official_keys = 'efficient_detr'
model = dict(queries=dict(init=dict(type='FromMemory'), score='max'))
criterion = dict(supervise=dict(proposals=dict(labels='classes')))
optimizer = dict(total_batch_size=16)  # its code also has what scale_lr='sqrt' does
