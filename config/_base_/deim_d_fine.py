"""DEIM's recipe for D-FINE: all of the backbone trains, and losses of sites have their names. Comes after the model."""

_base_ = 'deim.py'

_first = ('mal', 'bbox', 'giou')

model = dict(backbone=dict(norm='batch', frozen=0))
criterion = dict(supervise=dict(
    initial=dict(losses=_first),
    proposals=dict(losses=_first),
    initial_denoising=dict(losses=_first),
))
