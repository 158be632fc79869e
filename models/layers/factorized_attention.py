"""Attention whose cost grows linearly with the number of tokens, and positions by convolution (CoaT: Xu et al., 2021).

Tokens are (B, N, C). The last H * W of them are a map, row by row; those before it, if any, are class tokens and have
no position. So one set of layers serves CoaT, which has a class token, and MPViT, which has none.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from models.layers.basic import GELUMLP, Recomputable
from models.layers.linear import Linear


def tokens_to_map(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """The map among tokens (B, N, C), as (B, C, H, W)."""
    return tokens[:, tokens.shape[1] - shape[0] * shape[1] :].transpose(1, 2).unflatten(2, shape)


def with_map(tokens: Tensor, image: Tensor) -> Tensor:
    """The class tokens among tokens (B, N, C), followed by the map (B, C, H, W)."""
    image = image.flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, : tokens.shape[1] - image.shape[1]], image], 1)


class ConvPosition(nn.Module):
    """Position encoding that is a depthwise 3x3 convolution of the map, added to it (section 3.2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) -> tokens; class tokens stay as they are."""
        image = tokens_to_map(tokens, shape)
        return with_map(tokens, image + self.proj(image))


class RelativePosition(nn.Module):
    """Relative position encoding: values seen through depthwise convolutions, times the query (equation 6).

    Of eight heads the first two see 3x3 cells, the next three 5x5 and the last three 7x7.
    """

    WINDOWS = {3: 2, 5: 3, 7: 3}

    def __init__(self, channels: int):
        super().__init__()
        per_head = channels // sum(self.WINDOWS.values())
        self.splits = [heads * per_head for heads in self.WINDOWS.values()]
        self.conv_list = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width)
            for size, width in zip(self.WINDOWS, self.splits, strict=True)
        )

    def forward(self, q: Tensor, v: Tensor, shape: tuple[int, int]) -> Tensor:
        """Queries and values (B, N, C) -> (B, N, C), zero for class tokens."""
        parts = tokens_to_map(v, shape).split(self.splits, 1)
        seen = torch.cat([conv(part) for conv, part in zip(self.conv_list, parts, strict=True)], 1)
        seen = seen.flatten(2).transpose(1, 2)
        classes = v.shape[1] - seen.shape[1]
        return F.pad(q[:, classes:] * seen, (0, 0, classes, 0))


class FactorizedAttention(nn.Module):
    """Queries read a summary of all values, made once with keys soft-maxed over all tokens (equation 4)."""

    HEADS = 8

    def __init__(self, channels: int):
        super().__init__()
        self.scale = (channels // self.HEADS) ** -0.5
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)

    def forward(self, tokens: Tensor, shape: tuple[int, int], relative: RelativePosition) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        q, k, v = self.qkv(tokens).chunk(3, -1)
        queries, keys, values = (x.unflatten(-1, (self.HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        summary = keys.softmax(2).transpose(2, 3) @ values  # (B, heads, C / heads, C / heads)
        x = (queries @ summary).transpose(1, 2).flatten(2)
        # The scale stands on the first term alone: the position term takes the query as it is.
        return self.proj(self.scale * x + relative(q, v, shape))


class FactorizedLayer(Recomputable):
    """Position encoding, attention, MLP, each added to its input; norms before (figure 2).

    The convolutions belong to whoever repeats the layer, since all its copies share them.
    """

    def __init__(self, channels: int, mlp_ratio: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.factoratt_crpe = FactorizedAttention(channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = GELUMLP(channels, mlp_ratio * channels)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(
        self, tokens: Tensor, shape: tuple[int, int], position: ConvPosition, relative: RelativePosition
    ) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        tokens = position(tokens, shape)
        tokens = tokens + self.drop_path(self.factoratt_crpe(self.norm1(tokens), shape, relative))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))
