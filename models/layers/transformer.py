"""Encoder and decoder layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.layers.attention import MultiheadAttention
from models.layers.basic import Recomputable, init_xavier
from models.layers.dropout import Dropout
from models.layers.linear import Linear, attend_add_norm, check_activation, feed_forward
from models.registry import PARTS
from models.structures import Pyramid, Sampling, split_tokens


@PARTS.register
class DeformableEncoderLayer(Recomputable):
    """Deformable attention, then a feed-forward network, each followed by its residual and norm.

    Args:
        d_model: channels.
        attention: makes the attention, MSDeformAttn or one that answers the same call.
        ffn_dim: width of the feed-forward network.
        dropout: after the attention, inside and after the network.
    """

    def __init__(self, d_model: int, attention: Callable[[], nn.Module], ffn_dim: int = 1024, dropout: float = 0.1):
        super().__init__()
        self.self_attn = attention()
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, ffn_dim)
        self.linear2 = Linear(ffn_dim, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        init_xavier(self.linear1)
        init_xavier(self.linear2)

    def forward(self, tokens: Tensor, pos: Tensor, reference: Tensor, memory: Pyramid) -> Tensor:
        """Updates the tokens that ask.

        Args:
            tokens, pos: (B, Q, C), the asking tokens and their positions.
            reference: (B, Q, L, 2), their centres on every level.
            memory: the tokens that answer.

        Returns:
            (B, Q, C).
        """
        return self.feed_forward(self.attend(tokens, pos, reference, memory), memory)

    def attend(self, tokens: Tensor, pos: Tensor, reference: Tensor, memory: Pyramid) -> Tensor:
        """The first half of the layer: attention, residual, norm."""
        answer, _ = attend_add_norm(self.self_attn, tokens, self.norm1, self.dropout, tokens + pos, reference, memory)
        return answer

    def feed_forward(self, tokens: Tensor, memory: Pyramid) -> Tensor:
        """The second half: network, residual, norm."""
        return feed_forward(tokens, self.linear1, self.linear2, self.norm2, self.dropout)


@PARTS.register
class SplitFFNEncoderLayer(DeformableEncoderLayer):
    """The layer of Lite-DETR in which all tokens ask: fine tokens pass a narrow feed-forward network of their own.

    Args:
        high_levels: how many of the coarsest levels pass the wide network.
        low_ffn_dim: width of the narrow network.
    """

    def __init__(
        self,
        d_model: int,
        attention: Callable[[], nn.Module],
        high_levels: int,
        ffn_dim: int = 2048,
        low_ffn_dim: int = 256,
        dropout: float = 0.0,
    ):
        super().__init__(d_model, attention, ffn_dim, dropout)
        self.high_levels = high_levels
        self.linear12 = Linear(d_model, low_ffn_dim)
        self.linear22 = Linear(low_ffn_dim, d_model)
        self.norm22 = nn.LayerNorm(d_model)
        init_xavier(self.linear12)
        init_xavier(self.linear22)

    def feed_forward(self, tokens: Tensor, memory: Pyramid) -> Tensor:
        """Fine tokens through the narrow network, coarse ones through the wide one."""
        fine, coarse = split_tokens(tokens, memory.coarsest(self.high_levels).start)
        fine = feed_forward(fine, self.linear12, self.linear22, self.norm22, self.dropout)
        return torch.cat([fine, super().feed_forward(coarse, memory)], 1)


@PARTS.register
class DeformableDecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention into the memory, feed-forward network.

    The norms are numbered as in the papers' checkpoints: norm2 follows the self-attention, norm1 the cross-attention.

    Args:
        d_model, num_heads: channels, and heads of the self-attention.
        attention: makes the cross-attention.
        ffn_dim, dropout: as in the encoder layer.
        activation: of the feed-forward network, "relu" or "silu" (DEIM).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        attention: Callable[[], nn.Module],
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
    ):
        super().__init__()
        check_activation(activation)
        self.self_attn = MultiheadAttention(d_model, num_heads, dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.cross_attn = attention()
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, ffn_dim)
        self.linear2 = Linear(ffn_dim, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout, self.activation = Dropout(dropout), activation
        self._reset_parameters()

    def _reset_parameters(self):
        for module in (self.self_attn, self.linear1, self.linear2):
            init_xavier(module)

    def forward(
        self, content: Tensor, pos: Tensor, reference: Tensor, memory: Pyramid, mask: Tensor | None
    ) -> tuple[Tensor, Sampling]:
        """Updates the queries.

        Args:
            content, pos: (B, Q, C).
            reference: (B, Q, L, 2 or 4) points or boxes relative to each padded map.
            memory: what the encoder made.
            mask: (Q, Q) bool, True where the row's query may not see the column's.

        Returns:
            (B, Q, C), and where the cross-attention looked.
        """
        query = content + pos
        asked = (query, query, content)
        content, _ = attend_add_norm(self.self_attn, content, self.norm2, self.dropout, *asked, attn_mask=mask)
        content, sampling = attend_add_norm(
            self.cross_attn, content, self.norm1, self.dropout, content + pos, reference, memory
        )
        network = self.linear1, self.linear2, self.norm3, self.dropout, self.activation
        return feed_forward(content, *network), sampling.computed


@PARTS.register
class PlainDeformableDecoderLayer(DeformableDecoderLayer):
    """The same with matrices that start as PyTorch's layers do (RT-DETR).

    Args:
        d_model, num_heads, attention, ffn_dim, dropout, activation: as there.
    """

    def _reset_parameters(self):
        pass


@PARTS.register
class PlainDeformableDecoderLayerV2(PlainDeformableDecoderLayer):
    """The same whose feed-forward network alone starts xavier-uniform (RT-DETRv2).

    Args:
        d_model, num_heads, attention, ffn_dim, dropout, activation: as there.
    """

    def _reset_parameters(self):
        init_xavier(self.linear1)
        init_xavier(self.linear2)


class Gate(nn.Module):
    """Weighs what a query was and what it has found, channel by channel, and norms the sum (D-FINE, appendix A.1)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.gate = Linear(2 * d_model, 2 * d_model)
        self.norm = nn.LayerNorm(d_model)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, content: Tensor, found: Tensor) -> Tensor:
        """(B, Q, C) twice -> (B, Q, C)."""
        kept, taken = self.gate(torch.cat([content, found], -1)).sigmoid().chunk(2, -1)
        return self.norm(kept * content + taken * found)


@PARTS.register
class GatedDecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention behind a gate, feed-forward network (D-FINE, A.1).

    In the paper's code the last norm's input is cut to what float16 holds, which is far beyond what occurs.

    Args:
        d_model, num_heads: channels, and heads of the self-attention.
        attention: makes the cross-attention.
        ffn_dim, dropout: as in the encoder layer.
        activation: of the feed-forward network, "relu" or "silu" (DEIM).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        attention: Callable[[], nn.Module],
        ffn_dim: int = 1024,
        dropout: float = 0.0,
        activation: str = "relu",
    ):
        super().__init__()
        check_activation(activation)
        self.self_attn = MultiheadAttention(d_model, num_heads, dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.cross_attn = attention()
        self.gateway = Gate(d_model)
        self.linear1 = Linear(d_model, ffn_dim)
        self.linear2 = Linear(ffn_dim, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout, self.activation = Dropout(dropout), activation
        init_xavier(self.linear1)
        init_xavier(self.linear2)

    def forward(
        self, content: Tensor, pos: Tensor, reference: Tensor, memory: Pyramid, mask: Tensor | None
    ) -> tuple[Tensor, Sampling]:
        """Updates the queries; arguments and result as in DeformableDecoderLayer."""
        query = content + pos
        asked = (query, query, content)
        content, _ = attend_add_norm(self.self_attn, content, self.norm1, self.dropout, *asked, attn_mask=mask)
        found, sampling = self.cross_attn(content + pos, reference, memory)
        content = self.gateway(content, self.dropout(found))
        network = self.linear1, self.linear2, self.norm3, self.dropout, self.activation
        return feed_forward(content, *network), sampling.computed
