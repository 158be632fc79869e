"""HGNetv2 (PaddlePaddle, 2023), as D-FINE starts from it.

Modules bear the names of the authors' checkpoints, and of timm's, which therefore load as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.basic import Recomputable
from models.layers.conv_norm import NORMS as ALL_NORMS
from models.layers.conv_norm import Maps, conv_norm, gradients_of
from models.layers.convolution import max_pool2d
from models.layers.hooks import has_hooks
from models.registry import PARTS
from util.config import nearest_name

NORMS = {name: ALL_NORMS[name] for name in ("frozen", "batch", "sync")}
"""Group norm has no groups in widths of 8."""

RELEASE = "https://github.com/Peterande/storage/releases/download/dfinev1.0/"


@dataclass(frozen=True)
class Arch:
    """Widths of the stem, within and after; for every stage widths within and after its blocks, and how many blocks.

    Attributes:
        layers: of every block.
    """

    stem: tuple[int, int]
    stages: tuple[tuple[int, int, int], ...]
    layers: int


ARCHS = {
    "B0": Arch((16, 16), ((16, 64, 1), (32, 256, 1), (64, 512, 2), (128, 1024, 1)), 3),
    "B1": Arch((24, 32), ((32, 64, 1), (48, 256, 1), (96, 512, 2), (192, 1024, 1)), 3),
    "B2": Arch((24, 32), ((32, 96, 1), (64, 384, 1), (128, 768, 3), (256, 1536, 1)), 4),
    "B3": Arch((24, 32), ((32, 128, 1), (64, 512, 1), (128, 1024, 3), (256, 2048, 1)), 5),
    "B4": Arch((32, 48), ((48, 128, 1), (96, 512, 1), (192, 1024, 3), (384, 2048, 1)), 6),
    "B5": Arch((32, 64), ((64, 128, 1), (128, 512, 2), (256, 1024, 5), (512, 2048, 2)), 6),
    "B6": Arch((48, 96), ((96, 192, 2), (192, 512, 3), (384, 1024, 6), (768, 2048, 3)), 6),
}


@dataclass(frozen=True)
class Style:
    """What all convolutions of a network have in common.

    Attributes:
        norm: makes the norm of so many channels.
        affine: whether a learnable scale and bias follow every activation.
    """

    norm: Callable[[int], nn.Module]
    affine: bool


class Affine(nn.Module):
    """A learnable scale and bias, of all channels together; without gradients in place."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if torch.is_grad_enabled():
            return self.scale * x + self.bias
        return x.mul_(self.scale).add_(self.bias)


class Unit(nn.Module):
    """A convolution without bias and its norm; a ReLU unless `activates` is False, and what is affine after it."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        style: Style,
        stride: int = 1,
        groups: int = 1,
        activates: bool = True,
    ):
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = style.norm(channels)
        self.activation = "relu" if activates else None
        self.lab = Affine() if activates and style.affine else nn.Identity()

    def forward(self, x: Maps) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if isinstance(self.lab, Affine) and not has_hooks(self.lab):
            return conv_norm(self.conv, self.bn, x, self.activation, affine=(self.lab.scale, self.lab.bias))
        return self.lab(conv_norm(self.conv, self.bn, x, self.activation))


class Stem(nn.Module):
    """Two ways at stride 2, convolutions and the largest of four pixels, joined and brought to stride 4."""

    def __init__(self, within: int, channels: int, style: Style):
        super().__init__()
        self.stem1 = Unit(3, within, 3, style, stride=2)
        self.stem2a = Unit(within, within // 2, 2, style)
        self.stem2b = Unit(within // 2, within, 2, style)
        self.stem3 = Unit(2 * within, within, 3, style, stride=2)
        self.stem4 = Unit(within, channels, 1, style)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 4, W / 4), sides rounded up."""
        x = _padded(self.stem1(images))
        convolved = self.stem2b(_padded(self.stem2a(x)))
        return self.stem4(self.stem3(torch.cat([max_pool2d(x, 2, stride=1), convolved], 1)))


def _padded(x: Tensor) -> Tensor:
    """Zeros at the right and at the bottom, for kernels of 2x2."""
    return F.pad(x, (0, 1, 0, 1))


class LightLayer(nn.Module):
    """A 1x1 convolution and one by channel."""

    def __init__(self, in_channels: int, channels: int, kernel: int, style: Style):
        super().__init__()
        self.conv1 = Unit(in_channels, channels, 1, style, activates=False)
        self.conv2 = Unit(channels, channels, kernel, style, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return self.conv2(self.conv1(x))


class Block(Recomputable):
    """Layers in a row, and 1x1 convolutions that join what all of them answered.

    Args:
        in_channels, within, out_channels: widths of the input, of the layers and of the answer.
        layers: how many.
        light: whether they are a 1x1 and a 5x5 convolution by channel, else one of 3x3.
        adds: whether the block's input is added to its answer.
        style: of the convolutions.
    """

    def __init__(
        self, in_channels: int, within: int, out_channels: int, layers: int, light: bool, adds: bool, style: Style
    ):
        super().__init__()
        widths = [in_channels, *[within] * layers]
        self.layers = nn.ModuleList(
            LightLayer(width, within, 5, style) if light else Unit(width, within, 3, style) for width in widths[:-1]
        )
        self.aggregation = nn.Sequential(
            Unit(sum(widths), out_channels // 2, 1, style), Unit(out_channels // 2, out_channels, 1, style)
        )
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        answer = self.aggregation(maps)
        return answer + x if self.adds else answer


class Stage(nn.Module):
    """Blocks in a row, at half the resolution of the input if it `shrinks`; the arguments else are those of a block."""

    def __init__(
        self,
        in_channels: int,
        within: int,
        channels: int,
        blocks: int,
        shrinks: bool,
        layers: int,
        light: bool,
        style: Style,
    ):
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if shrinks:
            self.downsample = Unit(in_channels, in_channels, 3, style, stride=2, groups=in_channels, activates=False)
        widths = [in_channels, *[channels] * (blocks - 1)]
        self.blocks = nn.Sequential(
            *(Block(width, within, channels, layers, light, i > 0, style) for i, width in enumerate(widths))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), sides rounded up."""
        return self.blocks(self.downsample(x))


@PARTS.register
class HGNetv2(nn.Module):
    """HGNetv2 without its classifier.

    Args:
        arch: "B0" to "B6"; D-FINE N and S have B0, M has B2, L has B4, X has B5.
        affine: whether a learnable scale and bias follow every activation, as in the authors' weights of B0 to B3.
        stages: which of the stages 1 to 4 (strides 4, 8, 16, 32, sides rounded up) are returned.
        norm: "frozen" (batch norm as four constants, as in D-FINE L and X), "batch" (in N, S and M) or "sync" (batch
            norm over all processes).
        frozen: how many leading pieces do not train: 0 none (as in D-FINE N, S and M), 1 the stem (in L and X), 2 the
            stem and stage 1, and so on.
        pretrained: "imagenet" (the weights that D-FINE starts from); a URL or file of these, of a detector of theirs or
            of a hgnetv2 of timm; or None. Only remembered here; main.py fetches `pretrained_source` and hands it to
            `load_pretrained`.
    """

    def __init__(
        self,
        arch: str = "B0",
        affine: bool = False,
        stages: tuple[int, ...] = (2, 3, 4),
        norm: str = "frozen",
        frozen: int = 1,
        pretrained: str | None = None,
    ):
        super().__init__()
        if arch not in ARCHS:
            raise ValueError(f"arch='{arch}' is none of HGNetv2's; {nearest_name(arch, ARCHS)}")
        if norm not in NORMS:
            raise ValueError(f"norm='{norm}' is none of {', '.join(NORMS)}")
        if not stages or not set(stages) <= {1, 2, 3, 4}:
            raise ValueError(f"stages={stages} must be some of 1, 2, 3, 4")
        spec, style = ARCHS[arch], Style(NORMS[norm], affine)
        self.arch, self.returned, self.pretrained = arch, tuple(sorted(stages)), pretrained
        self.channels = [spec.stages[stage - 1][1] for stage in self.returned]
        self.stem = Stem(*spec.stem, style)
        self.stages, in_channels = nn.ModuleList(), spec.stem[1]
        for stage, (within, channels, blocks) in enumerate(spec.stages[: self.returned[-1]]):
            self.stages.append(
                Stage(in_channels, within, channels, blocks, stage > 0, spec.layers, light=stage > 1, style=style)
            )
            in_channels = channels
        for piece in [self.stem, *self.stages][:frozen]:
            piece.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, C, H / stride, W / stride) map per stage."""
        with gradients_of(images, self.stem):
            x = self.stem(images)
        maps = []
        for number, stage in enumerate(self.stages, start=1):
            with gradients_of(x, stage):
                x = stage(x)
            if number in self.returned:
                maps.append(x)
        return maps

    def pretrained_source(self) -> str | None:
        """URL or path of the weights that the config asks for."""
        return f"{RELEASE}PPHGNetV2_{self.arch}_stage1.pth" if self.pretrained == "imagenet" else self.pretrained

    def load_pretrained(self, state_dict: dict[str, Tensor]):
        """Takes weights under the authors' key names; classifier and unused stages are skipped.

        Raises:
            RuntimeError: they are of another network.
        """
        whole = {key: value for key, value in state_dict.items() if key.startswith("backbone.")}
        weights = {key.removeprefix("backbone."): value for key, value in (whole or state_dict).items()}
        unused = ("head.", *(f"stages.{stage}." for stage in range(self.returned[-1], 4)))
        self.load_state_dict({key: value for key, value in weights.items() if not key.startswith(unused)})
