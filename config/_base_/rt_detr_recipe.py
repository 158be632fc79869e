"""What RT-DETR trains with: squares of 640 pixels in [0, 1], distorted, zoomed out and cropped; a side for every batch;
a constant learning rate for 72 epochs, four GPUs with 4 images each; an average of weights and statistics, which is what
is evaluated and published. As for R50; nothing stops before the end.
"""

_base_ = ['coco.py', 'training.py']

data = dict(
    categories='contiguous',
    batch_size=4,
    eval_batch_size=8,
    normalize=None,
    augment=dict(type='DistortZoomCrop',
                 height=640,
                 width=640,
                 distort=0.5,
                 zoom_out=0.5,
                 crop=0.8,
                 flip=0.5,
                 start_epoch=0,
                 stop_epoch=None),
    multi_scale=dict(
        sides=(480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800),
        stop_epoch=None,
    ),
    resize=dict(type='Stretch', height=640, width=640),
)
optimizer = dict(
    lr=1e-4,
    weight_decay=1e-4,
    total_batch_size=16,
    scale={'backbone': 0.1},
    no_decay=(r'^(?!backbone\.).*bias', r'^(encoder|decoder)\..*norm.*weight'),
)
schedule = dict(epochs=72, kind='step', drop=(), gamma=0.1, warmup_steps=0)
training = dict(clip_norm=0.1, ema=dict(decay=0.9999, warmup=2000), sync_bn=True)
aliases = dict(stop_epoch=['data.augment.stop_epoch', 'data.multi_scale.stop_epoch'])
