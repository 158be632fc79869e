"""Linear layers as operators of PyTorch: their signatures, the shapes they return, their gradients, their cost.

The extension attaches its kernels for CPUs to them; `models.ops.linear` says when they are called.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "silu": 3, "scaled_relu": 4}
"""The activations by the numbers that the kernels know them by; relu(x) * scale + shift, the last, is of maps alone."""

LIBRARY = torch.library.Library("leandetr", "FRAGMENT")
LIBRARY.define(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int activation, ScalarType dtype) -> Tensor"
)
LIBRARY.define(
    "linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor? positive, bool[3] wanted)"
    " -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "linear_norm(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor norm_weight, Tensor norm_bias,"
    " float eps, ScalarType dtype) -> Tensor"
)
LIBRARY.define(
    "feed_forward(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, Tensor norm_weight,"
    " Tensor norm_bias, float eps, int activation, ScalarType dtype) -> Tensor"
)
LIBRARY.define(
    "convolution_1x1(Tensor[] maps, Tensor weight, Tensor bias, Tensor? residual, int activation, Tensor? scale,"
    " Tensor? shift, ScalarType dtype) -> Tensor"
)
LIBRARY.define("product_instructions(ScalarType dtype) -> str")
operators = torch.ops.leandetr


# --------------------------------------------------------------------------------------------------------------- shapes


@torch.library.register_fake("leandetr::linear")
def _(x, weight, bias, residual, activation, dtype):
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype)


@torch.library.register_fake("leandetr::linear_backward")
def _(grad, x, weight, positive, wanted):
    shapes = (x.shape, weight.shape if wanted[1] or wanted[2] else (0,), (weight.shape[0],))
    return tuple(x.new_empty(shape if asked else (0,)) for shape, asked in zip(shapes, wanted, strict=True))


@torch.library.register_fake("leandetr::linear_norm")
def _(x, weight, bias, residual, norm_weight, norm_bias, eps, dtype):
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=torch.float32)


@torch.library.register_fake("leandetr::feed_forward")
def _(x, *others):
    return x.new_empty(x.shape, dtype=torch.float32)


@torch.library.register_fake("leandetr::convolution_1x1")
def _(maps, weight, bias, residual, activation, scale, shift, dtype):
    shape = maps[-1].shape[0], weight.shape[0], *maps[-1].shape[2:]
    return torch.empty(shape, dtype=dtype, device=weight.device, memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------------------------ gradients
# Of `linear` alone, without residual, and not of a GELU.


def _remember(ctx, inputs, output):
    x, weight, bias, _, activation, _ = inputs
    ctx.has_bias, ctx.rectifies = bias is not None, activation == ACTIVATIONS["relu"]
    ctx.save_for_backward(x, weight, *([output] if ctx.rectifies else []))


def _gradients(ctx, grad):
    x, weight, *output = ctx.saved_tensors
    positive = output[0] if ctx.rectifies else None
    wanted = [*ctx.needs_input_grad[:2], ctx.has_bias and ctx.needs_input_grad[2]]
    if torch.is_grad_enabled():  # second derivatives are to follow: PyTorch has them
        if positive is not None:
            grad = grad.masked_fill(positive <= 0, 0)
        by_x = grad @ weight if wanted[0] else None
        rows = grad.flatten(0, -2)
        by_weight = rows.T @ x.flatten(0, -2) if wanted[1] else None
        by_bias = rows.sum(0) if wanted[2] else None
    else:
        grads = operators.linear_backward(grad, x, weight, positive, wanted)
        by_x, by_weight, by_bias = (g if asked else None for g, asked in zip(grads, wanted, strict=True))
    return by_x, by_weight, by_bias, None, None, None


torch.library.register_autograd("leandetr::linear", _gradients, setup_context=_remember)


# ----------------------------------------------------------------------------------------------------------------- cost
# Those of the products and norms that they stand for, as torch.utils.flop_counter and util.measuring.flops count.


def _product(x_shape, weight_shape) -> int:
    return 2 * torch.Size(x_shape).numel() * weight_shape[0]


def _norm(x_shape, width: int) -> int:
    return 2 * 5 * torch.Size(x_shape[:-1]).numel() * width


@register_flop_formula(operators.linear)
def _(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return _product(x_shape, weight_shape)


@register_flop_formula(operators.linear_backward)
def _(grad_shape, x_shape, weight_shape, positive_shape, wanted, *args, out_shape=None, **kwargs) -> int:
    return _product(x_shape, weight_shape) * (bool(wanted[0]) + bool(wanted[1]))


@register_flop_formula(operators.linear_norm)
def _(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return _product(x_shape, weight_shape) + _norm(x_shape, weight_shape[0])


@register_flop_formula(operators.convolution_1x1)
def _(map_shapes, weight_shape, *args, out_shape=None, **kwargs) -> int:
    """Of the convolution of maps that are all as large as the last."""
    return 2 * torch.Size(out_shape).numel() * weight_shape[1]


@register_flop_formula(operators.feed_forward)
def _(x_shape, weight1_shape, bias1_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * _product(x_shape, weight1_shape) + _norm(x_shape, x_shape[-1])
