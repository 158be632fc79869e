"""A small D-FINE for blood cells: N from scratch on the 205 training images of BCCD.

python main.py -c config/small/dfine_n_bccd.py --coco_path BCCD_DIR
"""

_base_ = '../d_fine/dfine_hgnetv2_n.py'

model = dict(
    num_levels=3,
    attention=dict(num_points=(4, 4, 4)),
    backbone=dict(stages=(2, 3, 4), pretrained=None),
    queries=dict(base=dict(num_queries=100)),
)
postprocess = dict(num_select=100)
data = dict(
    root='data/bccd',
    categories='auto',
    batch_size=8,
    eval_batch_size=16,
    augment=dict(height=224, width=288, distort=0.0, zoom_out=0.0, crop=0.3, flip_vertical=0.5, stop_epoch=None),
    multi_scale=dict(sides=(256, 288, 320), stop_epoch=None),
    resize=dict(height=224, width=288),
)
optimizer = dict(lr=5e-4, total_batch_size=8, scale={'backbone': 1.0})
schedule = dict(epochs=50, kind='onecycle', warmup_steps=0)
training = dict(ema=dict(decay=0.998, warmup=200),
                restart=None,
                sync_bn=False,
                eval_every=10,
                save_every=10,
                print_every=100)
