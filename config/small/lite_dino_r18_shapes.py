"""A small Lite-DINO for the synthetic shapes dataset: ResNet-18 from scratch, three levels of which the coarsest
is made by the neck, minutes on a laptop's CPU.

python main.py -c config/small/lite_dino_r18_shapes.py
"""

_base_ = '../lite_detr/lite_dino_r50_h3l1_2p1x3_kda.py'

_layer = dict(ffn_dim=512, dropout=0.0)
model = dict(
    d_model=128,
    num_levels=3,
    backbone=dict(depth=18, stages=(2, 3), norm='batch', frozen=0, pretrained=None),
    encoder=dict(num_layers=2, num_blocks=1, high_levels=2, layer=_layer, last_layer=dict(low_ffn_dim=128, **_layer)),
    queries=dict(dn_number=50, box_noise_scale=0.4, base=dict(num_queries=60)),
    decoder=dict(num_layers=3, layer=_layer),
)
criterion = dict(losses=dict(ce=dict(weight=2.0)))
postprocess = dict(num_select=100)
data = dict(
    root='shapes',
    batch_size=4,
    eval_batch_size=16,
    augment=dict(scales=(120, 128, 136), max_size=208, crop=None),
    resize=dict(scale=128, max_size=208),
)
optimizer = dict(lr=7e-4, total_batch_size=4, scale={'backbone': 1.0})
schedule = dict(epochs=5, kind='onecycle')
training = dict(ema=dict(decay=0.998), eval_every=5, print_every=20)
