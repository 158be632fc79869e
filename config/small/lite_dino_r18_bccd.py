"""A small Lite-DINO for blood cells."""

_base_ = 'lite_dino_r18_shapes.py'

model = dict(queries=dict(dn_number=100, base=dict(num_queries=100)))
data = dict(
    root='data/bccd',
    augment=dict(scales=(192, 208, 224, 240, 256), max_size=342, flip_vertical=0.5),
    resize=dict(scale=240, max_size=320),
)
schedule = dict(epochs=48)
training = dict(eval_every=6, save_every=24, print_every=100)
