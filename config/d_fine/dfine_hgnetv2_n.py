"""D-FINE N, HGNetv2-B0, half as wide, maps of strides 16 and 32 alone, 160 epochs: 42.8 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/dfine_hgnetv2_n.py
"""

_base_ = 'dfine_hgnetv2_s.py'

model = dict(
    d_model=128,
    num_levels=2,
    attention=dict(num_points=(6, 6)),
    backbone=dict(stages=(3, 4)),
    neck=dict(d_model=128),
    encoder=dict(width=128, layer=dict(ffn_dim=512), fusion=dict(expansion=0.34, num_blocks=2)),
    decoder=dict(layer=dict(ffn_dim=512)),
)
data = dict(batch_size=32, augment=dict(stop_epoch=148), multi_scale=None)
optimizer = dict(lr=8e-4, total_batch_size=128)
schedule = dict(epochs=160)
training = dict(restart=dict(epoch=148))
aliases = dict(stop_epoch=['data.augment.stop_epoch', 'training.restart.epoch'])
