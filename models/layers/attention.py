"""Dense attention: PyTorch's, and one whose queries, keys and values are projected by the layer that owns it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.basic import init_xavier
from models.layers.linear import Linear, Projecting
from models.ops.attention import attend as attend_rows
from models.ops.attention import has_attention
from models.ops.dropout import dropout as drop
from models.ops.dropout import has_dropout
from models.ops.linear import linear


def attend(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention.

    Args:
        query, key, value: (B, heads, Q, c), (B, heads, S, c) and (B, heads, S, d).
        blocked: bool, broadcastable to (B, heads, Q, S), True where the query may not see the key, or None.
        dropout: the share of the attention weights that is dropped.

    Returns:
        (B, heads, Q, d).
    """
    if not has_dropout(query, dropout):
        mask = None if blocked is None else ~blocked
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # PyTorch keeps them, too, where it drops some
    if blocked is not None:
        logits = logits.masked_fill(blocked, -torch.inf)
    return drop(logits.softmax(-1), dropout) @ value


class MultiheadAttention(Projecting, nn.MultiheadAttention):
    """torch.nn.MultiheadAttention, batch first, whose products are those of `Linear`.

    Args:
        d_model, num_heads: channels and attention heads.
        dropout: of the attention weights.
    """

    projection = "out_proj"

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0):
        super().__init__(d_model, num_heads, dropout, batch_first=True)
        projection = nn.utils.skip_init(Linear, d_model, d_model)  # draws no random numbers
        projection.weight, projection.bias = self.out_proj.weight, self.out_proj.bias
        self.out_proj = projection

    def forward(  # type: ignore[override]  # by keyword alone what PyTorch takes by position, too
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False, **named
    ) -> tuple[Tensor, Tensor | None]:
        """The answer (B, Q, C) and, where asked for, the weights; arguments as in torch.nn.MultiheadAttention."""
        if need_weights:
            return nn.MultiheadAttention.forward(self, query, key, value, need_weights=True, **named)
        return super().forward(query, key, value, **named)

    def look_up(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """What the heads find.

        Args:
            query: (B, Q, C).
            key, value: (B, S, C). What stands for two of the three is projected once.
            key_padding_mask: (B, S) bool, True where nobody may look.
            attn_mask: (Q, S) bool, True where the row's query may not see the column's key.

        Returns:
            (B, Q, C), before the projection, and None for weights.
        """
        if query is key:
            q, k = self._project(query, 0, 2).chunk(2, -1)
        else:
            q, k = self._project(query, 0, 1), self._project(key, 1, 2)
        v = self._project(value, 2, 3)
        drops = self.training and self.dropout > 0
        if attn_mask is None and not drops and has_attention(q, k, v, self.num_heads):
            return attend_rows(q, k, v, key_padding_mask, self.num_heads), None
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        blocked = None if key_padding_mask is None else key_padding_mask[:, None, None]
        if attn_mask is not None:
            blocked = attn_mask if blocked is None else blocked | attn_mask
        found = attend(q, k, v, blocked, self.dropout if self.training else 0.0)
        return found.transpose(1, 2).flatten(2), None

    def _project(self, x: Tensor, begin: int, end: int) -> Tensor:
        """By the packed projections `begin` to `end` of query, key and value."""
        rows = slice(begin * self.embed_dim, end * self.embed_dim)
        return linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])


class ProjectedAttention(nn.Module):
    """Scaled dot-product attention of heads that are projected already, and the projection of the answer.

    A layer that says itself what a query and a key are made of (Conditional DETR, section 3.3) needs no projection but
    the last one here. Keys may be wider than values.

    Args:
        d_model: channels of the answer, and of the values of all heads together.
        num_heads: attention heads; divides d_model.
        dropout: of the attention weights.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.1):
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of num_heads={num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.out_proj = Linear(d_model, d_model)
        init_xavier(self.out_proj)
        nn.init.zeros_(self.out_proj.bias)

    def heads(self, *parts: Tensor) -> Tensor:
        """Tensors (B, N, C_i) -> (B, heads, N, sum of C_i / heads): every head holds its share of each of them."""
        return torch.cat([part.unflatten(-1, (self.num_heads, -1)) for part in parts], -1).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None) -> Tensor:
        """Attends.

        Args:
            query, key: (B, heads, Q, c) and (B, heads, S, c), as `heads` makes them.
            value: (B, heads, S, d_model / heads).
            blocked: bool, broadcastable to (B, heads, Q, S), True where the query may not see the key, or None.

        Returns:
            (B, Q, d_model).
        """
        answer = attend(query, key, value, blocked, self.dropout if self.training else 0.0)
        return self.out_proj(answer.transpose(1, 2).flatten(2))
