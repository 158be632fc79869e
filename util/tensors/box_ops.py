"""Arithmetic of boxes: (..., 4) as centre x, centre y, width, height, or as the corners x0, y0, x1, y1."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes given by centre and size."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Centre and size of boxes given by corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def covered_corners(boxes: Tensor) -> Tensor:
    """Corners of what boxes given by centre and size cover: one of negative width covers nothing, at its centre."""
    centre, half = boxes[..., :2], boxes[..., 2:].clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], -1)


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """IoU in [0, 1] of corner boxes (..., 4), with broadcasting; NaN for two boxes without area."""
    overlap, union = _overlap_and_union(a, b)
    return overlap / union


def generalized_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalized IoU (Rezatofighi et al., 2019, algorithm 1) of corner boxes, with broadcasting.

    Args:
        a, b: (..., 4) corners.
        eps: added to both denominators.

    Returns:
        (...) in [-1, 1].
    """
    overlap, union = _overlap_and_union(a, b)
    hull_low, hull_high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = _area((hull_high - hull_low).clamp(min=0))
    return overlap / (union + eps) - (hull - union) / (hull + eps)


def _overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas (...) of corner boxes' intersection and union."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = _area((high - low).clamp(min=0))
    return overlap, _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2]) - overlap


def _area(sides: Tensor) -> Tensor:
    """(..., 2) -> (...). Not `prod`, whose gradient makes the host wait for a GPU."""
    return sides[..., 0] * sides[..., 1]
