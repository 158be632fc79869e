"""What DEIM does otherwise than the model and the recipe that come before it: SiLU in the decoder and in all small networks, the
matchability-aware loss, mosaics and blended batches, strong augmentation from epoch 4 on, a rate that falls to half along a
cosine. Epochs are as for 80: mosaics and blends end with the first half, the rate is flat for 4 epochs more, and in the last
ones, which are plain. Comes after the model that it changes.
"""

_mixed = dict(probability=0.5, start_epoch=4, stop_epoch=40)

model = dict(activation='silu')
criterion = dict(losses=dict(vfl=None, mal=dict(type='MatchabilityLoss', weight=1.0, gamma=1.5)))
data = dict(
    augment=dict(start_epoch=4),
    mosaic=dict(side=320, rotation=10.0, shift=0.1, scale=(0.5, 1.5), **_mixed),
    mixup=dict(ratio=(0.45, 0.55), **_mixed),
)
schedule = dict(kind='flat_cosine', gamma=0.5, warmup_steps=2000, flat_epochs=44, final_epochs=8)
aliases = dict(
    start_epoch=['data.augment.start_epoch', 'data.mosaic.start_epoch', 'data.mixup.start_epoch'],
    mixed_until=['data.mosaic.stop_epoch', 'data.mixup.stop_epoch'],
)
