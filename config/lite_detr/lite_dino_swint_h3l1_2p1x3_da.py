"""Lite-DINO H3L1-(2+1)x3 with plain deformable attention, Swin-T, 46 epochs."""

_base_ = ['lite_dino_r50_h3l1_2p1x3_da.py', '../_base_/swint.py']

model = dict(queries=dict(box_noise_scale=0.4))
schedule = dict(epochs=46)
