"""Two-stage Deformable DETR with iterative bounding box refinement, Swin-T.

Sparse DETR's table gives 48.0 AP for a model with proposals; its 41.3 M parameters are those of Efficient DETR.
"""

_base_ = ['deformable_detr_r50_two_stage.py', '../_base_/swint.py']

model = dict(backbone=dict(frozen=2))
optimizer = dict(total_batch_size=16)
