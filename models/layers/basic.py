"""Small pieces that many parts need."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear layers with ReLU between them; `sizes` are the widths from input to output."""

    def __init__(self, *sizes: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """(..., sizes[0]) -> (..., sizes[-1])."""
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


class GELUMLP(nn.Module):
    """The MLP of vision transformers: two linear layers with GELU between them."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)), with both kept at `eps` or more so that 0 and 1 stay finite."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, S, C) by (B, Q) -> (B, Q, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def init_xavier(module: nn.Module):
    """Xavier-uniform for every matrix under `module`, as DETR initialises its transformer; vectors stay as they are."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def init_trunc_normal(module: nn.Module):
    """Normal weights of deviation 0.02 and no bias for every linear layer under `module`, as in vision transformers."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
