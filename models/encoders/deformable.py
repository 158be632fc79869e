"""The encoder of Deformable DETR and DINO: every token asks, in every layer."""

from collections.abc import Callable

from torch import nn

from models.layers.basic import share_initial_biases
from models.registry import PARTS
from models.structures import Pyramid


@PARTS.register
class DeformableEncoder(nn.Module):
    """Deformable attention from all tokens to all levels (Deformable DETR, section 4.2).

    Args:
        layer: makes one layer.
        num_layers: how many.
    """

    def __init__(self, layer: Callable[[], nn.Module], num_layers: int = 6):
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        share_initial_biases(self.layers)

    def forward(self, pyramid: Pyramid) -> tuple[Pyramid, dict]:
        """Updates every token."""
        reference = pyramid.centers_on_levels()
        for layer in self.layers:
            pyramid = pyramid.with_tokens(layer(pyramid.tokens, pyramid.pos, reference, pyramid))
        return pyramid, {}
