"""D-FINE S, HGNetv2-B0, three decoder layers, 132 epochs: 48.5 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/dfine_hgnetv2_s.py
"""

_base_ = 'dfine_hgnetv2_m.py'

model = dict(
    backbone=dict(arch='B0'),
    encoder=dict(fusion=dict(expansion=0.5, num_blocks=1)),
    decoder=dict(num_layers=3),
)
data = dict(multi_scale=dict(sides=(480, 512, 544, 576, 608, *20 * (640, ), 800, 768, 736, 704, 672)))
optimizer = dict(scale={'backbone': 0.5})
