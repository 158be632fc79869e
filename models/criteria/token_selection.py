"""How well an encoder's chosen tokens foretell what the decoder looks at (Sparse DETR, section 3.3)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.criteria.hungarian_matcher import Targets
from models.registry import PARTS
from models.structures import DetectorOutput, Sampling, TokenSelection
from util.tensors.device import constant_tensor


@torch.no_grad()
def decoder_attention_map(samplings: list[Sampling], shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """How much all heads, queries and layers of a decoder look at each token, float32.

    The weight of a sample is shared among the four tokens around it. Tokens count as lying on whole numbers, without
    the half pixel by which the sampling itself differs; shares outside the map are lost.

    Args:
        samplings: one per decoder layer.
        shapes: ((H, W), ...) of the padded maps.

    Returns:
        (B, S).
    """
    told = [sampling.weights for sampling in samplings if sampling.weights is not None]
    if len(told) < len(samplings):
        raise ValueError("a decoder attention map needs attention weights, which key-aware attention does not tell")
    locations = torch.stack([sampling.locations for sampling in samplings], 1).float()  # (B, N, Q, M, L, P, 2)
    weights = torch.stack(told, 1).float()
    sizes = np.array(shapes)
    area = sizes.prod(1)
    geometry = constant_tensor(np.stack([*sizes.T, area.cumsum() - area]), weights.device)
    height, width, start = geometry[..., None]  # (L, 1) each
    position = locations * torch.stack([width, height], -1)
    corner = position.floor()
    fraction = position - corner
    total = weights.new_zeros(len(weights), sum(h * w for h, w in shapes))
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = corner[..., 0] + step[0], corner[..., 1] + step[1]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index = torch.where(inside, start + y.long() * width + x.long(), 0)
        along_x, along_y = (fraction[..., axis] if step[axis] else 1 - fraction[..., axis] for axis in (0, 1))
        share = along_x * along_y
        total.scatter_add_(1, index.flatten(1), torch.where(inside, weights * share, 0).flatten(1))
    return total


def attention_target(attention: Tensor, selection: TokenSelection) -> Tensor:
    """(B, S) decoder attention map -> (B, S), 1 for the tokens most looked at, as many as each image keeps."""
    attention = attention.masked_fill(selection.padding, attention.min() - 1)
    best = attention.topk(selection.chosen.shape[1], dim=1).indices
    return torch.zeros_like(attention).scatter(1, best, selection.kept.to(attention.dtype))


@PARTS.register
class TokenSelectionLoss:
    """Cross-entropy of the scores against what the decoder looks at most (Sparse DETR, section 3.3).

    The mean runs over all tokens, padding included. No gradient reaches the decoder.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """Scalar."""
        selection = output.aux["selection"]
        wanted = attention_target(decoder_attention_map(output.aux["samplings"], selection.shapes), selection)
        return F.binary_cross_entropy_with_logits(selection.scores.float(), wanted)


@PARTS.register
class TokenCorrelation:
    """The share of the decoder's attention that falls on the chosen tokens (Sparse DETR, section 4).

    Of all levels and of each; a level that the decoder does not look at counts as 0.
    """

    def __call__(self, output: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """Scalars by log name."""
        selection = output.aux["selection"]
        attention = decoder_attention_map(output.aux["samplings"], selection.shapes)
        seen = attention * torch.zeros_like(attention).scatter(1, selection.chosen, 1.0)
        sizes = [h * w for h, w in selection.shapes]
        parts = [("all", seen, attention)]
        parts += zip(range(len(sizes)), seen.split(sizes, 1), attention.split(sizes, 1), strict=True)
        tiny = torch.finfo(attention.dtype).tiny
        return {
            f"corr_mask_attn_map_dec_{name}": (part.sum(1) / whole.sum(1).clamp(min=tiny)).mean()
            for name, part, whole in parts
        }
