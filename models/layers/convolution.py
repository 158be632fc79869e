"""Convolutions whose norm is folded into their weights, with what follows them in one pass; see models.ops."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.hooks import has_hooks
from models.ops import maps as maps_in_one_pass
from models.ops.convolution import convolve_3x3, has_winograd
from models.ops.linear import convolve_1x1, kernel_dtype


def has_kernels(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether `convolve` has kernels for maps (B, C, H, W): of 1x1 and 3x3 convolutions of stride 1.

    A module in evaluation mode that has gradients is looked at, and rounds as PyTorch does.
    """
    if torch.is_grad_enabled() and not convolution.training:
        return False
    if convolution.groups != 1 or convolution.stride != (1, 1) or not isinstance(convolution.padding, tuple):
        return False
    if convolution.kernel_size == (1, 1) and convolution.padding == (0, 0):
        if torch.is_grad_enabled() or not (x.stride(1) == 1 or x.is_contiguous(memory_format=torch.channels_last)):
            return False  # where they learn, oneDNN's are faster
        return kernel_dtype(x, convolution.weight) is not None
    size = convolution.kernel_size, convolution.padding, convolution.dilation, convolution.padding_mode
    return size == ((3, 3), (1, 1), (1, 1), "zeros") and has_winograd(x, convolution.weight)


def call_convolution(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """convolution(x), of a 3x3 convolution without bias by the kernels where they serve."""
    plain = type(convolution) is nn.Conv2d and convolution.bias is None and not has_hooks(convolution)
    if plain and convolution.kernel_size == (3, 3) and has_kernels(convolution, x):
        return convolve(x, convolution.weight, x.new_zeros(convolution.out_channels))
    return convolution(x)


def takes_apart(convolution: nn.Conv2d, maps: Sequence[Tensor]) -> bool:
    """Whether `convolve` takes maps as they are that stand side by side, as in `joined`: by a 1x1 convolution."""
    if convolution.kernel_size != (1, 1) or not all(has_kernels(convolution, x) for x in maps):
        return False
    return sum(x.shape[2:] != maps[-1].shape[2:] for x in maps) < min(2, len(maps))


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C_i, H_i, W_i) side by side, enlarged to the last, to the nearest pixel: (B, sum of C_i, H, W)."""
    size = maps[-1].shape[-2:]
    same = [x if x.shape[-2:] == size else F.interpolate(x, size) for x in maps]
    return same[0] if len(same) == 1 else torch.cat(same, 1)


def max_pool2d(x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """The largest pixel of every window, as PyTorch's: (B, C, H, W) -> (B, C, H', W')."""
    return maps_in_one_pass.max_pool2d(x, kernel, stride, padding)


def convolve(
    x: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """activation(x * weight + bias + residual), for a convolution that `has_kernels` serves.

    Args:
        x: (B, C, H, W), or several that `takes_apart` of a convolution without residual.
        weight, bias: (C', C, 1, 1) or (C', C, 3, 3), and (C',).
        residual: (B, C', H, W), or None.
        activation: None or "relu"; without gradients also "silu".
        affine: without gradients, scale and shift, (1,) each, of what a ReLU answers.

    Returns:
        (B, C', H, W), stored channels last.
    """
    after = residual, activation or "none", affine
    if weight.shape[2:] == (1, 1):
        return convolve_1x1([x] if isinstance(x, Tensor) else x, weight, bias, *after)
    return convolve_3x3(x if isinstance(x, Tensor) else joined(x), weight, bias, *after)
