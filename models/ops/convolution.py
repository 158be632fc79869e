"""3x3 convolutions by Winograd's method, F(4x4, 3x3) (Lavin and Gray, 2016), on CPUs.

A quarter of the multiplications of a direct convolution, forward and for the gradient of the maps. Rounding is some ten
times that of a direct one, about 2e-6 of the answers in the root mean square. Maps may be bfloat16: what is computed is
float32 all the same, and faster than a direct convolution in bfloat16. Where linear layers are left to PyTorch
(LEANDETR_LINEAR), so are these.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.ops.extension import has_compiled_kernels
from models.ops.linear import kernel_dtype
from models.ops.linear_operators import ACTIVATIONS

CHANNELS_IN, CHANNELS_OUT = 16, 32
"""Channels must be multiples of these."""
SQUARES = {torch.float32: 1 / 24, torch.bfloat16: 1 / 4}
"""Squares of 4x4 pixels that an image must have for each channel: transformed weights are to be worth their while."""

LIBRARY = torch.library.Library("leandetr", "FRAGMENT")
LIBRARY.define(
    "convolution_3x3(Tensor x, Tensor weight, Tensor bias, Tensor? residual, int activation, Tensor? scale,"
    " Tensor? shift, ScalarType dtype) -> Tensor"
)
LIBRARY.define("convolution_3x3_weight_gradient(Tensor grad, Tensor x) -> Tensor")
HAS_KERNELS = has_compiled_kernels("CPU", "convolution_3x3")


@torch.library.register_fake("leandetr::convolution_3x3")
def _(x, weight, bias, residual, activation, scale, shift, dtype):
    shape = x.shape[0], weight.shape[0], *x.shape[2:]
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


@register_flop_formula(torch.ops.leandetr.convolution_3x3)
def _(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    """Of the convolution that it stands for."""
    batch, _, height, width = x_shape
    return 2 * batch * height * width * torch.Size(weight_shape).numel()


@torch.library.register_fake("leandetr::convolution_3x3_weight_gradient")
def _(grad, x):
    shape = grad.shape[1], x.shape[1], 3, 3
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@register_flop_formula(torch.ops.leandetr.convolution_3x3_weight_gradient)
def _(grad_shape, x_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 9 * torch.Size(x_shape).numel() * grad_shape[1]


def _remember(ctx, inputs, output):  # of a convolution that a ReLU may follow, and nothing else
    x, weight, _, _, activation, *_ = inputs
    ctx.rectify = activation == ACTIVATIONS["relu"]
    ctx.save_for_backward(x, weight, *([output] if ctx.rectify else []))


def _gradients(ctx, grad):
    x, weight, *output = ctx.saved_tensors
    by_x, by_weight, by_bias, by_residual = ctx.needs_input_grad[:4]
    if ctx.rectify:
        grad = torch.ops.aten.threshold_backward(grad, output[0], 0)
    if torch.is_grad_enabled():  # second derivatives are to follow: PyTorch has them
        found = _direct(grad, x, weight, [by_x, by_weight, by_bias])
    else:
        turned = weight.flip(2, 3).transpose(0, 1)  # what turns a gradient of the answers into that of the maps
        served = by_x and has_winograd(grad, turned)
        *found, of_bias = _direct(grad, x, weight, [by_x and not served, False, by_bias])
        if served:
            found[0] = convolve_3x3(grad, turned, weight.new_zeros(weight.shape[1]))
        if by_weight:
            found[1] = torch.ops.leandetr.convolution_3x3_weight_gradient(grad, x)
        found = *found, of_bias
    return *found, grad if by_residual else None, None, None, None, None


def _direct(grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    """PyTorch's gradients of maps, weight and bias, those that are wanted."""
    if not any(wanted):
        return None, None, None
    sizes = [weight.shape[0]]
    geometry = [1, 1], [1, 1], [1, 1], False, [0, 0], 1  # stride, padding, dilation, not transposed, groups
    return torch.ops.aten.convolution_backward(grad, x, weight, sizes, *geometry, wanted)


torch.library.register_autograd("leandetr::convolution_3x3", _gradients, setup_context=_remember)


def has_winograd(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve_3x3` serves these, by a rule of type and sizes.

    Args:
        x: (B, C, H, W).
        weight: (C', C, 3, 3).
    """
    channels_out, channels_in = weight.shape[:2]
    if not HAS_KERNELS or channels_in % CHANNELS_IN or channels_out % CHANNELS_OUT:
        return False
    dtype = kernel_dtype(x, weight)
    squares = -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    return dtype is not None and squares >= SQUARES[dtype] * channels_in


def convolve_3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    affine: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """A 3x3 convolution of stride 1 with one pixel of zeros around, where `has_winograd` says so.

    Args:
        x: (B, C, H, W), best stored channels last.
        weight, bias: (C', C, 3, 3) and (C',).
        residual: (B, C', H, W), added before the activation, or None.
        activation: "none" or "relu"; without gradients also "silu".
        affine: without gradients, scale and shift, (1,) each, of what a ReLU answers.

    Returns:
        (B, C', H, W), stored channels last, of the type that PyTorch's convolution returns.
    """
    kind = ACTIVATIONS["scaled_relu" if affine else activation]
    return torch.ops.leandetr.convolution_3x3(
        x, weight, bias, residual, kind, *(affine or (None, None)), kernel_dtype(x, weight)
    )
