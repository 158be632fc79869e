"""DETR's encoder: every token asks all tokens."""

from collections.abc import Callable

from torch import nn

from models.layers.basic import share_initial_biases
from models.registry import PARTS
from models.structures import TokenSet


@PARTS.register
class DenseEncoder(nn.Module):
    """Self-attention among all tokens (DETR, section 3.2).

    Args:
        layer: makes one layer.
        num_layers: how many.
    """

    def __init__(self, layer: Callable[[], nn.Module], num_layers: int = 6):
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        share_initial_biases(self.layers)

    def forward(self, memory: TokenSet) -> tuple[TokenSet, dict]:
        """Updates every token."""
        for layer in self.layers:
            memory = memory.with_tokens(layer(memory))
        return memory, {}
