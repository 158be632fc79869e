"""What D-FINE trains with: images as RT-DETR's, four GPUs with 8 each, a constant learning rate after a warm-up, and a
second stage of plain images, which begins with the best epoch of the first and goes back to it where it gets no further.
As for L; `stop_epoch` is where the first stage ends.
"""

_base_ = 'rt_detr_recipe.py'

_stop_epoch = 72

data = dict(
    batch_size=8,
    augment=dict(stop_epoch=_stop_epoch),
    multi_scale=dict(
        sides=(480, 512, 544, 576, 608, *4 * (640, ), 800, 768, 736, 704, 672),
        stop_epoch=_stop_epoch,
    ),
)
optimizer = dict(
    lr=2.5e-4,
    weight_decay=1.25e-4,
    total_batch_size=32,
    scale={'backbone': 0.05},
    no_decay=(r'^(?!backbone\.).*norm', ),
)
schedule = dict(epochs=80, warmup_steps=500)
training = dict(
    ema=dict(decay=0.9999, warmup=1000),
    restart=dict(epoch=_stop_epoch, ema_decay=0.9999, lower=1e-4),
)
aliases = dict(stop_epoch=['data.augment.stop_epoch', 'data.multi_scale.stop_epoch', 'training.restart.epoch'])
