"""Options of the papers' own code, and how the same is said here. Whoever gives one is told; nothing is guessed.

Of facebookresearch/detr, Deformable DETR, Conditional DETR, PnP-DETR, Sparse DETR, H-DETR, DINO and Lite-DETR; of
RT-DETR, RT-DETRv2 and D-FINE, whose `-u` takes names of their YAML files.
"""

from collections.abc import Mapping

ENCODER_LAYER = "model.encoder.layer.{0}|model.encoder.base.layer.{0}"
QUERIES = "model.queries.num_queries|model.queries.base.num_queries"

AS_OPTIONS: dict[str, tuple[str, ...]] = {
    "lr": ("optimizer.lr",),
    "lr_backbone": ("optimizer.lr_backbone",),
    "weight_decay": ("optimizer.weight_decay",),
    "clip_max_norm": ("training.clip_norm",),
    "epochs": ("schedule.epochs",),
    "epoches": ("schedule.epochs",),
    "lr_drop": ("schedule.drop",),
    "lr_drop_epochs": ("schedule.drop",),
    "lr_drop_list": ("schedule.drop",),
    "onecyclelr": ("schedule.kind=onecycle",),
    "warmup": ("schedule.warmup_steps",),
    "warmup_duration": ("schedule.warmup_steps",),
    "batch_size": ("data.batch_size",),
    "save_checkpoint_interval": ("training.save_every",),
    "checkpoint_freq": ("training.save_every",),
    "checkpoint_step": ("training.save_every",),
    "use_ema": ("training.ema={'decay': 0.9997}",),
    "ema_decay": ("training.ema.decay",),
    "ema_restart_decay": ("training.restart.ema_decay",),
    "sync_bn": ("training.sync_bn",),
    "num_classes": ("model.num_classes",),
    "hidden_dim": ("model.d_model",),
    "nheads": ("model.num_heads",),
    "nhead": ("model.num_heads",),
    "enc_layers": ("model.encoder.num_layers|model.encoder.base.num_layers",),
    "dec_layers": ("model.decoder.num_layers",),
    "num_layers": ("model.decoder.num_layers",),
    "num_decoder_layers": ("model.decoder.num_layers",),
    "dim_feedforward": (ENCODER_LAYER.format("ffn_dim"), "model.decoder.layer.ffn_dim"),
    "dropout": (ENCODER_LAYER.format("dropout"), "model.decoder.layer.dropout"),
    "num_queries": (QUERIES,),
    "num_queries_one2one": (QUERIES,),
    "num_queries_one2many": ("model.queries.num_one2many",),
    "k_one2many": ("criterion.supervise.one2many.repeat",),
    "lambda_one2many": ("criterion.supervise.one2many.weight",),
    "num_feature_levels": ("model.num_levels",),
    "enc_n_points": ("model.attention.num_points",),
    "dec_n_points": ("model.attention.num_points",),
    "num_points": ("model.attention.num_points",),
    "num_decoder_points": ("model.attention.num_points",),
    "expansion": ("model.encoder.fusion.expansion",),
    "reg_scale": ("model.decoder.scale", "criterion.losses.fgl.scale"),
    "rho": ("model.encoder.keep_ratio",),
    "num_expansion": ("model.encoder.num_blocks",),
    "enc_scale": ("model.encoder.high_levels",),
    "dn_number": ("model.queries.dn_number",),
    "dn_label_noise_ratio": ("model.queries.label_noise_ratio",),
    "dn_box_noise_scale": ("model.queries.box_noise_scale",),
    "num_denoising": ("model.queries.dn_number",),
    "label_noise_ratio": ("model.queries.label_noise_ratio",),
    "box_noise_scale": ("model.queries.box_noise_scale",),
    "sample_topk_ratio": ("model.encoder.ratio",),
    "unsample_abstract_number": ("model.encoder.num_pooled",),
    "sample_reg_loss": ("criterion.terms.sample_reg_loss.weight",),
    "mask_prediction_coef": ("criterion.terms.loss_mask_prediction.weight",),
    "pe_temperatureH": ("model.neck.position.temperature",),
    "pe_temperatureW": ("model.neck.position.temperature",),
    "pretrained_backbone_path": ("model.backbone.pretrained",),
    "scrl_pretrained_path": ("model.backbone.pretrained",),
    "backbone_weights": ("model.backbone.pretrained",),
    "drop_path_rate": ("model.backbone.drop_path",),
    "set_cost_class": ("criterion.matcher.ce",),
    "set_cost_bbox": ("criterion.matcher.bbox",),
    "set_cost_giou": ("criterion.matcher.giou",),
    "cost_class": ("criterion.matcher.ce",),
    "cost_bbox": ("criterion.matcher.bbox",),
    "cost_giou": ("criterion.matcher.giou",),
    "cls_loss_coef": ("criterion.losses.ce.weight|criterion.losses.vfl.weight",),
    "bbox_loss_coef": ("criterion.losses.bbox.weight",),
    "giou_loss_coef": ("criterion.losses.giou.weight",),
    "focal_alpha": ("criterion.losses.ce.alpha|criterion.losses.vfl.alpha",),
    "eos_coef": ("criterion.losses.ce.no_object",),
    "num_select": ("postprocess.num_select",),
    "topk": ("postprocess.num_select",),
    "num_top_queries": ("postprocess.num_select",),
    "nms_iou_threshold": ("postprocess.nms_iou",),
}
"""{name there: paths here}. All paths of a name receive its value; of those with | between them, the one that a config
has. One with = in it has its own value: the name there takes none."""

BOXES_ONLY = "there is nothing to say: detectors here find boxes, not masks"
LAUNCHED = "there is nothing to say: `torchrun --nproc_per_node=N main.py ...` tells it to the processes"
WITHOUT_EFFECT = "there is nothing to say: it had no effect there"
REAL_TIME = "of the configs in config/rt_detr and config/d_fine"
ALL_LAYERS = "there is nothing to say: the losses of all decoder layers are part of every config"

IN_WORDS = {
    "backbone": "it is part of a config, whose name tells it: config/deformable_detr/deformable_detr_r101.py, "
    "config/sparse_detr/sparse_detr_swint_rho_0.1.py, ...",
    "dilation": "it is a config: config/detr/detr_r50_dc5.py, config/conditional_detr/conditional_detr_r50_dc5.py, "
    "config/deformable_detr/deformable_detr_r50_dc5.py, config/pnp_detr/pnp_detr_r50_dc5_ratio033.py",
    "with_box_refine": "it is a config: config/deformable_detr/deformable_detr_r50_box_refine.py, and part of all "
    "two-stage ones",
    "two_stage": "it is a config: config/deformable_detr/deformable_detr_r50_two_stage.py, and part of those of "
    "Efficient DETR, Sparse DETR and DINO",
    "eff_query_init": "it is part of config/efficient_detr/efficient_detr_r50.py and of those in config/sparse_detr",
    "eff_specific_head": "it is part of config/efficient_detr/efficient_detr_r50.py and of those in config/sparse_detr",
    "use_enc_aux_loss": "it is part of the configs in config/sparse_detr (criterion.supervise.encoder)",
    "mixed_selection": "it is part of config/h_detr/h_deformable_detr_r50.py",
    "look_forward_twice": "it is part of config/h_detr/h_deformable_detr_r50.py (model.decoder.refine)",
    "key_aware": "it is a config: in config/lite_detr the names ending in _kda have it, those in _da do not",
    "position_embedding": "it is part of a config: model.neck.position",
    "sample_ratio_lower_bound": 'it is --options "model.encoder.training_ratios=(LOWER, HIGHER)"',
    "sample_ratio_higher_bound": 'it is --options "model.encoder.training_ratios=(LOWER, HIGHER)"',
    "lr_backbone_names": "it is part of a config: optimizer.scale",
    "lr_linear_proj_names": "it is part of a config: optimizer.scale",
    "lr_linear_proj_mult": "it is part of a config: optimizer.scale",
    "sgd": "there is nothing to say: all configs train with AdamW",
    "pre_norm": "there is nothing to say: layers norm after what they compute, as in all released models",
    "dataset_file": "there is nothing to say: --coco_path names data in COCO's format",
    "data_path": "it is --coco_path",
    "coco_panoptic_path": BOXES_ONLY,
    "masks": BOXES_ONLY,
    "frozen_weights": BOXES_ONLY,
    "mask_loss_coef": BOXES_ONLY,
    "dice_loss_coef": BOXES_ONLY,
    "aux_loss": ALL_LAYERS,
    "no_aux_loss": ALL_LAYERS,
    "start_epoch": "there is nothing to say: a checkpoint tells where its training stands (--resume)",
    "no_benchmark": "there is nothing to say: nothing is measured unless --benchmark asks for it",
    "eval_in_training_set": "it is --options data.val.images=train2017 "
    "data.val.annotations=annotations/instances_train2017.json",
    "fp16": "it is --amp",
    "use_fp16": "it is --amp",
    "use_amp": "it is --amp",
    "test_only": "it is --eval",
    "r": "it is --resume",
    "t": "it is --pretrain_model_path",
    "tuning": "it is --pretrain_model_path",
    "u": "it is --options, which answers a name of theirs with the one here",
    "update": "it is --options, which answers a name of theirs with the one here",
    "d": "it is --device",
    "total_batch_size": "it is --batch_size, the images of each process",
    "find_unused_parameters": "it is --find_unused_params",
    "eval_idx": "it is model.decoder.answer_layer, counted from 1: config/rt_detr/rtdetr_r50vd_m.py",
    "eval_spatial_size": "it is data.resize: anchors and positions follow from each image's size",
    "return_idx": f"it is model.backbone.stages, counted from 1, {REAL_TIME}",
    "freeze_at": f"it is model.backbone.frozen, how many leading pieces are: one more than there, {REAL_TIME}",
    "freeze_norm": f"it is model.backbone.norm, 'frozen' or 'batch', {REAL_TIME}",
    "depth_mult": "it is model.encoder.fusion.num_blocks, three times as many, rounded: config/d_fine",
    "reg_max": "it is model.decoder.head.bins, one more: config/d_fine",
    "use_uni_set": "it is criterion.union: config/d_fine",
    "cross_attn_method": "it is a config: in config/rt_detr the names ending in _dsp read the nearest pixels",
    "stop_epoch": f"it is the option stop_epoch {REAL_TIME}, under which all of it stands that stops",
    "base_size": f"it is data.multi_scale.sides, all of them, {REAL_TIME}",
    "base_size_repeat": f"it is data.multi_scale.sides, all of them, {REAL_TIME}",
    "remap_mscoco_category": f"it is data.categories='contiguous', part {REAL_TIME}",
    "use_focal_loss": f"there is nothing to say: it is part {REAL_TIME}",
    "use_checkpoint": "it is --options \"checkpointing=['backbone']\"",
    "world_size": LAUNCHED,
    "rank": LAUNCHED,
    "dist_url": LAUNCHED,
    "dist_backend": LAUNCHED,
    "distributed": LAUNCHED,
    "remove_difficult": WITHOUT_EFFECT,
    "position_embedding_scale": WITHOUT_EFFECT,
}
"""{name there: what is to be said}, of what is no value of a config."""


def here_it_is(name: str, value: str, cfg: Mapping | None = None) -> str | None:
    """How an option of the papers' code is said here; None for one that is none of theirs.

    Args:
        name: as there, without dashes in front.
        value: as text; empty where none is given.
        cfg: which model's options are meant; None where that is not known.
    """
    if name in IN_WORDS:
        return IN_WORDS[name]
    if name not in AS_OPTIONS:
        return None
    paths = [_existing(alternatives.split("|"), cfg) for alternatives in AS_OPTIONS[name]]
    if missing := [path for path in paths if not _has(cfg, path)]:
        return f"it is {' and '.join(missing)}, which this config does not have: choose one of a model that does"
    words = [path if "=" in path else f"{path}={value or 'VALUE'}" for path in paths]
    return f"it is --options {' '.join(_quoted(word) for word in words)}"


def _existing(alternatives: list[str], cfg: Mapping | None) -> str:
    """The first that a config has; the first of all where it has none."""
    return next((path for path in alternatives if _has(cfg, path)), alternatives[0])


def _has(cfg: Mapping | None, path: str) -> bool:
    """Whether a config has a value at a path. One that nobody knows may have all."""
    node = cfg
    for key in path.partition("=")[0].split(".") if cfg is not None else ():
        if not isinstance(node, Mapping) or key not in node:
            return False
        node = node[key]
    return True


def _quoted(word: str) -> str:
    """For a shell."""
    return f'"{word}"' if set(word) & set(" ()[]{}'") else word
