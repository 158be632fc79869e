"""Lite-DINO under the name and the option names of Lite-DETR's own README: its commands work as printed there.

python -m torch.distributed.launch main.py -c config/DINO/DINO_4scale.py --coco_path COCODIR --options num_expansion=3 enc_scale=3

num_expansion is the number of blocks, enc_scale the number of coarse levels. The released checkpoints:
H2L2-(2+1)x3 is num_expansion=3 enc_scale=2 (that README says 1), H3L1-(6+1)x1 is 1 and 3, H3L1-(2+1)x3 is 3 and 3.
lr_drop counts finished epochs: that code's lr_drop=30 is 31 here, as its scheduler hears of an epoch when it is over.
nms_iou_threshold=-1 (or 0) turns NMS off, as there. lr leaves the backbone's rate alone, as there: lr_backbone sets it.
key_aware=False takes plain deformable attention; the released checkpoints are key-aware.
"""

_base_ = '../lite_detr/lite_dino_r50_h3l1_2p1x3_kda.py'

optimizer = dict(lr_backbone=1e-5)
aliases = dict(
    num_expansion='model.encoder.num_blocks',
    enc_scale='model.encoder.high_levels',
    enc_layers='model.encoder.num_layers',
    key_aware={
        True: {'model.attention.type': 'KeyAwareDeformAttn'},
        False: {'model.attention.type': 'MSDeformAttnWithQueryProj'},
    },
    dec_layers='model.decoder.num_layers',
    num_queries='model.queries.base.num_queries',
    num_classes='model.num_classes',
    dn_number='model.queries.dn_number',
    dn_label_noise_ratio='model.queries.label_noise_ratio',
    dn_box_noise_scale='model.queries.box_noise_scale',
    num_select='postprocess.num_select',
    nms_iou_threshold='postprocess.nms_iou',
    batch_size='data.batch_size',
    lr='optimizer.lr',
    weight_decay='optimizer.weight_decay',
    clip_max_norm='training.clip_norm',
    epochs='schedule.epochs',
    lr_drop='schedule.drop',
)
