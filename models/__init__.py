"""Detectors and their criteria, built from a config.

Importing the parts is what makes them known by name: a new part needs its line here.
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import nn

import models.backbones.coat
import models.backbones.hgnetv2
import models.backbones.mpvit
import models.backbones.resnet
import models.backbones.resnet_vd
import models.backbones.swin
import models.backbones.timm
import models.criteria.distributions
import models.criteria.terms
import models.criteria.token_selection
import models.decoders.conditional
import models.decoders.deformable
import models.decoders.dense
import models.decoders.distribution
import models.encoders.deformable
import models.encoders.dense
import models.encoders.hybrid
import models.encoders.interleaved
import models.encoders.poll_and_pool
import models.encoders.sparse
import models.faster_rcnn
import models.layers.deformable_attention
import models.layers.dense
import models.layers.fusion
import models.layers.head
import models.layers.position
import models.layers.transformer
import models.neck
import models.postprocess
import models.queries.contrastive_denoising
import models.queries.learned
import models.queries.padded_denoising
import models.queries.proposals
from models.criteria.criterion import Criterion, Supervision
from models.detector import Detector
from models.layers.basic import Recomputable
from models.layers.head import DetectionHead
from models.layers.scoring import ProposalFeatures
from models.ops.library import OPERATIONS
from models.registry import PARTS
from util.config import ConfigDict, ConfigError, find_value, nearest_name, node_location
from util.config.registry import call_with_config
from util.measuring.flops import EVERYTHING

__all__ = ["build_criterion", "build_detector", "build_postprocessor"]

EVERYTHING.update(OPERATIONS)
STAGES = ("backbone", "neck", "encoder", "queries", "decoder")
CRITERION = ("matcher", "losses", "supervise", "terms", "metrics", "joint", "union")


def build_detector(cfg: ConfigDict) -> nn.Module:
    """The detector that `cfg.model` describes, on the CPU, freshly initialised. Reads no file and no network.

    What `model` holds beside the five stages (d_model, num_levels, num_classes, the kind of attention, ...) is handed
    down to every part that has a parameter of that name and is not told otherwise.

    `cfg.checkpointing` names stages whose layers keep their inputs alone while training, and compute the rest anew for
    their gradients: the numbers are the same, memory is less, a step takes longer.

    Raises:
        ConfigError: names the file, the part and the option that is wrong.
    """
    node = cfg.model
    if not isinstance(node, Mapping):
        raise ConfigError(f"{node_location(cfg)}: model: expected a dict with the parts of a detector, found {node!r}")
    whole = "type" in node  # a model that the five stages do not describe
    detector = PARTS.build(node) if whole else _of_five_stages(node)
    chosen = cfg.get("checkpointing", ())
    for stage in (chosen,) if isinstance(chosen, str) else chosen:
        layers = [
            layer for layer in getattr(detector, stage, nn.Identity()).modules() if isinstance(layer, Recomputable)
        ]
        if not layers:
            raise ConfigError(
                f"{node_location(cfg, 'checkpointing')}: '{stage}' has no layers that can be computed anew"
            )
        for layer in layers:
            layer.recompute = True
    # Convolutions are faster so, and their maps become tokens without a copy.
    return detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # by the hints of PyTorch 2.6


def _of_five_stages(node: ConfigDict) -> Detector:
    queries = find_value(node, "num_queries")
    if type(queries) is int and queries < 1:
        raise ConfigError(f"{node_location(node)}: num_queries={queries} must be 1 or more")
    taken = PARTS.options()
    # One object for all who ask: Sparse DETR scores its encoder's input and its memory with the same projection.
    shared = {"features": cache(lambda: ProposalFeatures(node.d_model))}
    for key, value in node.items():
        if key in STAGES:
            continue
        if key not in taken:
            raise ConfigError(
                f"{node_location(node)}: no part has an option '{key}'; {nearest_name(key, (*STAGES, *taken))}"
            )
        if type(value) is int and value < 1:
            raise ConfigError(f"{node_location(node)}: {key}={value} must be 1 or more")
        typed = isinstance(value, Mapping) and "type" in value
        shared[key] = _shared_factory(value, shared) if typed else value
    backbone = PARTS.build(node.backbone, **shared)
    neck = PARTS.build(node.neck, in_channels=backbone.channels, **shared)
    detector = Detector(backbone, neck, *(PARTS.build(node[stage], **shared) for stage in STAGES[2:]))
    heads = [module for module in detector.modules() if isinstance(module, DetectionHead)]
    for head in heads[1:]:
        head.start_like(heads[0])  # in the papers' code all heads are copies of one
    return detector


def _shared_factory(node: Mapping, shared: dict):
    """Builds a shared part with whatever is shared at the time of the call."""
    return lambda **more: PARTS.build(node, **{**shared, **more})


def build_criterion(cfg: ConfigDict) -> nn.Module:
    """The criterion that `cfg.criterion` describes. A loss that is None there is left out, as one of a base file."""
    node = cfg.criterion
    if "type" in node:
        return PARTS.build(node)
    for key in node:
        if key not in CRITERION:
            raise ConfigError(f"{node_location(node)}: no option '{key}'; {nearest_name(key, CRITERION)}")
        if not isinstance(node[key], Mapping):
            raise ConfigError(f"{node_location(node)}: {key}: expected a dict, found {node[key]!r}")
    return Criterion(
        matcher=PARTS.build(node.matcher),
        losses={name: PARTS.build(loss) for name, loss in node.losses.items() if loss is not None},
        supervise={
            site: call_with_config(Supervision, rule, where=node_location(rule))
            for site, rule in node.supervise.items()
        },
        terms={name: PARTS.build(term) for name, term in node.get("terms", {}).items()},
        metrics={name: PARTS.build(metric) for name, metric in node.get("metrics", {}).items()},
        joint={name: PARTS.build(loss) for name, loss in node.get("joint", {}).items()},
        union=PARTS.build(node.union) if "union" in node else None,
    )


def build_postprocessor(cfg: ConfigDict) -> Callable:
    """(output, sizes) -> results: what turns outputs into boxes in pixels, as `cfg.postprocess` says."""
    return PARTS.build(cfg.postprocess)
