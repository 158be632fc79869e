"""What all makers of denoising queries do (DN-DETR, section 4.3; DINO, section 3.3)."""

import torch
from torch import Tensor

from models.structures import Queries, QueryGroup
from util.tensors.box_ops import cxcywh_to_xyxy


def with_denoising(queries: Queries, content: Tensor, reference: Tensor, groups: tuple[QueryGroup, ...]) -> Queries:
    """Queries with content (B, R, C), boxes (B, R, 4) and groups of noised ones before them.

    Raises:
        ValueError: the queries have no boxes.
    """
    if queries.reference is None:
        raise ValueError("denoising needs queries that start from boxes")
    return Queries(
        content=torch.cat([content, queries.content], 1),
        pos=queries.pos,
        reference=torch.cat([reference, queries.reference], 1),
        groups=groups + queries.groups,
    )


def noised_corners(boxes: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Moves every corner of boxes (..., 4) by a random share of half the box's size, negatives by the half once more.

    Args:
        boxes: as cx, cy, w, h.
        negative: (..., 1), 1 for negatives and 0 for positives.
        scale: of all moves.

    Returns:
        (..., 4) as x0, y0, x1, y1 in [0, 1]. Large moves put a corner beyond its opposite.
    """
    corners, half = cxcywh_to_xyxy(boxes), torch.cat([boxes[..., 2:], boxes[..., 2:]], -1) / 2
    sign = torch.randint_like(boxes, low=0, high=2) * 2 - 1
    amount = torch.rand_like(boxes) + negative
    return (corners + sign * amount * half * scale).clamp(0, 1)
