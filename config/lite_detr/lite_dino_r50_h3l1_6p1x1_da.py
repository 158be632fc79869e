"""Lite-DINO H3L1-(6+1)x1 with plain deformable attention, ResNet-50, 36 epochs."""

_base_ = 'lite_dino_r50_h3l1_6p1x1_kda.py'

model = dict(attention=dict(type='MSDeformAttnWithQueryProj', num_points=4))
