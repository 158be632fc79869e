"""What RT-DETRv2 trains with: as RT-DETR, with a warm-up, and with plain images of one size at the end. As for R50."""

_base_ = 'rt_detr_recipe.py'

data = dict(augment=dict(stop_epoch=71), multi_scale=dict(stop_epoch=71))
optimizer = dict(no_decay=(r'^(?!backbone\.).*norm', r'^neck\.proj\.\d+\.1\.'))
schedule = dict(warmup_steps=2000)
