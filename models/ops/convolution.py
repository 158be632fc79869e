"""3x3 convolutions without gradients by Winograd's method, F(4x4, 3x3) (Lavin and Gray, 2016), on CPUs.

A quarter of the multiplications of a direct convolution. Rounding is some ten times that of a direct one, about 2e-6 of
the answers in the root mean square. Where linear layers are left to PyTorch (LEANDETR_LINEAR), so are these.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.ops.extension import has_compiled_kernels
from models.ops.linear import kernel_dtype

CHANNELS_IN, CHANNELS_OUT = 16, 32
"""Channels must be multiples of these."""
SQUARES = 1 / 16
"""Squares of 4x4 pixels that an image must have for each channel: transformed weights are to be worth their while."""

LIBRARY = torch.library.Library("leandetr", "FRAGMENT")
LIBRARY.define("convolution_3x3(Tensor x, Tensor weight, Tensor bias, Tensor? residual, bool rectify) -> Tensor")
HAS_KERNELS = has_compiled_kernels("CPU", "convolution_3x3")


@torch.library.register_fake("leandetr::convolution_3x3")
def _(x, weight, bias, residual, rectify):
    shape = x.shape[0], weight.shape[0], *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@register_flop_formula(torch.ops.leandetr.convolution_3x3)
def _(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    """Of the convolution that it stands for."""
    batch, _, height, width = x_shape
    return 2 * batch * height * width * torch.Size(weight_shape).numel()


def has_winograd(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve_3x3` serves these, by a rule of type and sizes.

    Args:
        x: (B, C, H, W).
        weight: (C', C, 3, 3).
    """
    channels_out, channels_in = weight.shape[:2]
    squares = -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    fits = channels_in % CHANNELS_IN == 0 and channels_out % CHANNELS_OUT == 0 and squares >= SQUARES * channels_in
    return fits and HAS_KERNELS and not torch.is_grad_enabled() and kernel_dtype(x, weight) == torch.float32


def convolve_3x3(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, rectify: bool) -> Tensor:
    """A 3x3 convolution of stride 1 with one pixel of zeros around, where `has_winograd` says so.

    Args:
        x: (B, C, H, W) float32, best stored channels last.
        weight, bias: (C', C, 3, 3) and (C',).
        residual: (B, C', H, W), added before the ReLU, or None.
        rectify: whether a ReLU follows.

    Returns:
        (B, C', H, W), stored channels last.
    """
    return torch.ops.leandetr.convolution_3x3(x, weight, bias, residual, rectify)
