"""Faster R-CNN with a feature pyramid, ResNet-50, torchvision's own: the baseline row of the papers' tables.

The published 42.0 AP are those of 109 epochs with detectron2; this config has its three-fold schedule (37 epochs).

torchrun --nproc_per_node=8 main.py -c config/faster_rcnn/faster_rcnn_r50_fpn.py
"""

_base_ = ['../_base_/coco.py', '../_base_/training.py']

model = dict(
    type='FasterRCNN',
    num_classes=91,
    d_model=256,
    score_threshold=0.05,
    num_select=100,
    backbone=dict(
        type='ResNet', depth=50, stages=(1, 2, 3, 4), norm='frozen', frozen=2, dilation=False,
        pretrained='IMAGENET1K_V1'),
)
criterion = dict(type='OwnLosses')
postprocess = dict(type='OwnDetections')
data = dict(augment=dict(scales=(640, 672, 704, 736, 768, 800), crop=None))
schedule = dict(epochs=37, kind='step', drop=(29, 34), gamma=0.1, warmup_steps=0)
