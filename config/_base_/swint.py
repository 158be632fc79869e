"""Swin-T with its authors' ImageNet-1k weights, the maps at strides 8, 16 and 32. Comes after the model that it changes."""

model = dict(
    backbone=dict(
        type='SwinTransformer',
        arch='tiny',
        window=7,
        stages=(2, 3, 4),
        drop_path=0.2,
        frozen=0,
        pretrained='swin_tiny_patch4_window7_224',
    ))
