"""D-FINE X, HGNetv2-B5, a wider encoder, 80 epochs: 55.8 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/dfine_hgnetv2_x.py
"""

_base_ = 'dfine_hgnetv2_l.py'

model = dict(
    backbone=dict(arch='B5'),
    neck=dict(d_model=384),
    encoder=dict(width=384, layer=dict(ffn_dim=2048), project=True),
    decoder=dict(scale=8.0),
)
criterion = dict(losses=dict(fgl=dict(scale=8.0)))
data = dict(multi_scale=dict(sides=(480, 512, 544, 576, 608, *3 * (640, ), 800, 768, 736, 704, 672)))
optimizer = dict(scale={'backbone': 0.01})
training = dict(restart=dict(ema_decay=0.9998))
