"""Configs with all widths shrunk, so that any model computes in seconds on a CPU."""

from collections.abc import Mapping

from util.config import load_config

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
)
"""A config of every family."""
SMALL = {
    "d_model": 32,
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
