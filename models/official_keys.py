"""Checkpoints of the papers' own repositories: their key names in ours, one table of rules a family.

A rule is a regular expression at the head of a key and what replaces it; None drops the key, which is known to be a
second name of another one; several names are those of one module that stands in several places. Every key must match
exactly one rule.
"""

import re

from torch import Tensor

from util.config import ConfigError, nearest

# Second names of the modules that blocks share, in the repositories of CoaT and MPViT.
SHARED = (
    r"backbone\.(serial_blocks\d\.\d+\.|parallel_blocks\.\d+\.|mhca_stages\..*\.MHCA_layers\.\d+\.)"
    r"(cpe|crpe|mlp[34]|factoratt_crpe\d?\.crpe)\."
)
# CoaT and MPViT stand under "backbone", a Swin under "body" in Sparse DETR's repository and under nothing in DINO's.
BACKBONE = {
    rf"^backbone\.0\.(?!{SHARED})(body\.(?=patch_embed|layers\.|norm)|backbone\.)?": "backbone.",
    rf"^backbone\.0\.{SHARED}": None,
}

PYRAMID = {
    r"^input_proj\.": "neck.proj.",
    r"^transformer\.level_embed$": "neck.level_embed",
    r"^transformer\.(en|de)coder\.(layers|norm)\.": r"\1coder.\2.",
    r"^transformer\.decoder\.(class|bbox)_embed\.": None,
    r"^(class|bbox)_embed\.([0-5])\.": r"decoder.heads.\2.\1_embed.",
}

DEFORMABLE_DETR = {
    **BACKBONE,
    **PYRAMID,
    r"^(class|bbox)_embed\.6\.": r"queries.head.\1_embed.",
    r"^query_embed\.weight$": "queries.embed.weight",
    r"^transformer\.reference_points\.": "queries.reference_points.",
    r"^transformer\.(enc_output|enc_output_norm)\.": r"queries.features.\1.",
    r"^transformer\.(pos_trans|pos_trans_norm)\.": r"queries.init.\1.",
}

SPARSE_DETR = {
    **DEFORMABLE_DETR,
    r"^transformer\.encoder\.(class|bbox)_embed\.": None,
    **{rf"^(class|bbox)_embed\.{7 + i}\.": rf"encoder.heads.{i}.\1_embed." for i in range(5)},
    r"^transformer\.enc_mask_predictor\.": "encoder.scorer.",
    r"^transformer\.(enc_output|enc_output_norm)\.": (r"queries.features.\1.", r"encoder.features.\1."),
}

DINO = {
    **BACKBONE,
    **PYRAMID,
    r"^transformer\.decoder\.ref_point_head\.": "decoder.query_pos.mlp.",
    r"^transformer\.enc_out_(class|bbox)_embed\.": r"queries.base.head.\1_embed.",
    r"^transformer\.(enc_output|enc_output_norm)\.": r"queries.base.features.\1.",
    r"^transformer\.tgt_embed\.weight$": "queries.base.init.embed.weight",
    r"^label_enc\.weight$": "queries.label_embed.weight",
}

DETR = {
    **BACKBONE,
    r"^input_proj\.": "neck.proj.",
    r"^transformer\.encoder\.layers\.": "encoder.layers.",
    r"^transformer\.decoder\.(layers|norm)\.": r"decoder.\1.",
    r"^(class|bbox)_embed\.": r"decoder.head.\1_embed.",
    r"^query_embed\.weight$": "queries.embed.weight",
}

CONDITIONAL_DETR = {
    **DETR,
    r"^transformer\.decoder\.(ref_point_head|query_scale)\.": r"decoder.\1.",
}

PNP_DETR = {
    **DETR,
    r"^transformer\.encoder\.layers\.": "encoder.base.layers.",
    r"^transformer\.sampler\.": "encoder.",
}

H_DETR = {**DEFORMABLE_DETR, r"^query_embed\.weight$": "queries.init.embed_content.weight"}

FAMILIES = {
    "deformable_detr": DEFORMABLE_DETR,
    "dino": DINO,
    "lite_dino": DINO,
    "detr": DETR,
    "conditional_detr": CONDITIONAL_DETR,
    "pnp_detr": PNP_DETR,
    "efficient_detr": DEFORMABLE_DETR,
    "sparse_detr": SPARSE_DETR,
    "h_detr": H_DETR,
}

DERIVED = re.compile(r"(num_batches_tracked|relative_position_index|total_params|total_ops)$")
"""Entries that hold no weights: counters, tables that follow from the architecture, leftovers of FLOP counters."""


SCRL = {
    r"^encoder\.0\.": "conv1.",
    r"^encoder\.1\.": "bn1.",
    **{rf"^encoder\.{3 + stage}\.": f"layer{stage}." for stage in (1, 2, 3, 4)},
}
"""A ResNet as SCRL's checkpoints store it (Spatially Consistent Representation Learning), in torchvision's names."""


def convert_official(state_dict: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """A family's official state dict under our key names, complete for a strict load.

    Args:
        state_dict: as the paper's repository saves it, with or without the prefix "module." of its wrapper.
        family: a key of FAMILIES.

    Raises:
        ConfigError: there is no table for the family.
        KeyError: keys that this family does not have, listed together.
    """
    table, converted, unknown = _table(family), {}, []
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        if DERIVED.search(key):
            continue
        rules = [rule for rule in table.items() if re.match(rule[0], key)]
        if len(rules) != 1:
            unknown.append(key)
        elif rules[0][1] is not None:
            pattern, names = rules[0]
            for name in (names,) if isinstance(names, str) else names:
                converted[re.sub(pattern, name, key)] = value
    if unknown:
        more = f" and {len(unknown) - 12} more" if len(unknown) > 12 else ""
        raise KeyError(f"not keys of an official {family} checkpoint: {', '.join(unknown[:12])}{more}")
    return converted


def convert_scrl(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of an SCRL checkpoint's online network, under torchvision's key names; the rest is left out."""
    converted = {}
    for key, value in state_dict.items():
        if key.startswith("encoder."):
            rule = next((rule for rule in SCRL.items() if re.match(rule[0], key)), (r"^", ""))
            converted[re.sub(*rule, key)] = value
    return converted


def _table(family: str) -> dict[str, str | tuple[str, ...] | None]:
    if family not in FAMILIES:
        raise ConfigError(f"official_keys = '{family}': there is no such key table; {nearest(family, FAMILIES)}")
    return FAMILIES[family]
