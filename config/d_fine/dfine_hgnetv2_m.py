"""D-FINE M, HGNetv2-B2 of which all trains, four decoder layers, 132 epochs: 52.3 AP as published.

torchrun --nproc_per_node=4 main.py -c config/d_fine/dfine_hgnetv2_m.py
"""

_base_ = 'dfine_hgnetv2_l.py'

model = dict(
    backbone=dict(arch='B2', affine=True, norm='batch', frozen=0),
    encoder=dict(fusion=dict(num_blocks=2)),
    decoder=dict(num_layers=4),
)
