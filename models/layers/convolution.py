"""Convolutions whose norm is folded into their weights, with what follows them in one pass; see models.ops."""

import torch
from torch import Tensor, nn

from models.layers.hooks import has_hooks
from models.ops.convolution import convolve_3x3, has_winograd
from models.ops.linear import kernel_dtype, linear


def has_kernels(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether `convolve` has kernels for maps (B, C, H, W): of 1x1 and 3x3 convolutions of stride 1.

    A module in evaluation mode that has gradients is looked at, and rounds as PyTorch does.
    """
    if torch.is_grad_enabled() and not convolution.training:
        return False
    if convolution.groups != 1 or convolution.stride != (1, 1) or not isinstance(convolution.padding, tuple):
        return False
    if convolution.kernel_size == (1, 1) and convolution.padding == (0, 0):
        if torch.is_grad_enabled() or not x.is_contiguous(memory_format=torch.channels_last):
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


def convolve(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, rectify: bool = False) -> Tensor:
    """relu(x * weight + bias + residual), for a convolution that `has_kernels` serves.

    Args:
        x: (B, C, H, W).
        weight, bias: (C', C, 1, 1) or (C', C, 3, 3), and (C',).
        residual: (B, C', H, W), or None.
        rectify: whether there is a ReLU.

    Returns:
        (B, C', H, W), stored channels last.
    """
    if weight.shape[2:] != (1, 1):
        return convolve_3x3(x, weight, bias, residual, rectify)
    # Maps that are stored channels last are rows of pixels, for a linear layer of each.
    residual = None if residual is None else residual.permute(0, 2, 3, 1)
    activation = "relu" if rectify else "none"
    return linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias, activation, residual=residual).permute(0, 3, 1, 2)
