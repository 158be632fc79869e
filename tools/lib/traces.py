"""What detectors look at, recorded by hooks on their parts while they answer; the parts know nothing of it.

Recordings are of one image: the functions take a detector in eval mode and one normalised (3, h, w) tensor.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.encoders.deformable import DeformableEncoder
from models.encoders.interleaved import InterleavedEncoder
from models.layers.attention import ProjectedAttention
from models.layers.deformable_attention import BareDeformAttn, DeformableAttention, KeyAwareDeformAttn
from models.structures import DetectorOutput, Pyramid

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LayerSampling:
    """Where one deformable attention looked.

    Attributes:
        reference: (Q, 2), the centres of what the queries stand for, relative to the image.
        locations: (Q, heads, L, points, 2), x and y relative to the image.
        weights: (Q, heads, L, points); of each query and head they add up to 1. Where a level has fewer points than
            another, those that it is filled up with weigh nothing.
    """

    reference: Tensor
    locations: Tensor
    weights: Tensor


@dataclass
class Trace:
    """What was recorded of one image. The keys of the dicts are names of modules, in the order of their calls.

    Attributes:
        output: what the detector answered.
        shapes: ((H, W), ...) of the maps.
        samplings: of every deformable attention.
        attentions: (heads, Q, S), of every dense attention from queries to tokens.
        asking: how many tokens each layer of the encoder updated, by level, where it takes whole levels.
    """

    output: DetectorOutput | None = None
    shapes: Shapes = ()
    samplings: dict[str, LayerSampling] = field(default_factory=dict)
    attentions: dict[str, Tensor] = field(default_factory=dict)
    asking: dict[str, list[int]] = field(default_factory=dict)


@torch.no_grad()
def trace_detector(detector: nn.Module, image: Tensor) -> Trace:
    """Lets a detector answer and records all that it looks at."""
    found = Trace()
    with _hooks(detector, found):
        found.output = detector([image])
    return found


@contextlib.contextmanager
def _hooks(detector: nn.Module, found: Trace) -> Iterator[None]:
    """Attaches the recorders, and takes them off again whatever happens."""
    handles = [detector.neck.register_forward_hook(lambda *call: setattr(found, "shapes", call[-1].shapes))]
    whole_levels = isinstance(detector.encoder, DeformableEncoder | InterleavedEncoder)
    for name, module in detector.named_modules():
        if isinstance(module, DeformableAttention | BareDeformAttn):
            handles.append(module.register_forward_hook(_record_sampling(name, found)))
        elif name.startswith("decoder") and name.endswith("multihead_attn"):
            handles.append(module.register_forward_pre_hook(_ask_for_weights, with_kwargs=True))
            handles.append(module.register_forward_hook(_record_weights(name, found)))
        elif isinstance(module, ProjectedAttention) and name.endswith("cross_attn"):
            handles.append(module.register_forward_hook(_record_projected(name, found)))
        elif whole_levels and name.startswith("encoder.layers.") and name.count(".") == 2:
            handles.append(module.register_forward_hook(_record_asking(name, found)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record_sampling(name: str, found: Trace):
    def hook(module: DeformableAttention | BareDeformAttn, inputs: tuple, result: tuple):
        query, reference, memory = inputs
        sampling = result[1]
        weights = sampling.weights
        if isinstance(module, KeyAwareDeformAttn):
            weights = key_aware_weights(module, query, memory, sampling.locations)
        found.samplings[name] = LayerSampling(reference[0, :, 0, :2], sampling.locations[0], weights[0])

    return hook


def _record_asking(name: str, found: Trace):
    def hook(module: nn.Module, inputs: tuple, result: Tensor):
        tokens, _, _, memory = inputs
        shapes, asking = memory.shapes, tokens.shape[1]
        counts, left = [], asking
        for height, width in reversed(shapes):  # the tokens that ask are the coarsest ones
            counts.append(min(left, height * width))
            left -= counts[-1]
        found.asking[name] = counts[::-1]

    return hook


def _ask_for_weights(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, {**kwargs, "need_weights": True, "average_attn_weights": False}


def _record_weights(name: str, found: Trace):
    return lambda module, inputs, result: found.attentions.update({name: result[1][0]})


def _record_projected(name: str, found: Trace):
    def hook(module: ProjectedAttention, inputs: tuple, result: Tensor):
        query, key, _, blocked = inputs
        logits = query[0] @ key[0].transpose(-1, -2) / math.sqrt(query.shape[-1])
        found.attentions[name] = logits.masked_fill(blocked[0], -torch.inf).softmax(-1)

    return hook


def key_aware_weights(module: KeyAwareDeformAttn, query: Tensor, memory: Pyramid, locations: Tensor) -> Tensor:
    """(B, Q, heads, L, points): the weights that the operator keeps to itself (Lite-DETR, equation 5)."""
    keys = module.values(memory).permute(0, 2, 3, 1)  # (B, heads, c, S)
    asked = module.query_proj(query).unflatten(-1, (module.num_heads, -1)).permute(0, 2, 3, 1)  # (B, heads, c, Q)
    grids = 2 * locations.float().transpose(1, 2) - 1  # (B, heads, Q, L, points, 2)
    logits = []
    for level, tokens in enumerate(keys.split([h * w for h, w in memory.shapes], -1)):
        maps = tokens.unflatten(-1, memory.shapes[level]).flatten(0, 1)
        sampled = F.grid_sample(maps, grids[:, :, :, level].flatten(0, 1), padding_mode="zeros", align_corners=False)
        logits.append((sampled.unflatten(0, keys.shape[:2]) * asked[..., None]).sum(2))  # (B, heads, Q, points)
    weights = (torch.cat(logits, -1) / math.sqrt(keys.shape[2])).softmax(-1)
    return weights.unflatten(-1, locations.shape[3:5]).transpose(1, 2)
