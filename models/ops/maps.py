"""What is done to maps beside convolutions, without gradients on CPUs in one pass each."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.ops.extension import has_compiled_kernels
from models.ops.linear import serves
from models.ops.linear_operators import ACTIVATIONS

LIBRARY = torch.library.Library("leandetr", "FRAGMENT")
LIBRARY.define("activate_(Tensor(a!) x, int activation, Tensor? scale, Tensor? shift) -> Tensor(a!)")
LIBRARY.define("max_pool(Tensor x, int kernel, int stride, int padding) -> Tensor")
LIBRARY.define(
    "fold_norm(Tensor weight, Tensor norm_weight, Tensor norm_bias, Tensor mean, Tensor var, float eps,"
    " ScalarType dtype) -> (Tensor, Tensor)"
)
HAS_KERNELS = has_compiled_kernels("CPU", "max_pool")
CHANNELS = 16
"""Channels of pooled maps must be a multiple of this."""
TYPES = (torch.float32, torch.bfloat16)


@torch.library.register_fake("leandetr::activate_")
def _(x, activation, scale, shift):
    return x


@torch.library.register_fake("leandetr::max_pool")
def _(x, kernel, stride, padding):
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
    return x.new_empty(*x.shape[:2], height, width).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("leandetr::fold_norm")
def _(weight, norm_weight, norm_bias, mean, var, eps, dtype):
    return torch.empty_like(weight, dtype=dtype), torch.empty_like(norm_bias)


def _serves(*tensors: Tensor) -> bool:
    return HAS_KERNELS and not torch.is_grad_enabled() and serves(*tensors)


def activated(x: Tensor, activation: str | None, affine: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """activation(x) * scale + shift; overwrites x where the gradients, if any, do not need it.

    Args:
        activation: None, "relu" or "silu".
        affine: scale and shift, (1,) each, of what a ReLU answers; or None.
    """
    if activation is None:
        return x
    if x.dtype in TYPES and _serves(x, *(affine or ())) and (affine or activation != "relu"):
        kind = ACTIVATIONS["scaled_relu" if affine else activation]
        return torch.ops.leandetr.activate_(x, kind, *(affine or (None, None)))
    if activation == "silu":
        return F.silu(x, inplace=not torch.is_grad_enabled())
    x = F.relu(x, inplace=True)
    return x if affine is None else affine[0] * x + affine[1]


def max_pool2d(x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """As PyTorch's: (B, C, H, W) -> (B, C, H', W')."""
    pooled = x.dtype in TYPES and x.shape[1] % CHANNELS == 0 and x.numel() > 0 and _serves(x)
    if pooled and x.is_contiguous(memory_format=torch.channels_last):
        return torch.ops.leandetr.max_pool(x, kernel, stride, padding)
    return F.max_pool2d(x, kernel, stride, padding)


def fold_norm(weight: Tensor, norm: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution without bias and the norm after it, which is one of constants.

    Args:
        weight: (C', C, ...).
        norm: with weight, bias, running_mean, running_var and eps.
        dtype: what the weight becomes where that saves a pass.
    """
    parts = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if weight.dtype == norm.weight.dtype == torch.float32 and _serves(weight):
        return torch.ops.leandetr.fold_norm(weight, *parts, norm.eps, dtype)
    scale = parts[0] * (norm.running_var + norm.eps).rsqrt()
    return weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
