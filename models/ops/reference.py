"""Multi-scale deformable attention in plain PyTorch: the definition that every compiled backend is held against.

Runs on every device and dtype, differentiates, exports. Samples are computed in float32 at least.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = tuple[tuple[int, int], ...]


def ms_deform_attn(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples (Deformable DETR, equation 3). Shapes as in `models.ops.ms_deform_attn`."""
    N, _, M, D = value.shape
    Q = locations.shape[1]
    weights = weights.permute(0, 2, 1, 3, 4).flatten(0, 1).unsqueeze(1)  # (N*M, 1, Q, L, P)
    answer = value.new_zeros((N * M, D, Q), dtype=torch.promote_types(value.dtype, torch.float32))
    for level, sampled in enumerate(_samples(value, shapes, locations)):
        answer = answer + (sampled * weights[..., level, :]).sum(-1)
    return answer.view(N, M * D, Q).transpose(1, 2).to(value.dtype)


def key_aware_deform_attn(query: Tensor, key: Tensor, value: Tensor, shapes: Shapes, locations: Tensor) -> Tensor:
    """Samples weighed by their keys' answer to the query (Lite-DETR, equations 4 and 5)."""
    N, _, M, D = value.shape
    Q = locations.shape[1]
    values = torch.cat(list(_samples(value, shapes, locations)), -1)  # (N*M, D, Q, L*P)
    keys = values if key is value else torch.cat(list(_samples(key, shapes, locations)), -1)
    asked = query.permute(0, 2, 3, 1).reshape(N * M, D, Q, 1).to(keys.dtype)
    weights = ((asked * keys).sum(1, keepdim=True) / math.sqrt(D)).softmax(-1)
    return (values * weights).sum(-1).view(N, M * D, Q).transpose(1, 2).to(value.dtype)


def _samples(value: Tensor, shapes: Shapes, locations: Tensor) -> Iterator[Tensor]:
    """Per level (N*M, D, Q, P): bilinear samples, zero outside the map."""
    N, _, M, D = value.shape
    dtype = torch.promote_types(value.dtype, torch.float32)
    grids = (2 * locations.to(dtype) - 1).permute(0, 2, 1, 3, 4, 5).flatten(0, 1)  # (N*M, Q, L, P, 2)
    maps = value.to(dtype).permute(0, 2, 3, 1).reshape(N * M, D, -1)
    start = 0
    for level, (h, w) in enumerate(shapes):
        image = maps[:, :, start : start + h * w].reshape(N * M, D, h, w)
        yield F.grid_sample(image, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        start += h * w
