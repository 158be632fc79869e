"""Lite-DINO H3L1-(2+1)x3 with plain deformable attention, Swin-T, 46 epochs."""

_base_ = 'lite_dino_swint_h3l1_2p1x3_kda.py'

model = dict(attention=dict(type='MSDeformAttnWithQueryProj', num_points=4))
