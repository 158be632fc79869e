"""Small pieces that many parts need."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from models.layers.linear import LINEAR_ACTIVATED, Linear, check_activation, linear_gelu


@torch.no_grad()
def share_initial_biases(layers: Sequence[nn.Module]):
    """Gives layers of one kind, of which there may be none, the biases of the first.

    So they start in the papers' code: as copies of one layer, of which the matrices alone are drawn anew.
    """
    for layer in layers[1:]:
        for name, parameter in layer.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(layers[0].get_parameter(name))


class Recomputable(nn.Module):
    """A layer that can be told to keep its inputs alone and to compute the rest anew for its gradients.

    Attributes:
        recompute: whether it does: less memory for one more forward pass. Nothing else changes, dropout included.
    """

    recompute = False

    def __call__(self, *inputs):
        """As in every module."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False, context_fn=self._once_and_again)
        return super().__call__(*inputs)

    def _once_and_again(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """What surrounds the forward, and the same when it is computed anew."""
        return nullcontext(), _statistics_kept(self)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within this, batch norms do not count what they see, which they have counted before."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count


class MLP(nn.Module):
    """Linear layers with an activation between them, "relu" or "silu"; `sizes` are the widths from input to output."""

    def __init__(self, *sizes: int, activation: str = "relu"):
        super().__init__()
        check_activation(activation)
        self.activation = activation
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """(..., sizes[0]) -> (..., sizes[-1])."""
        *hidden, last = self.layers
        for layer in hidden:
            x = LINEAR_ACTIVATED[self.activation](layer, x)
        return last(x)


class GELUMLP(nn.Module):
    """The MLP of vision transformers: two linear layers with GELU between them."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(linear_gelu(self.fc1, x))


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)), with both kept at `eps` or more so that 0 and 1 stay finite."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def init_xavier(module: nn.Module):
    """Xavier-uniform for every matrix under `module`, as DETR initialises its transformer; vectors stay as they are."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def init_trunc_normal(module: nn.Module):
    """Normal weights of deviation 0.02 and no bias for every linear layer under `module`, as in vision transformers.

    They are said to be truncated at 2, a hundred deviations out, which cuts off nothing; but `trunc_normal_` of PyTorch
    2.6 makes about one weight in thirty million -2.0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
