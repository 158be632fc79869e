"""A small RT-DETR for blood cells: ResNet-18-vd from scratch on the 205 training images of BCCD.

python main.py -c config/small/rtdetr_r18_bccd.py --coco_path BCCD_DIR
"""

_base_ = '../rt_detr/rtdetr_r18vd.py'

model = dict(
    d_model=128,
    backbone=dict(pretrained=None),
    neck=dict(d_model=128),
    encoder=dict(width=128, layer=dict(ffn_dim=512)),
    queries=dict(base=dict(num_queries=100)),
    decoder=dict(layer=dict(ffn_dim=512)),
)
postprocess = dict(num_select=100)
data = dict(
    root='data/bccd',
    categories='auto',
    batch_size=8,
    eval_batch_size=16,
    augment=dict(height=224, width=288, distort=0.0, zoom_out=0.0, crop=0.3, flip_vertical=0.5),
    multi_scale=dict(sides=(256, 288, 320)),
    resize=dict(height=224, width=288),
)
optimizer = dict(lr=5e-4, total_batch_size=8, scale={'backbone': 1.0})
schedule = dict(epochs=50, kind='onecycle')
training = dict(ema=dict(decay=0.998, warmup=200), sync_bn=False, eval_every=10, save_every=10, print_every=100)
