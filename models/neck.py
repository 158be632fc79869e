"""From the backbone's maps to the tokens that a transformer reads."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.layers.conv_norm import ConvNorm
from models.registry import PARTS
from models.structures import Pyramid
from util.tensors.image_batch import ImageBatch


@PARTS.register
class PyramidNeck(nn.Module):
    """Projects every map to one width, adds coarser levels, and flattens all to a pyramid (Deformable DETR, A.2).

    Args:
        in_channels: widths of the backbone's maps.
        d_model: width of the tokens.
        num_levels: levels in all. Those beyond the backbone's maps come from a 3x3 stride-2 convolution: the first
            reads the backbone's last map as it is, each further one the level before.
        position: makes the position encoding.
    """

    def __init__(self, in_channels: list[int], d_model: int, num_levels: int, position: Callable[[], nn.Module]):
        super().__init__()
        if num_levels < len(in_channels):
            raise ValueError(f"num_levels={num_levels} is less than the backbone's {len(in_channels)} maps")
        extra = [in_channels[-1], *[d_model] * num_levels][: num_levels - len(in_channels)]
        convolutions = [nn.Conv2d(channels, d_model, 1) for channels in in_channels]
        convolutions += [nn.Conv2d(channels, d_model, 3, stride=2, padding=1) for channels in extra]
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)
        self.proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, d_model)) for conv in convolutions)
        self.position = position()
        self.level_embed = nn.Parameter(torch.randn(num_levels, d_model))

    def forward(self, maps: list[Tensor], batch: ImageBatch) -> Pyramid:
        """Maps (B, C_l, H_l, W_l), finest first, and the images that they were made of -> the pyramid."""
        levels = [proj(x) for proj, x in zip(self.proj[: len(maps)], maps, strict=True)]
        source = maps[-1]
        for proj in self.proj[len(maps) :]:
            source = proj(source)
            levels.append(source)
        shapes = tuple((x.shape[-2], x.shape[-1]) for x in levels)
        extents = [batch.extents(*shape) for shape in shapes]
        places = [(extent, shape, source.device) for extent, shape in zip(extents, shapes, strict=True)]
        pos = [
            self.position(*place).flatten(2).transpose(1, 2) + embed
            for place, embed in zip(places, self.level_embed, strict=True)
        ]
        return Pyramid.of_maps(levels, torch.cat(pos, 1), tuple(zip(*extents, strict=True)))


@PARTS.register
class ConvNormNeck(nn.Module):
    """Projects every map with a 1x1 convolution and a norm; adds neither levels nor positions (RT-DETR, section 4.2).

    Args:
        in_channels: widths of the backbone's maps.
        d_model: width of the tokens.
        num_levels: as many as there are maps.
    """

    def __init__(self, in_channels: list[int], d_model: int, num_levels: int):
        super().__init__()
        if num_levels != len(in_channels):
            raise ValueError(f"num_levels={num_levels}, but the backbone returns {len(in_channels)} maps")
        self.proj = nn.ModuleList(ConvNorm(channels, d_model, 1) for channels in in_channels)

    def forward(self, maps: list[Tensor], batch: ImageBatch) -> Pyramid:
        """Maps (B, C_l, H_l, W_l), finest first, and the images that they were made of -> the pyramid."""
        levels = [proj(x) for proj, x in zip(self.proj, maps, strict=True)]
        extents = [batch.extents(x.shape[-2], x.shape[-1]) for x in levels]
        return Pyramid.of_maps(levels, None, tuple(zip(*extents, strict=True)))


@PARTS.register
class SingleMapNeck(nn.Module):
    """Projects one map with a 1x1 convolution and flattens it to a pyramid of one level (DETR, section 3.2).

    Args:
        in_channels: widths of the backbone's maps, of which there must be one.
        d_model: width of the tokens.
        position: makes the position encoding.
    """

    def __init__(self, in_channels: list[int], d_model: int, position: Callable[[], nn.Module]):
        super().__init__()
        if len(in_channels) != 1:
            raise ValueError(f"reads one map, the backbone returns {len(in_channels)}: name its last stage alone")
        self.proj = nn.Conv2d(in_channels[0], d_model, 1)
        self.position = position()

    def forward(self, maps: list[Tensor], batch: ImageBatch) -> Pyramid:
        """The map (B, C, H, W) and the images that it was made of -> the pyramid."""
        projected = self.proj(maps[0])
        shape = (projected.shape[-2], projected.shape[-1])
        extents = batch.extents(*shape)
        pos = self.position(extents, shape, projected.device).flatten(2).transpose(1, 2)
        return Pyramid.of_maps([projected], pos, tuple((extent,) for extent in extents))
