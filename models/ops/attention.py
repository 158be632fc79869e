"""Dense attention without gradients on CPUs: of projected rows, whose heads nobody lays out anew."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.ops.extension import has_compiled_kernels
from models.ops.linear import kernel_dtype

LIBRARY = torch.library.Library("leandetr", "FRAGMENT")
LIBRARY.define("attend(Tensor query, Tensor key, Tensor value, Tensor? blocked, int heads, ScalarType dtype) -> Tensor")
HAS_KERNELS = has_compiled_kernels("CPU", "attend")
CHANNELS = 32
"""Channels of a head must be a multiple of this."""


@torch.library.register_fake("leandetr::attend")
def _(query, key, value, blocked, heads, dtype):
    return torch.empty(query.shape, dtype=dtype, device=query.device)


@register_flop_formula(torch.ops.leandetr.attend)
def _(query_shape, key_shape, *args, out_shape=None, **kwargs) -> int:
    return 4 * torch.Size(query_shape).numel() * key_shape[1]


def has_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> bool:
    """Whether `attend` serves these, by a rule of type and sizes."""
    if torch.is_grad_enabled() or not HAS_KERNELS or query.shape[-1] % (CHANNELS * heads) or not key.shape[1]:
        return False
    return kernel_dtype(query, key, value) is not None


def attend(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None, heads: int) -> Tensor:
    """Scaled dot-product attention of every head, where `has_attention` says so.

    Args:
        query: (B, Q, C), each head's channels side by side.
        key, value: (B, S, C).
        blocked: (B, S) bool, True where nobody may look, or None.
        heads: attention heads.

    Returns:
        (B, Q, C), of the type that is multiplied.
    """
    return torch.ops.leandetr.attend(query, key, value, blocked, heads, kernel_dtype(query, key, value))
