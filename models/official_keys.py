"""Checkpoints of the papers' repositories and of transformers: their key names in ours, one table of rules a family.

A rule is a regular expression at the head of a key and what replaces it; None drops the key, which is known to be a
second name of another one; several names are those of one module that stands in several places, of which the first is
the key's own and the others hold unless another key says otherwise. Names that end in #0, #1, ... are pieces of one
tensor. Every key must match exactly one rule.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from util.config import ConfigError, nearest_name

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

# What follows from the architecture, in files of some versions.
REAL_TIME_CONSTANTS = {
    r"^decoder\.(anchors|valid_mask)$": None,
    r"^decoder\.decoder\.layers\.\d+\.cross_attn\.num_points_scale$": None,
}

# These two backbones bear their authors' names.
RT_DETR_BACKBONE = {r"^backbone\.(?=(conv1|res_layers)\.)": "backbone."}
D_FINE_BACKBONE = {r"^backbone\.(?=(stem|stages)\.)": "backbone."}

REAL_TIME = {
    **REAL_TIME_CONSTANTS,
    r"^encoder\.input_proj\.(\d)\.(0|conv)\.": r"neck.proj.\1.conv.",
    r"^encoder\.input_proj\.(\d)\.(1|norm)\.": r"neck.proj.\1.norm.",
    r"^encoder\.encoder\.0\.layers\.": "encoder.layers.",
    r"^encoder\.(lateral_convs|fpn_blocks|pan_blocks)\.": r"encoder.\1.",
    r"^decoder\.input_proj\.": "encoder.output_proj.",
    r"^decoder\.enc_output\.(0|proj)\.": "queries.base.features.enc_output.",
    r"^decoder\.enc_output\.(1|norm)\.": "queries.base.features.enc_output_norm.",
    r"^decoder\.enc_score_head\.": "queries.base.head.class_embed.",
    r"^decoder\.enc_bbox_head\.": "queries.base.head.bbox_embed.",
    r"^decoder\.denoising_class_embed\.": "queries.label_embed.",
    r"^decoder\.query_pos_head\.": "decoder.query_pos.mlp.",
    r"^decoder\.dec_score_head\.(\d)\.": r"decoder.heads.\1.class_embed.",
    r"^decoder\.dec_bbox_head\.(\d)\.": r"decoder.heads.\1.bbox_embed.",
    r"^decoder\.decoder\.layers\.(\d)\.(?!norm[12]\.|cross_attn\.num_points_scale$)": r"decoder.layers.\1.",
}

# Of both versions, whose names differ in two places.
RT_DETR = {
    **RT_DETR_BACKBONE,
    **REAL_TIME,
    r"^encoder\.downsample_convs\.": "encoder.downsample_convs.",
    r"^decoder\.decoder\.layers\.(\d)\.norm1\.": r"decoder.layers.\1.norm2.",  # ours are named as in DETR's line
    r"^decoder\.decoder\.layers\.(\d)\.norm2\.": r"decoder.layers.\1.norm1.",
}

D_FINE = {
    **D_FINE_BACKBONE,
    **REAL_TIME,
    r"^decoder\.(decoder\.)?(up|reg_scale)$": None,  # in our configs
    r"^encoder\.downsample_convs\.(\d)\.0\.": r"encoder.downsample_convs.\1.",
    r"^decoder\.decoder\.layers\.(\d)\.norm1\.": r"decoder.layers.\1.norm1.",
    r"^decoder\.decoder\.lqe_layers\.(\d)\.reg_conf\.": r"decoder.heads.\1.quality.",
    r"^decoder\.pre_bbox_head\.": "decoder.initial_head.",
}

# ----------------------------------------------------------------------------------------------------- transformers
# As its files on the hub are named, by releases before 5 and by save_pretrained since. A backbone is timm's ResNet,
# named as torchvision's, or transformers' own, which counts stages and convolutions from 0. Positions must be sines.

BODY = r"^model\.backbone\.conv_encoder\.model\."

HUGGINGFACE = {
    rf"{BODY}(?=(conv1|bn1|layer\d)\.)": "backbone.body.",
    rf"{BODY}embedder\.embedder\.convolution\.": "backbone.body.conv1.",
    rf"{BODY}embedder\.embedder\.normalization\.": "backbone.body.bn1.",
    **{
        rf"{BODY}encoder\.stages\.{stage}\.layers\.(\d+)\.{theirs}\.": rf"backbone.body.layer{stage + 1}.\1.{ours}."
        for stage in range(4)
        for theirs, ours in (
            *((rf"layer\.{i}\.convolution", f"conv{i + 1}") for i in range(3)),
            *((rf"layer\.{i}\.normalization", f"bn{i + 1}") for i in range(3)),
            (r"shortcut\.convolution", "downsample.0"),
            (r"shortcut\.normalization", "downsample.1"),
        )
    },
    r"^model\.(en|de)coder\.layers\.(\d+)\.fc([12])\.": r"\1coder.layers.\2.linear\3.",
    r"^model\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.": r"encoder.layers.\1.norm1.",
    r"^model\.encoder\.layers\.(\d+)\.final_layer_norm\.": r"encoder.layers.\1.norm2.",
    r"^model\.decoder\.layers\.(\d+)\.final_layer_norm\.": r"decoder.layers.\1.norm3.",
    r"^model\.query_position_embeddings\.": "queries.embed.",
}


def _projections(theirs: str, ours: str) -> dict[str, str]:
    """Rules of one attention: the projections of query, key and value are one matrix in PyTorch's, the last is not."""
    pieces = {
        rf"^model\.{theirs}\.{part}_proj\.(weight|bias)$": rf"{ours}.in_proj_\2#{i}" for i, part in enumerate("qkv")
    }
    return {**pieces, rf"^model\.{theirs}\.(?:out|o)_proj\.": f"{ours}.out_proj."}


HUGGINGFACE_DENSE = {
    **HUGGINGFACE,
    **_projections(r"encoder\.layers\.(\d+)\.self_attn", r"encoder.layers.\1.self_attn"),
    r"^model\.decoder\.layers\.(\d+)\.self_attn_layer_norm\.": r"decoder.layers.\1.norm1.",
    r"^model\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.": r"decoder.layers.\1.norm2.",
    r"^model\.decoder\.layernorm\.": "decoder.norm.",
    r"^model\.input_projection\.": "neck.proj.",
    r"^class_labels_classifier\.": "decoder.head.class_embed.",
    r"^bbox_predictor\.": "decoder.head.bbox_embed.",
}

HUGGINGFACE_DETR = {
    **HUGGINGFACE_DENSE,
    **_projections(r"decoder\.layers\.(\d+)\.self_attn", r"decoder.layers.\1.self_attn"),
    **_projections(r"decoder\.layers\.(\d+)\.encoder_attn", r"decoder.layers.\1.multihead_attn"),
}

HUGGINGFACE_CONDITIONAL_DETR = {
    **HUGGINGFACE_DENSE,
    r"^model\.decoder\.layers\.(\d+)\.((sa|ca)_\w+_proj)\.": r"decoder.layers.\1.\2.",
    r"^model\.decoder\.layers\.(\d+)\.self_attn\.out_proj\.": r"decoder.layers.\1.self_attn.out_proj.",
    r"^model\.decoder\.layers\.(\d+)\.encoder_attn\.out_proj\.": r"decoder.layers.\1.cross_attn.out_proj.",
    r"^model\.decoder\.(ref_point_head|query_scale)\.": r"decoder.\1.",
}

# A file may leave out what equals the first head, and store heads under one of two names or under both.
HUGGINGFACE_DEFORMABLE_DETR = {
    **HUGGINGFACE,
    r"^model\.input_proj\.": "neck.proj.",
    r"^model\.level_embed$": "neck.level_embed",
    r"^model\.encoder\.layers\.(\d+)\.self_attn\.": r"encoder.layers.\1.self_attn.",
    **_projections(r"decoder\.layers\.(\d+)\.self_attn", r"decoder.layers.\1.self_attn"),
    r"^model\.decoder\.layers\.(\d+)\.encoder_attn\.": r"decoder.layers.\1.cross_attn.",
    r"^model\.decoder\.layers\.(\d+)\.self_attn_layer_norm\.": r"decoder.layers.\1.norm2.",
    r"^model\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.": r"decoder.layers.\1.norm1.",
    r"^model\.reference_points\.": "queries.reference_points.",
    r"^model\.(enc_output|enc_output_norm)\.": r"queries.features.\1.",
    r"^model\.(pos_trans|pos_trans_norm)\.": r"queries.init.\1.",
    r"^(model\.decoder\.)?(class|bbox)_embed\.0\.": tuple(rf"decoder.heads.{i}.\2_embed." for i in range(6)),
    r"^(model\.decoder\.)?(class|bbox)_embed\.([1-5])\.": r"decoder.heads.\3.\2_embed.",
    r"^(model\.decoder\.)?(class|bbox)_embed\.6\.": r"queries.head.\2_embed.",
}

REAL_TIME_BODY = r"^model\.backbone\.model\."

HUGGINGFACE_RT_DETR_BACKBONE = {
    rf"{REAL_TIME_BODY}{theirs}\.{part}\.": rf"backbone.{ours}.{name}."
    for part, name in (("convolution", "conv"), ("normalization", "norm"))
    for theirs, ours in (
        *((rf"embedder\.embedder\.{i}", f"conv1.conv1_{i + 1}") for i in range(3)),
        *(
            (rf"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.{i}", rf"res_layers.\1.blocks.\2.branch2{'abc'[i]}")
            for i in range(3)
        ),
        (r"encoder\.stages\.0\.layers\.(\d+)\.shortcut", r"res_layers.0.blocks.\1.short"),
        (r"encoder\.stages\.([1-3])\.layers\.(\d+)\.shortcut\.1", r"res_layers.\1.blocks.\2.short.conv"),
    )
}

HUGGINGFACE_D_FINE_BACKBONE = {
    rf"{REAL_TIME_BODY}{theirs}\.{part}\.": rf"backbone.{ours}.{name}."
    for part, name in (("convolution", "conv"), ("normalization", "bn"), ("lab", "lab"))
    for theirs, ours in ((r"embedder\.(stem\w+)", r"stem.\1"), (r"encoder\.(stages\.[\w.]+)", r"\1"))
}

# Releases since 5 rename the layers of the encoder and of feed-forward networks while they load.
HUGGINGFACE_REAL_TIME = {
    r"^model\.encoder_input_proj\.(\d)\.0\.": r"neck.proj.\1.conv.",
    r"^model\.encoder_input_proj\.(\d)\.1\.": r"neck.proj.\1.norm.",
    **_projections(r"encoder\.(?:encoder|aifi)\.0\.layers\.(\d)\.self_attn", r"encoder.layers.\1.self_attn"),
    r"^model\.encoder\.(?:encoder|aifi)\.0\.layers\.(\d)\.self_attn_layer_norm\.": r"encoder.layers.\1.norm1.",
    r"^model\.encoder\.(?:encoder|aifi)\.0\.layers\.(\d)\.final_layer_norm\.": r"encoder.layers.\1.norm2.",
    **{
        rf"^model\.{theirs}layers\.(\d)\.(fc{i}|mlp\.fc{i}|mlp\.layers\.{i - 1})\.": rf"{ours}.layers.\1.linear{i}."
        for theirs, ours in ((r"encoder\.(?:encoder|aifi)\.0\.", "encoder"), (r"decoder\.", "decoder"))
        for i in (1, 2)
    },
    r"^model\.encoder\.lateral_convs\.": "encoder.lateral_convs.",
    r"^model\.decoder_input_proj\.(\d)\.0\.": r"encoder.output_proj.\1.conv.",
    r"^model\.decoder_input_proj\.(\d)\.1\.": r"encoder.output_proj.\1.norm.",
    r"^model\.enc_output\.0\.": "queries.base.features.enc_output.",
    r"^model\.enc_output\.1\.": "queries.base.features.enc_output_norm.",
    r"^model\.enc_score_head\.": "queries.base.head.class_embed.",
    r"^model\.enc_bbox_head\.": "queries.base.head.bbox_embed.",
    r"^model\.denoising_class_embed\.": "queries.label_embed.",
    **_projections(r"decoder\.layers\.(\d)\.self_attn", r"decoder.layers.\1.self_attn"),
    r"^model\.decoder\.layers\.(\d)\.encoder_attn\.(?!n(um)?_points_scale$)": r"decoder.layers.\1.cross_attn.",
    r"^model\.decoder\.layers\.(\d)\.encoder_attn\.n(um)?_points_scale$": None,
    r"^model\.decoder\.layers\.(\d)\.final_layer_norm\.": r"decoder.layers.\1.norm3.",
    r"^model\.decoder\.query_pos_head\.": "decoder.query_pos.mlp.",
    r"^(model\.decoder\.)?(class|bbox)_embed\.(\d)\.": r"decoder.heads.\3.\2_embed.",
}

HUGGINGFACE_RT_DETR = {
    **HUGGINGFACE_RT_DETR_BACKBONE,
    **HUGGINGFACE_REAL_TIME,
    r"^model\.encoder\.(downsample_convs|fpn_blocks|pan_blocks)\.": r"encoder.\1.",
    r"^model\.decoder\.layers\.(\d)\.self_attn_layer_norm\.": r"decoder.layers.\1.norm2.",
    r"^model\.decoder\.layers\.(\d)\.encoder_attn_layer_norm\.": r"decoder.layers.\1.norm1.",
}

HUGGINGFACE_D_FINE = {
    **HUGGINGFACE_D_FINE_BACKBONE,
    **HUGGINGFACE_REAL_TIME,
    r"^model\.encoder\.downsample_convs\.(\d)\.conv([12])\.": r"encoder.downsample_convs.\1.cv\2.",
    **{
        rf"^model\.encoder\.(fpn|pan)_blocks\.(\d)\.{theirs}\.": rf"encoder.\1_blocks.\2.{ours}."
        for theirs, ours in (
            ("conv1", "cv1"),
            ("csp_rep1", "cv2.0"),
            ("conv2", "cv2.1"),
            ("csp_rep2", "cv3.0"),
            ("conv3", "cv3.1"),
            ("conv4", "cv4"),
        )
    },
    r"^model\.decoder\.(up|reg_scale)$": None,
    r"^model\.decoder\.layers\.(\d)\.self_attn_layer_norm\.": r"decoder.layers.\1.norm1.",
    r"^model\.decoder\.layers\.(\d)\.gateway\.": r"decoder.layers.\1.gateway.",
    r"^model\.decoder\.pre_bbox_head\.": "decoder.initial_head.",
    r"^model\.decoder\.lqe_layers\.(\d)\.reg_conf\.": r"decoder.heads.\1.quality.",
}

FAMILIES: dict[str, Mapping[str, str | Sequence[str] | None]] = {
    "huggingface_detr": HUGGINGFACE_DETR,
    "huggingface_conditional_detr": HUGGINGFACE_CONDITIONAL_DETR,
    "huggingface_deformable_detr": HUGGINGFACE_DEFORMABLE_DETR,
    "huggingface_rt_detr": HUGGINGFACE_RT_DETR,
    "huggingface_d_fine": HUGGINGFACE_D_FINE,
    "deformable_detr": DEFORMABLE_DETR,
    "dino": DINO,
    "lite_dino": DINO,
    "detr": DETR,
    "conditional_detr": CONDITIONAL_DETR,
    "pnp_detr": PNP_DETR,
    "efficient_detr": DEFORMABLE_DETR,
    "sparse_detr": SPARSE_DETR,
    "h_detr": H_DETR,
    "rt_detr": RT_DETR,
    "d_fine": D_FINE,
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
        state_dict: as the paper's repository or transformers saves it, with or without the prefix "module." of a
            wrapper.
        family: a key of FAMILIES.

    Raises:
        ConfigError: there is no table for the family.
        KeyError: keys that this family does not have, listed together.
    """
    table, converted, second, unknown = _table(family), {}, {}, []
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        if DERIVED.search(key):
            continue
        rules = [rule for rule in table.items() if re.match(rule[0], key)]
        if len(rules) != 1:
            unknown.append(key)
            continue
        pattern, names = rules[0]
        if names is not None:
            first, *others = (names,) if isinstance(names, str) else names
            converted[re.sub(pattern, first, key)] = value
            second |= {re.sub(pattern, name, key): value for name in others}
    if unknown:
        more = f" and {len(unknown) - 12} more" if len(unknown) > 12 else ""
        raise KeyError(f"not keys of an official {family} checkpoint: {', '.join(unknown[:12])}{more}")
    return _joined({**second, **converted})


def huggingface_family(keys: Iterable[str]) -> str | None:
    """The family whose table fits the keys of a file of transformers; None for keys of anybody else.

    A model that has no table here is taken for a DETR, and `convert_official` names the keys that are foreign to it.
    """
    keys = set(keys)
    if not any(re.match(r"model\.backbone\.(conv_encoder|model)\.", key) for key in keys):
        return None
    if "model.level_embed" in keys:
        return "huggingface_deformable_detr"
    if any(key.startswith("model.encoder_input_proj.") for key in keys):
        gated = any(re.match(r"model\.decoder\.layers\.\d\.gateway\.", key) for key in keys)
        return "huggingface_d_fine" if gated else "huggingface_rt_detr"
    conditional = any(key.startswith("model.decoder.query_scale.") for key in keys)
    return "huggingface_conditional_detr" if conditional else "huggingface_detr"


def families_with(keys: Iterable[str]) -> list[str]:
    """The families whose tables know all of these keys; official names of several families are alike."""
    keys = [key for key in keys if not DERIVED.search(key)]
    return [
        family for family, table in FAMILIES.items() if all(any(re.match(rule, key) for rule in table) for key in keys)
    ]


def _joined(converted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pieces NAME#0, NAME#1, ... become NAME, one below the other; a tensor without pieces stays."""
    whole, pieces = {}, {}
    for name, value in sorted(converted.items()):
        stem, is_piece, _ = name.partition("#")
        if is_piece:
            pieces.setdefault(stem, []).append(value)
        else:
            whole[name] = value
    return whole | {name: torch.cat(values) for name, values in pieces.items()}


def convert_scrl(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of an SCRL checkpoint's online network, under torchvision's key names; the rest is skipped."""
    converted = {}
    for key, value in state_dict.items():
        if key.startswith("encoder."):
            rule = next((rule for rule in SCRL.items() if re.match(rule[0], key)), (r"^", ""))
            converted[re.sub(*rule, key)] = value
    return converted


def _table(family: str) -> Mapping[str, str | Sequence[str] | None]:
    if family not in FAMILIES:
        raise ConfigError(f"official_keys = '{family}': there is no such key table; {nearest_name(family, FAMILIES)}")
    return FAMILIES[family]
