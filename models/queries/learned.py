"""Queries that are learned and the same for every image."""

import torch
from torch import Tensor, nn

from models.layers.linear import Linear
from models.registry import PARTS
from models.structures import Pyramid, Queries, QueryGroup, TokenSet


@PARTS.register
class LearnedPointQueries(nn.Module):
    """Deformable DETR's queries: position, content, and a reference point read off the position (section 4.2).

    Args:
        num_queries: how many.
        d_model: channels of position and of content.
    """

    def __init__(self, num_queries: int, d_model: int):
        super().__init__()
        self.groups = (QueryGroup("matching", num_queries),)
        self.embed = nn.Embedding(num_queries, 2 * d_model)
        self.reference_points = Linear(d_model, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Pyramid, targets: list[dict] | None) -> tuple[Queries, dict]:
        """The same queries for each of the B images."""
        pos, content = self.embed.weight.expand(memory.tokens.shape[0], -1, -1).chunk(2, -1)
        reference: Tensor = self.reference_points(pos).float().sigmoid()
        return Queries(content, pos, reference, self.groups), {}


@PARTS.register
class LearnedQueries(nn.Module):
    """DETR's queries: a learned position each; their content starts empty (DETR, section 3.2).

    Args:
        num_queries: how many.
        d_model: channels.
    """

    def __init__(self, num_queries: int, d_model: int):
        super().__init__()
        self.groups = (QueryGroup("matching", num_queries),)
        self.embed = nn.Embedding(num_queries, d_model)

    def forward(self, memory: TokenSet, targets: list[dict] | None) -> tuple[Queries, dict]:
        """The same queries for each of the B images."""
        pos = self.embed.weight.expand(memory.tokens.shape[0], -1, -1)
        return Queries(torch.zeros_like(pos), pos, None, self.groups), {}
