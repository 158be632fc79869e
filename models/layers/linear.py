"""Linear layers, and what stands around them in transformers: activation, residual, norm.

The functions compute what their one-line descriptions say. Without gradients they hand it to `models.ops.linear` whole,
which does it in one pass where the extension's kernels serve. A module that somebody looks into by a hook, has put in a
layer's place or derived from its class is always called.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.dropout import Dropout, add_dropped
from models.layers.hooks import has_hooks
from models.ops import linear as products


class Linear(nn.Linear):
    """torch.nn.Linear; on CPUs with the extension's products, see models.ops.linear."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return products.linear(x, self.weight, self.bias)


def _are_as_such(*layers: nn.Module) -> bool:
    """Whether these are linear layers, norms and dropouts of which nobody would miss the call."""
    return all(type(layer) in (Linear, nn.LayerNorm, Dropout) and not has_hooks(layer) for layer in layers)


def _norms_sum(norm: nn.LayerNorm, dropout: nn.Dropout | None = None) -> bool:
    """Whether what stands between a linear layer and a norm is a sum at most, and the norm the usual one."""
    drops = dropout is not None and dropout.training and dropout.p > 0
    return not drops and len(norm.normalized_shape) == 1 and norm.weight is not None and norm.bias is not None


def linear_relu(layer: nn.Module, x: Tensor) -> Tensor:
    """relu(layer(x))."""
    if _are_as_such(layer):
        return products.linear(x, layer.weight, layer.bias, "relu")
    return F.relu(layer(x), inplace=True)


def linear_silu(layer: nn.Module, x: Tensor) -> Tensor:
    """silu(layer(x))."""
    return F.silu(layer(x), inplace=not torch.is_grad_enabled())


def linear_gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """gelu(layer(x))."""
    if _are_as_such(layer):
        return products.linear(x, layer.weight, layer.bias, "gelu")
    return F.gelu(layer(x))


def linear_norm(layer: nn.Module, x: Tensor, norm: nn.Module) -> Tensor:
    """norm(layer(x))."""
    if not torch.is_grad_enabled() and _are_as_such(layer, norm) and _norms_sum(norm):
        return products.linear_norm(x, layer.weight, layer.bias, None, norm)
    return norm(layer(x))


LINEAR_ACTIVATED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {"relu": linear_relu, "silu": linear_silu}
"""What parts may choose by the name of the activation."""


def check_activation(activation: str):
    """Raises ValueError for a name that is none of LINEAR_ACTIVATED."""
    if activation not in LINEAR_ACTIVATED:
        raise ValueError(f"activation='{activation}' is none of {', '.join(LINEAR_ACTIVATED)}")


def linear_add_norm(layer: nn.Module, x: Tensor, residual: Tensor, norm: nn.Module, dropout: nn.Dropout) -> Tensor:
    """norm(residual + dropout(layer(x)))."""
    if not torch.is_grad_enabled() and _are_as_such(layer, norm, dropout) and _norms_sum(norm, dropout):
        return products.linear_norm(x, layer.weight, layer.bias, residual, norm)
    return norm(add_dropped(dropout, layer(x), residual))


def feed_forward(
    x: Tensor, first: nn.Module, second: nn.Module, norm: nn.Module, dropout: nn.Dropout, activation: str = "relu"
) -> Tensor:
    """norm(x + dropout(second(dropout(activation(first(x))))))."""
    if activation != "relu":
        return linear_add_norm(second, dropout(LINEAR_ACTIVATED[activation](first, x)), x, norm, dropout)
    if not torch.is_grad_enabled() and _are_as_such(first, second, norm, dropout) and _norms_sum(norm, dropout):
        return products.feed_forward(x, (first.weight, second.weight), (first.bias, second.bias), norm)
    return norm(add_dropped(dropout, second(dropout(linear_relu(first, x))), x))


class Projecting(nn.Module):
    """A module whose last step is a linear layer: what an attention looks up, and the projection of it.

    Derived classes have `look_up`, with the arguments of `forward`, which returns what is projected and whatever else
    there is to say; and name the projection.
    """

    projection: str

    def forward(self, *inputs, **named) -> tuple[Tensor, Any]:
        """The projected answer, and the rest."""
        found, rest = self.look_up(*inputs, **named)
        return getattr(self, self.projection)(found), rest

    def look_up(self, *inputs, **named) -> tuple[Tensor, Any]:
        """What is projected, and the rest."""
        raise NotImplementedError


def _looks_up(kind: type) -> bool:
    """Whether a class calls its `look_up`: none derived from it has a `forward` of its own."""

    def depth(name: str) -> int:
        return next(place for place, base in enumerate(kind.__mro__) if name in vars(base))

    return depth("look_up") <= depth("forward")


def attend_add_norm(
    attention: nn.Module, residual: Tensor, norm: nn.Module, dropout: nn.Dropout, *inputs, **named
) -> tuple[Tensor, Any]:
    """norm(residual + dropout(answer)), and the rest, of `answer, rest = attention(*inputs, **named)`."""
    if isinstance(attention, Projecting) and _looks_up(type(attention)) and not has_hooks(attention):
        found, rest = attention.look_up(*inputs, **named)
        return linear_add_norm(getattr(attention, attention.projection), found, residual, norm, dropout), rest
    answer, rest = attention(*inputs, **named)
    return norm(add_dropped(dropout, answer, residual)), rest
