"""D-FINE M, HGNetv2-B2 of which all trains, four decoder layers, 132 epochs: 52.3 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/dfine_hgnetv2_m.py
"""

_base_ = 'dfine_hgnetv2_l.py'

model = dict(
    backbone=dict(arch='B2', affine=True, norm='batch', frozen=0),
    encoder=dict(fusion=dict(num_blocks=2)),
    decoder=dict(num_layers=4),
)
data = dict(
    augment=dict(stop_epoch=120),
    multi_scale=dict(sides=(480, 512, 544, 576, 608, *6 * (640, ), 800, 768, 736, 704, 672), stop_epoch=120),
)
optimizer = dict(lr=2e-4, weight_decay=1e-4, scale={'backbone': 0.1}, no_decay=(r'^(?!backbone\.).*(norm|bias)', ))
schedule = dict(epochs=132)
training = dict(restart=dict(epoch=120))
