"""Configs with all widths shrunk, so that any model computes in seconds on a CPU."""

from collections.abc import Mapping
from pathlib import Path

from util.config import load_config

ROOT = Path(__file__).parents[1]

FAMILIES = (
    "detr/detr_r50",
    "conditional_detr/conditional_detr_r50",
    "pnp_detr/pnp_detr_r50_ratio033",
    "deformable_detr/deformable_detr_r50",
    "deformable_detr/deformable_detr_r50_two_stage",
    "efficient_detr/efficient_detr_r50",
    "sparse_detr/sparse_detr_r50_rho_0.1",
    "DINO/dino_4scale_r50",
    "lite_detr/lite_dino_r50_h3l1_2p1x3_kda",
    "h_detr/h_deformable_detr_r50",
    "rt_detr/rtdetr_r18vd",
    "d_fine/dfine_hgnetv2_s",
)
"""A config of every family."""
SMALL = {
    "d_model": 32,
    "width": 32,
    "ffn_dim": 32,
    "low_ffn_dim": 32,
    "num_queries": 12,
    "num_one2many": 12,
    "dn_number": 2,
    "pretrained": None,
    "score_threshold": 0.0,  # an untrained model is sure of nothing
}


def shrunk(path, **options):
    """A config with every width that SMALL names replaced, wherever it stands."""
    found = {}

    def walk(node, prefix):
        for key, value in node.items():
            if key in SMALL:
                found[prefix + key] = SMALL[key]
            elif isinstance(value, Mapping):
                walk(value, f"{prefix}{key}.")

    walk(load_config(path).model, "model.")
    return load_config(path, found | options)


def write_tiny_config(folder, epochs):
    """A config file whose model is as small as can be, for trainings through main.py; returns its path."""
    path = folder / "tiny.py"
    path.write_text(
        f"""_base_ = {str(ROOT / "config/small/lite_dino_r18_shapes.py")!r}
model = dict(
    d_model=32, num_heads=4, backbone=dict(stages=(2, 3)), num_levels=2,
    encoder=dict(high_levels=1, layer=dict(ffn_dim=32), last_layer=dict(ffn_dim=32, low_ffn_dim=32)),
    queries=dict(dn_number=2, base=dict(num_queries=20)), decoder=dict(num_layers=2, layer=dict(ffn_dim=32)))
data = dict(
    batch_size=4, eval_batch_size=1, augment=dict(scales=(64,), max_size=96), resize=dict(scale=64, max_size=96))
schedule = dict(epochs={epochs}, kind='step', drop=(1,))
training = dict(eval_every=1, save_every=1)
"""
    )
    return path
