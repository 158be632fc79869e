"""A small Lite-DINO for blood cells: ResNet-18 from scratch on the 205 training images of BCCD.

python main.py -c config/small/lite_dino_r18_bccd.py --coco_path BCCD_DIR

0.56 AP and 0.84 AP50 on its val2017, a quarter of an hour on two CPU cores. Cells have no upright: images are flipped both
ways.
"""

_base_ = 'lite_dino_r18_shapes.py'

model = dict(backbone=dict(stages=(2, 3, 4)), queries=dict(dn_number=100, base=dict(num_queries=100)))
data = dict(
    root='data/bccd',
    batch_size=8,
    augment=dict(scales=(176, 192, 208), max_size=278, flip_vertical=0.5),
    resize=dict(scale=208, max_size=278),
)
optimizer = dict(lr=5e-4, total_batch_size=8)
schedule = dict(epochs=50)
training = dict(eval_every=10, save_every=10, print_every=100)
