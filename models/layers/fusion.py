"""What a hybrid encoder fuses two neighbouring maps with, and how it makes a map coarser."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.conv_norm import ConvNorm, folded, is_folded
from models.layers.convolution import convolve, has_kernels, joined
from models.ops.maps import activated
from models.registry import PARTS


class RepConv(nn.Module):
    """SiLU of the sum of a 3x3 and a 1x1 convolution, each with its norm (RepVGG, section 3.3, without its identity).

    Without gradients both are one 3x3 convolution.

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        wide, narrow = (self.conv1.conv, self.conv1.norm), (self.conv2.conv, self.conv2.norm)
        if torch.is_grad_enabled() or not (is_folded(*wide, x) and is_folded(*narrow, x)):
            return F.silu(self.conv1(x) + self.conv2(x))
        (weight, bias), (middle, shift) = folded(*wide), folded(*narrow)
        weight[:, :, 1, 1] += middle[:, :, 0, 0]
        bias += shift
        if has_kernels(self.conv1.conv, x):
            return convolve(x, weight, bias, activation="silu")
        return activated(F.conv2d(x, weight, bias, padding=1), "silu")


@PARTS.register
class CSPFusion(nn.Module):
    """RT-DETR's fusion: a path of three RepConvs and one beside it, summed (RT-DETR, section 4.2, figure 4).

    Args:
        in_channels, out_channels: widths before and after.
        expansion: width of the paths, as a share of the last.
        num_blocks: RepConvs of the long path.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: float = 1.0, num_blocks: int = 3):
        super().__init__()
        width = int(out_channels * expansion)
        self.conv1 = ConvNorm(in_channels, width, 1, activation="silu")
        self.conv2 = ConvNorm(in_channels, width, 1, activation="silu")
        self.bottlenecks = nn.Sequential(*(RepConv(width) for _ in range(num_blocks)))
        same = width == out_channels
        self.conv3 = nn.Identity() if same else ConvNorm(width, out_channels, 1, activation="silu")

    def forward(self, *maps: Tensor) -> Tensor:
        """(B, C_i, H_i, W_i), in_channels in all, enlarged to the last -> (B, out_channels, H, W)."""
        x = _for(maps, self.conv1, self.conv2)
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


def _for(maps: Sequence[Tensor], *layers: ConvNorm) -> Tensor | Sequence[Tensor]:
    """The maps as they are where all layers take them so, else joined."""
    return maps if len(maps) > 1 and all(layer.takes(maps) for layer in layers) else joined(maps)


@PARTS.register
class ELANFusion(nn.Module):
    """D-FINE's fusion: half of the channels pass two CSPFusions, one after the other; all that there was is projected.

    GELAN with RepConvs (YOLOv9, section 4.2; D-FINE, appendix A.1).

    Args:
        in_channels, out_channels: widths before and after; the second is even.
        expansion: of the CSPFusions' width, as a share of `out_channels`, cut to an even number's half.
        num_blocks: RepConvs of each.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: float = 1.0, num_blocks: int = 3):
        super().__init__()
        width = round(expansion * out_channels // 2)
        self.cv1 = ConvNorm(in_channels, 2 * out_channels, 1, activation="silu")
        self.cv2 = self._path(out_channels, width, num_blocks)
        self.cv3 = self._path(width, width, num_blocks)
        self.cv4 = ConvNorm(2 * out_channels + 2 * width, out_channels, 1, activation="silu")

    @staticmethod
    def _path(in_channels: int, width: int, num_blocks: int) -> nn.Sequential:
        fusion = CSPFusion(in_channels, width, num_blocks=num_blocks)
        return nn.Sequential(fusion, ConvNorm(width, width, 3, activation="silu"))

    def forward(self, *maps: Tensor) -> Tensor:
        """(B, C_i, H_i, W_i), in_channels in all, enlarged to the last -> (B, out_channels, H, W)."""
        x = self.cv1(maps)
        third = self.cv2(x.chunk(2, 1)[1])
        return self.cv4((x, third, self.cv3(third)))


@PARTS.register
class ConvDownsampling(ConvNorm):
    """A 3x3 convolution of stride 2 with its norm and SiLU (RT-DETR).

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, activation="silu")


@PARTS.register
class SeparateDownsampling(nn.Module):
    """A 1x1 convolution among channels, then a 3x3 one of stride 2 within each (YOLOv10's SCDown; D-FINE).

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.cv1 = ConvNorm(channels, channels, 1)
        self.cv2 = ConvNorm(channels, channels, 3, stride=2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2), rounded up."""
        return self.cv2(self.cv1(x))
