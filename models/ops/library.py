"""The two attentions as operators of PyTorch: their signatures, the shapes they return and what they cost.

Compiled kernels attach themselves here. Tensors on the meta device, which have shapes and no values, pass through these
operators always, so that counting multiply-adds computes nothing.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

LIBRARY = torch.library.Library("leandetr", "DEF")
LIBRARY.define("ms_deform_attn(Tensor value, int[] shapes, Tensor locations, Tensor weights) -> Tensor")
LIBRARY.define(
    "key_aware_deform_attn(Tensor query, Tensor key, Tensor value, int[] shapes, Tensor locations) -> Tensor"
)


@torch.library.register_fake("leandetr::ms_deform_attn")
def _ms_deform_attn_shape(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    N, _, M, D = value.shape
    return value.new_empty(N, locations.shape[1], M * D)


@torch.library.register_fake("leandetr::key_aware_deform_attn")
def _key_aware_deform_attn_shape(
    query: Tensor, key: Tensor, value: Tensor, shapes: list[int], locations: Tensor
) -> Tensor:
    N, _, M, D = value.shape
    return value.new_empty(N, locations.shape[1], M * D)


def _samples(value_shape, locations_shape) -> int:
    """Numbers that bilinear sampling produces: N * Q * M * L * P * D."""
    N, Q, M, L, P, _ = locations_shape
    return N * Q * M * L * P * value_shape[-1]


# Formulas count two operations per multiply-add, as torch.utils.flop_counter does everywhere. A bilinear sample is four
# multiply-adds; weighing the samples is elementwise in the papers' plain attention and not counted there, but it is two
# matrix products in their key-aware attention, which also samples keys and values separately.


@register_flop_formula(torch.ops.leandetr.ms_deform_attn)
def _ms_deform_attn_flops(value_shape, shapes, locations_shape, weights_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 4 * _samples(value_shape, locations_shape)


@register_flop_formula(torch.ops.leandetr.key_aware_deform_attn)
def _key_aware_flops(
    query_shape, key_shape, value_shape, shapes, locations_shape, *args, out_shape=None, **kwargs
) -> int:
    return 2 * (2 * 4 + 2) * _samples(value_shape, locations_shape)
