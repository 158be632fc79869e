"""Conditional DETR's decoder: every query has a reference point, and asks for content and for place separately."""

from collections.abc import Callable

import torch
from torch import nn

from models.layers.basic import MLP, init_xavier, share_initial_biases
from models.layers.position import box_sine_embedding
from models.registry import PARTS
from models.structures import Detections, Queries, TokenSet


@PARTS.register
class ConditionalDecoder(nn.Module):
    """Conditional cross-attention (Conditional DETR, section 3.3).

    Args:
        d_model: channels.
        first_layer: makes the first layer, in which the queries have no content yet.
        layer: makes a further layer.
        head: makes the head that all layers share; its boxes are added to the reference points.
        num_layers: how many layers, the first included.
    """

    def __init__(
        self,
        d_model: int,
        first_layer: Callable[[], nn.Module],
        layer: Callable[[], nn.Module],
        head: Callable[[], nn.Module],
        num_layers: int = 6,
    ):
        super().__init__()
        self.features = d_model // 2
        self.layers = nn.ModuleList([first_layer(), *(layer() for _ in range(num_layers - 1))])
        share_initial_biases(self.layers)
        self.norm = nn.LayerNorm(d_model)
        self.ref_point_head = MLP(d_model, d_model, 2)
        self.query_scale = MLP(d_model, d_model, d_model)
        self.head = head()
        init_xavier(self.ref_point_head)
        init_xavier(self.query_scale)

    def forward(self, queries: Queries, memory: TokenSet, supervised: bool = True) -> tuple[Detections, dict]:
        """Predicts after every layer: (N, B, Q, ...). Vectors are normed on their way to the head only.

        The references are read off the queries' positions once and stay. In every layer but the first, their encoding
        is scaled by what the queries hold by then.
        """
        hidden, mask, after = queries.content, queries.attention_mask(), []
        reference = self.ref_point_head(queries.pos).float().sigmoid()  # (B, Q, 2): x, y
        place = spatial = box_sine_embedding(reference, order=(1, 0), features=self.features)
        for layer in self.layers:
            if after:
                spatial = place * self.query_scale(hidden)
            hidden = layer(hidden, queries.pos, spatial, memory, mask)
            after.append(hidden)
        return self.head(self.norm(torch.stack(after)), reference), {}
