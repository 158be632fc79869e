"""RT-DETR's encoder: attention within the coarsest map, convolutions between the maps."""

from collections.abc import Callable

from torch import Tensor, nn

from models.layers.conv_norm import ConvNorm
from models.layers.convolution import joined
from models.registry import PARTS
from models.structures import Pyramid, TokenSet


@PARTS.register
class HybridEncoder(nn.Module):
    """AIFI on the coarsest map, then CCFM: down to the finest map and up again (RT-DETR, section 4.2).

    On the way down the projected coarser map is enlarged and fused with the finer one; on the way up the finer one is
    made coarser and fused with what was projected before. Padding is nothing to the attention, and zero in all maps
    that are fused and that go out; in the papers' code there is none.

    Args:
        width: channels of the maps that come in and of all that is computed here.
        d_model: channels of the tokens that go out.
        num_levels: maps.
        layer: makes an attention layer of the coarsest map.
        position: makes its position encoding.
        fusion: makes what fuses two maps, enlarging the first if need be: called with in_channels and out_channels.
        downsampling: makes what makes a map coarser: called with channels.
        num_layers: attention layers.
        lateral_activation: of the projection on the way down, None or "silu".
        project: whether a 1x1 convolution with its norm stands before what goes out. Needed where the widths differ.
    """

    def __init__(
        self,
        width: int,
        d_model: int,
        num_levels: int,
        layer: Callable[..., nn.Module],
        position: Callable[..., nn.Module],
        fusion: Callable[..., nn.Module],
        downsampling: Callable[..., nn.Module],
        num_layers: int = 1,
        lateral_activation: str | None = "silu",
        project: bool = True,
    ):
        super().__init__()
        if width != d_model and not project:
            raise ValueError(f"width={width} becomes d_model={d_model} by a projection alone: project=True")
        steps = range(num_levels - 1)
        self.layers = nn.ModuleList(layer(d_model=width) for _ in range(num_layers))
        self.position = position(d_model=width)
        self.lateral_convs = nn.ModuleList(ConvNorm(width, width, 1, activation=lateral_activation) for _ in steps)
        self.fpn_blocks = nn.ModuleList(fusion(in_channels=2 * width, out_channels=width) for _ in steps)
        self.downsample_convs = nn.ModuleList(downsampling(channels=width) for _ in steps)
        self.pan_blocks = nn.ModuleList(fusion(in_channels=2 * width, out_channels=width) for _ in steps)
        projections = (ConvNorm(width, d_model, 1) for _ in range(num_levels)) if project else ()
        self.output_proj = nn.ModuleList(projections)
        for projection in self.output_proj:
            nn.init.xavier_uniform_(projection.conv.weight)

    def forward(self, pyramid: Pyramid) -> tuple[Pyramid, dict]:
        """-> the pyramid with its tokens fused, and no detections."""
        maps = pyramid.maps()
        maps[-1] = self._attended(pyramid, maps[-1])
        levels = range(len(maps))
        for level, project, fuse in zip(levels[-2::-1], self.lateral_convs, self.fpn_blocks, strict=True):
            maps[level + 1] = project(maps[level + 1])  # and so it is read on the way up
            maps[level] = self._fused(pyramid, level, fuse, maps[level + 1], maps[level])
        for level, shrink, fuse in zip(levels[1:], self.downsample_convs, self.pan_blocks, strict=True):
            maps[level] = self._fused(pyramid, level, fuse, shrink(maps[level - 1]), maps[level])
        if self.output_proj:
            projected = (project(x) for project, x in zip(self.output_proj, maps, strict=True))
            maps = [pyramid.cleared(x, level) for level, x in enumerate(projected)]
        return Pyramid.of_maps(maps, None, pyramid.extents), {}

    def _attended(self, pyramid: Pyramid, x: Tensor) -> Tensor:
        """The coarsest map (B, C, H, W) after the attention layers."""
        shape, extents = pyramid.shapes[-1], tuple(levels[-1] for levels in pyramid.extents)
        pos = self.position(extents, shape, x.device).flatten(2).transpose(1, 2)
        memory = TokenSet(x.flatten(2).transpose(1, 2), pos, pyramid.padding[:, pyramid.coarsest(1)])
        for layer in self.layers:
            memory = memory.with_tokens(layer(memory))
        return memory.tokens.transpose(1, 2).unflatten(2, shape)

    @staticmethod
    def _fused(pyramid: Pyramid, level: int, fuse: nn.Module, *maps: Tensor) -> Tensor:
        """Of maps side by side, the first enlarged to the nearest pixel if need be; sides may be odd."""
        if pyramid.padded:
            maps = (pyramid.cleared(joined(maps), level),)
        return pyramid.cleared(fuse(*maps), level)
