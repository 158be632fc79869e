"""A small Lite-DINO for blood cells."""

_base_ = 'lite_dino_r18_shapes.py'

model = dict(queries=dict(dn_number=100, base=dict(num_queries=100)))
data = dict(
    root='data/bccd',
    augment=dict(scales=(176, 192, 208), max_size=278, flip_vertical=0.5),
    resize=dict(scale=208, max_size=278),
)
schedule = dict(epochs=50)
training = dict(eval_every=10, save_every=10, print_every=100)
