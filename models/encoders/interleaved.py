"""Lite-DETR's encoder: coarse tokens ask in every layer, fine ones only in the last layer of each block."""

from collections.abc import Callable

import torch
from torch import nn

from models.layers.basic import share_initial_biases
from models.registry import PARTS
from models.structures import Pyramid, split_tokens


@PARTS.register
class InterleavedEncoder(nn.Module):
    """Interleaved updates of high-level and low-level features (Lite-DETR, section 3.2).

    The paper's HxLy-(A+1)xB is high_levels=x and num_blocks=B; A is num_layers / B, since the layer that updates the
    fine tokens updates the coarse ones too.

    Args:
        layer: makes a layer in which the coarse tokens ask.
        last_layer: makes the last layer of a block, in which all tokens ask.
        num_levels: feature maps in all.
        high_levels: how many of the coarsest are high-level.
        num_layers: layers in all.
        num_blocks: blocks; divides num_layers.
    """

    def __init__(
        self,
        layer: Callable[[], nn.Module],
        last_layer: Callable[..., nn.Module],
        num_levels: int,
        high_levels: int = 3,
        num_layers: int = 6,
        num_blocks: int = 3,
    ):
        super().__init__()
        if num_blocks < 1 or num_layers % num_blocks:
            raise ValueError(f"num_blocks={num_blocks} must divide num_layers={num_layers}: blocks are of equal length")
        if not 0 < high_levels <= num_levels:
            raise ValueError(f"high_levels={high_levels} must be between 1 and num_levels={num_levels}")
        self.high_levels = high_levels
        self.layers_per_block = num_layers // num_blocks
        self.layers = nn.ModuleList(
            last_layer(high_levels=high_levels) if self._ends_block(index) else layer() for index in range(num_layers)
        )
        for ends in (False, True):
            share_initial_biases([layer for index, layer in enumerate(self.layers) if self._ends_block(index) == ends])

    def _ends_block(self, index: int) -> bool:
        return (index + 1) % self.layers_per_block == 0

    def forward(self, pyramid: Pyramid) -> tuple[Pyramid, dict]:
        """Updates the coarse tokens in every layer and all tokens at the end of each block."""
        fine = pyramid.coarsest(self.high_levels).start
        reference = pyramid.centers_on_levels()
        high_pos, high_reference = pyramid.pos[:, fine:], reference[:, fine:]
        for index, layer in enumerate(self.layers):
            if self._ends_block(index):
                tokens = layer(pyramid.tokens, pyramid.pos, reference, pyramid)
            else:
                kept, asking = split_tokens(pyramid.tokens, fine)
                tokens = torch.cat([kept, layer(asking, high_pos, high_reference, pyramid)], 1)
            pyramid = pyramid.with_tokens(tokens)
        return pyramid, {}
