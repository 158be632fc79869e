"""COCO 2017: 118,287 training images, 80 classes; training images 480 to 800 pixels high, evaluation at 800."""

data = dict(
    root='data/coco',
    train=dict(images='train2017', annotations='annotations/instances_train2017.json'),
    val=dict(images='val2017', annotations='annotations/instances_val2017.json'),
    test=dict(images='test2017', annotations='annotations/image_info_test-dev2017.json'),
    categories='auto',
    batch_size=2,
    eval_batch_size=1,
    normalize='imagenet',
    augment=dict(
        scales=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        max_size=1333,
        crop=dict(scales=(400, 500, 600), min_size=384, max_size=600),
        flip=0.5,
    ),
    multi_scale=None,
    mosaic=None,
    mixup=None,
    resize=dict(scale=800, max_size=1333),
    corrupt=dict(in_a_row=10, files=100),
    max_pixels=89_478_485,
)
