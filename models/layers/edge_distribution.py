"""Boxes as distributions of where their edges lie (D-FINE, sections 4.1 and 4.2)."""

import torch
from torch import Tensor

from util.tensors.cache import cached
from util.tensors.device import constant_tensor


@cached
def bin_values(bins: int, scale: float, reach: float, device) -> Tensor:
    """(bins,): what each bin of a distribution stands for, W(n) of D-FINE's equation 4.

    Steps grow from the middle, where an edge stays, to a = reach * scale beside the ends; the ends are 2a.

    Args:
        bins: how many, an odd number.
        scale, reach: reg_scale and up of D-FINE's code.
    """
    a, middle = reach * scale, bins // 2
    step = (a + 1) ** (2 / (bins - 3))
    right = [step**n - 1 for n in range(1, middle)]
    values = [-2 * a, *(-value for value in reversed(right)), 0.0, *right, 2 * a]
    return constant_tensor(values, device, torch.float32)


def expected_distances(edges: Tensor, scale: float, reach: float) -> Tensor:
    """(..., 4, bins) logits -> (..., 4): the mean of each edge's distribution."""
    return edges.float().softmax(-1) @ bin_values(edges.shape[-1], scale, reach, edges.device)


def moved_edges(initial: Tensor, distances: Tensor, scale: float) -> Tensor:
    """Boxes (..., 4) as cx, cy, w, h, of initial ones and the distances (..., 4) of left, top, right and bottom edge.

    A distance is in units of the box's own side divided by `scale`, and outward (D-FINE, equation 2). What comes out
    may leave the image.
    """
    center, size = initial.split(2, -1)
    low, high = distances.split(2, -1)
    corner = center - (scale / 2 + low) * size / scale
    opposite = center + (scale / 2 + high) * size / scale
    return torch.cat([(corner + opposite) / 2, opposite - corner], -1)


def distances_to(initial: Tensor, corners: Tensor, scale: float) -> Tensor:
    """(..., 4): how far the edges of initial boxes (..., 4) as cx, cy, w, h lie from those of `corners`, (..., 4) as
    x0, y0, x1, y1; the inverse of `moved_edges`.
    """
    center, size = initial.split(2, -1)
    unit = size / scale + 1e-16
    low, high = corners.split(2, -1)
    return torch.cat([(center - low) / unit, (high - center) / unit], -1) - scale / 2
