"""DETR's decoder: queries ask all tokens, and boxes are read off the hidden vectors alone."""

from collections.abc import Callable

import torch
from torch import nn

from models.layers.basic import share_initial_biases
from models.registry import PARTS
from models.structures import Detections, Queries, TokenSet


@PARTS.register
class DenseDecoder(nn.Module):
    """Attention from the queries to all tokens (DETR, section 3.2 and appendix A.3).

    Args:
        d_model: channels.
        layer: makes one layer.
        head: makes the head that all layers share.
        num_layers: how many layers.
    """

    def __init__(
        self, d_model: int, layer: Callable[[], nn.Module], head: Callable[[], nn.Module], num_layers: int = 6
    ):
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        share_initial_biases(self.layers)
        self.norm = nn.LayerNorm(d_model)
        self.head = head()

    def forward(self, queries: Queries, memory: TokenSet, supervised: bool = True) -> tuple[Detections, dict]:
        """Predicts after every layer: (N, B, Q, ...). Vectors are normed on their way to the head only."""
        hidden, mask, after = queries.content, queries.attention_mask(), []
        for layer in self.layers:
            hidden = layer(hidden, queries.pos, memory, mask)
            after.append(hidden)
        return self.head(self.norm(torch.stack(after))), {}
