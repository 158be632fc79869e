"""The two attentions as operators of PyTorch: their signatures, the shapes they return, their gradients, their cost.

Compiled kernels attach themselves to these operators. Tensors on the meta device, which have shapes and no values, pass
through them always, so that counting MACs computes nothing.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.ops import reference
from models.ops.reference import Shapes

# Shapes travel as one flat list: height, width, height, width, ...; no key means that the values are the keys.
PLAIN = "Tensor value, int[] shapes, Tensor locations, Tensor weights"
AWARE = "Tensor query, Tensor? key, Tensor value, int[] shapes, Tensor locations"
LIBRARY = torch.library.Library("leandetr", "DEF")
LIBRARY.define(f"ms_deform_attn({PLAIN}) -> Tensor")
LIBRARY.define(
    "ms_deform_attn_of_offsets(Tensor value, int[] shapes, Tensor offsets, Tensor logits, Tensor reference) -> Tensor"
)
LIBRARY.define(f"ms_deform_attn_backward(Tensor grad, {PLAIN}) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(f"key_aware_deform_attn({AWARE}) -> Tensor")
LIBRARY.define(f"key_aware_deform_attn_backward(Tensor grad, {AWARE}) -> (Tensor, Tensor, Tensor, Tensor)")
operators = torch.ops.leandetr


def ms_deform_attn(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The operator; arguments as in `models.ops.ms_deform_attn`."""
    return operators.ms_deform_attn(value, _flat(shapes), locations, weights)


def ms_deform_attn_of_offsets(
    value: Tensor, shapes: Shapes, offsets: Tensor, logits: Tensor, reference: Tensor
) -> Tensor:
    """The operator, which has no gradients; arguments as in `models.ops.ms_deform_attn.ms_deform_attn_of_offsets`."""
    return operators.ms_deform_attn_of_offsets(value, _flat(shapes), offsets, logits, reference)


def key_aware_deform_attn(query: Tensor, key: Tensor, value: Tensor, shapes: Shapes, locations: Tensor) -> Tensor:
    """The operator; arguments as in `models.ops.key_aware_deform_attn`."""
    return operators.key_aware_deform_attn(query, None if key is value else key, value, _flat(shapes), locations)


def _flat(shapes: Shapes) -> list[int]:
    return [size for shape in shapes for size in shape]


def _pairs(flat: list[int]) -> Shapes:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


# --------------------------------------------------------------------------------------------------------------- shapes


def _answer(value: Tensor, locations: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("leandetr::ms_deform_attn")
def _(value, shapes, locations, weights):
    return _answer(value, locations)


@torch.library.register_fake("leandetr::ms_deform_attn_of_offsets")
def _(value, shapes, offsets, logits, reference):
    return _answer(value, offsets)


@torch.library.register_fake("leandetr::ms_deform_attn_backward")
def _(grad, value, shapes, locations, weights):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (value, locations, weights))


@torch.library.register_fake("leandetr::key_aware_deform_attn")
def _(query, key, value, shapes, locations):
    return _answer(value, locations)


@torch.library.register_fake("leandetr::key_aware_deform_attn_backward")
def _(grad, query, key, value, shapes, locations):
    inputs = (query, value.new_empty(0) if key is None else key, value, locations)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)


# ------------------------------------------------------------------------------------------------------------ gradients


def _remember_plain(ctx, inputs, output):
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _plain_gradients(ctx, grad):
    value, locations, weights = ctx.saved_tensors
    grads = operators.ms_deform_attn_backward(grad, value, ctx.shapes, locations, weights)
    return grads[0], None, grads[1], grads[2]


def _remember_aware(ctx, inputs, output):
    query, key, value, ctx.shapes, locations = inputs
    ctx.has_key = key is not None
    ctx.save_for_backward(query, value, locations, *([key] if ctx.has_key else []))


def _aware_gradients(ctx, grad):
    query, value, locations, *key = ctx.saved_tensors
    key = key[0] if ctx.has_key else None
    grads = operators.key_aware_deform_attn_backward(grad, query, key, value, ctx.shapes, locations)
    return grads[0], grads[1] if ctx.has_key else None, grads[2], None, grads[3]


torch.library.register_autograd("leandetr::ms_deform_attn", _plain_gradients, setup_context=_remember_plain)
torch.library.register_autograd("leandetr::key_aware_deform_attn", _aware_gradients, setup_context=_remember_aware)


# Second derivatives are PyTorch's: the backward operators are differentiated by way of the reference.


def _gradients_of_gradients(
    attention: Callable[..., Tensor], grad: Tensor, inputs: Sequence[Tensor], directions: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Differentiates a backward operator.

    Args:
        attention: of the inputs, in PyTorch.
        grad, inputs: what the operator was given.
        directions: one for each gradient that it returned.

    Returns:
        gradients by `grad` and by every input.
    """
    again = torch.is_grad_enabled()  # whether third derivatives are to follow
    with torch.enable_grad():
        # Under names of their own, so that what they were made of is left out.
        grad, *inputs = (x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in (grad, *inputs))
        grads = torch.autograd.grad(attention(*inputs), inputs, grad, create_graph=True)
        return torch.autograd.grad(grads, (grad, *inputs), directions, create_graph=again, materialize_grads=True)


def _remember_plain_backward(ctx, inputs, output):
    grad, value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(grad, value, locations, weights)


def _plain_second(ctx, *directions):
    def attention(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return reference.ms_deform_attn(value, _pairs(ctx.shapes), locations, weights)

    grad, *inputs = ctx.saved_tensors
    grads = _gradients_of_gradients(attention, grad, inputs, directions)
    return grads[0], grads[1], None, grads[2], grads[3]


def _remember_aware_backward(ctx, inputs, output):
    grad, query, key, value, ctx.shapes, locations = inputs
    ctx.has_key = key is not None
    ctx.save_for_backward(grad, query, value, locations, *([key] if ctx.has_key else []))


def _aware_second(ctx, by_query, by_key, by_value, by_locations):
    def attention(query: Tensor, value: Tensor, locations: Tensor, key: Tensor | None = None) -> Tensor:
        key = value if key is None else key
        return reference.key_aware_deform_attn(query, key, value, _pairs(ctx.shapes), locations)

    grad, *inputs = ctx.saved_tensors
    directions = (by_query, by_value, by_locations, *([by_key] if ctx.has_key else []))
    grads = _gradients_of_gradients(attention, grad, inputs, directions)
    return grads[0], grads[1], grads[4] if ctx.has_key else None, grads[2], None, grads[3]


torch.library.register_autograd(
    "leandetr::ms_deform_attn_backward", _plain_second, setup_context=_remember_plain_backward
)
torch.library.register_autograd(
    "leandetr::key_aware_deform_attn_backward", _aware_second, setup_context=_remember_aware_backward
)


# ----------------------------------------------------------------------------------------------------------------- cost
# In two operations per multiply-add, as torch.utils.flop_counter counts everywhere. A bilinear sample is four
# MACs. Weighing the samples is elementwise in the papers' plain attention and counts nothing there; in their
# key-aware attention it is two matrix products, and keys and values are sampled separately.


def _samples(value_shape, locations_shape) -> int:
    """Numbers that bilinear sampling produces: N * Q * M * L * P * D."""
    N, Q, M, L, P, _ = locations_shape
    return N * Q * M * L * P * value_shape[-1]


@register_flop_formula([operators.ms_deform_attn, operators.ms_deform_attn_of_offsets])
def _(value_shape, shapes, locations_shape, weights_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 4 * _samples(value_shape, locations_shape)


@register_flop_formula(operators.key_aware_deform_attn)
def _(query_shape, key_shape, value_shape, shapes, locations_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * (2 * 4 + 2) * _samples(value_shape, locations_shape)


def _places(locations_shape) -> int:
    """Operations that turn locations into corners and their weights, whatever the width: 14 a sample."""
    N, Q, M, L, P, _ = locations_shape
    return 14 * N * Q * M * L * P


def _every_plain(value_shape, shapes, locations_shape, *args, **kwargs) -> int:
    return _places(locations_shape) + (2 * 4 + 2) * _samples(value_shape, locations_shape)


def _every_aware(query_shape, key_shape, value_shape, shapes, locations_shape, *args, **kwargs) -> int:
    sampled = 1 if key_shape is None else 2
    softmax = 6 * _samples(value_shape, locations_shape) // value_shape[-1]  # the scale and five
    numbers = (2 * 4 * sampled + 2 * 2) * _samples(value_shape, locations_shape)
    return _places(locations_shape) + softmax + numbers


OPERATIONS = {operators.ms_deform_attn: _every_plain, operators.key_aware_deform_attn: _every_aware}
"""Every arithmetic operation, one by one: values that are their own keys are sampled once."""
