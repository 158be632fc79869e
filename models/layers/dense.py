"""Encoder and decoder layers that attend to all tokens: those of DETR and of Conditional DETR."""

import math

from torch import Tensor, nn

from models.layers.attention import MultiheadAttention, ProjectedAttention
from models.layers.basic import Recomputable, init_xavier
from models.layers.dropout import Dropout, add_dropped
from models.layers.linear import Linear, attend_add_norm, feed_forward, linear_add_norm, linear_gelu
from models.registry import PARTS
from models.structures import TokenSet


@PARTS.register
class DenseEncoderLayer(Recomputable):
    """Self-attention among all tokens, then a feed-forward network, each followed by its residual and norm.

    DETR, appendix A.3. Positions are added to queries and keys, not to values.

    Args:
        d_model, num_heads: channels and attention heads.
        ffn_dim: width of the feed-forward network.
        dropout: of the attention weights, after the attention, inside and after the network.
    """

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, num_heads, dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, ffn_dim)
        self.linear2 = Linear(ffn_dim, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        init_xavier(self)

    def forward(self, memory: TokenSet) -> Tensor:
        """Updates every token: (B, S, C)."""
        query = memory.tokens + memory.pos
        asked = (query, query, memory.tokens)
        tokens, _ = attend_add_norm(
            self.self_attn, memory.tokens, self.norm1, self.dropout, *asked, key_padding_mask=memory.padding
        )
        return self.feed_forward(tokens)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """The second half of the layer: network, residual, norm."""
        return feed_forward(tokens, self.linear1, self.linear2, self.norm2, self.dropout)


@PARTS.register
class GELUEncoderLayer(DenseEncoderLayer):
    """The same with GELU in its network, and matrices that start as PyTorch's layers do: RT-DETR's AIFI, section 4.2.

    Args:
        d_model, num_heads, ffn_dim, dropout: as there.
    """

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int = 1024, dropout: float = 0.0):
        super().__init__(d_model, num_heads, ffn_dim, dropout)
        for linear in (self.self_attn.out_proj, self.linear1, self.linear2):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """The second half of the layer: network, residual, norm."""
        hidden = self.dropout(linear_gelu(self.linear1, tokens))
        return linear_add_norm(self.linear2, hidden, tokens, self.norm2, self.dropout)


@PARTS.register
class DenseDecoderLayer(nn.Module):
    """Self-attention among the queries, attention to all tokens, feed-forward network (DETR, appendix A.3).

    Args:
        d_model, num_heads, ffn_dim, dropout: as in the encoder layer.
    """

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, num_heads, dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.multihead_attn = MultiheadAttention(d_model, num_heads, dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, ffn_dim)
        self.linear2 = Linear(ffn_dim, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        init_xavier(self)

    def forward(self, content: Tensor, pos: Tensor, memory: TokenSet, mask: Tensor | None) -> Tensor:
        """Updates the queries.

        Args:
            content, pos: (B, Q, C).
            memory: what the encoder made.
            mask: (Q, Q) bool, True where the row's query may not see the column's.

        Returns:
            (B, Q, C).
        """
        query = content + pos
        asked = (query, query, content)
        content, _ = attend_add_norm(self.self_attn, content, self.norm1, self.dropout, *asked, attn_mask=mask)
        asked = (content + pos, memory.tokens + memory.pos, memory.tokens)
        content, _ = attend_add_norm(
            self.multihead_attn, content, self.norm2, self.dropout, *asked, key_padding_mask=memory.padding
        )
        return feed_forward(content, self.linear1, self.linear2, self.norm3, self.dropout)


@PARTS.register
class ConditionalDecoderLayer(nn.Module):
    """A decoder layer whose cross-attention compares content with content and place with place.

    Conditional DETR, section 3.3: every head's query and key are a content half beside a spatial half, so that their
    product is the sum of the two comparisons.

    Args:
        d_model, num_heads, ffn_dim, dropout: as in DenseDecoderLayer.
    """

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.sa_qcontent_proj = Linear(d_model, d_model)
        self.sa_qpos_proj = Linear(d_model, d_model)
        self.sa_kcontent_proj = Linear(d_model, d_model)
        self.sa_kpos_proj = Linear(d_model, d_model)
        self.sa_v_proj = Linear(d_model, d_model)
        self.self_attn = ProjectedAttention(d_model, num_heads, dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.ca_qcontent_proj = Linear(d_model, d_model)
        self.ca_qpos_sine_proj = Linear(d_model, d_model)
        self.ca_kcontent_proj = Linear(d_model, d_model)
        self.ca_kpos_proj = Linear(d_model, d_model)
        self.ca_v_proj = Linear(d_model, d_model)
        self.cross_attn = ProjectedAttention(d_model, num_heads, dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, ffn_dim)
        self.linear2 = Linear(ffn_dim, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        init_xavier(self)

    def forward(self, content: Tensor, pos: Tensor, spatial: Tensor, memory: TokenSet, mask: Tensor | None) -> Tensor:
        """Updates the queries.

        Args:
            content, pos: (B, Q, C).
            spatial: (B, Q, C), the encoded reference points, scaled by what the queries know.
            memory: what the encoder made.
            mask: (Q, Q) bool, True where the row's query may not see the column's.

        Returns:
            (B, Q, C).
        """
        content = self.norm1(add_dropped(self.dropout, self._ask_queries(content, pos, mask), content))
        content = self.norm2(add_dropped(self.dropout, self._ask_memory(content, pos, spatial, memory), content))
        return feed_forward(content, self.linear1, self.linear2, self.norm3, self.dropout)

    def _ask_queries(self, content: Tensor, pos: Tensor, mask: Tensor | None) -> Tensor:
        heads = self.self_attn.heads
        query = self.sa_qcontent_proj(content) + self.sa_qpos_proj(pos)
        key = self.sa_kcontent_proj(content) + self.sa_kpos_proj(pos)
        return self.self_attn(heads(query), heads(key), heads(self.sa_v_proj(content)), mask)

    def _ask_memory(self, content: Tensor, pos: Tensor, spatial: Tensor, memory: TokenSet) -> Tensor:
        heads = self.cross_attn.heads
        key_place = self.ca_kpos_proj(memory.pos)
        query, key = self.content_halves(content, pos, memory, key_place)
        return self.cross_attn(
            heads(query, self.ca_qpos_sine_proj(spatial)),
            heads(key, key_place),
            heads(self.ca_v_proj(memory.tokens)),
            memory.padding[:, None, None],
        )

    def content_halves(
        self, content: Tensor, pos: Tensor, memory: TokenSet, key_place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, Q, C) and (B, S, C): what the halves of query and key hold that compare content."""
        return self.ca_qcontent_proj(content), self.ca_kcontent_proj(memory.tokens)


@PARTS.register
class FirstConditionalDecoderLayer(ConditionalDecoderLayer):
    """The first layer of Conditional DETR: its content is still empty, so the content halves hold positions too."""

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int = 2048, dropout: float = 0.1):
        super().__init__(d_model, num_heads, ffn_dim, dropout)
        self.ca_qpos_proj = Linear(d_model, d_model)
        init_xavier(self.ca_qpos_proj)

    def content_halves(
        self, content: Tensor, pos: Tensor, memory: TokenSet, key_place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As in the other layers, plus the queries' and the tokens' positions."""
        query, key = super().content_halves(content, pos, memory, key_place)
        return query + self.ca_qpos_proj(pos), key + key_place
