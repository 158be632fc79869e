"""Dense attention whose queries, keys and values are projected by the layer that owns it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.basic import init_xavier


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
        self.out_proj = nn.Linear(d_model, d_model)
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
        dropout = self.dropout if self.training else 0.0
        mask = None if blocked is None else ~blocked
        answer = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(answer.transpose(1, 2).flatten(2))
