"""MPViT, multi-path vision transformer (Lee et al., 2022).

Modules bear the names of the authors' checkpoints, which therefore load as they are.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.basic import init_trunc_normal
from models.layers.factorized_attention import ConvPosition, FactorizedLayer, RelativePosition, tokens_to_map
from models.registry import PARTS
from util.config import nearest_name


@dataclass(frozen=True)
class Arch:
    """Widths of the four stages' input, layers of each of their paths, MLP ratio (table 1)."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratio: int = 4
    paths: tuple[int, ...] = (2, 3, 3, 3)


ARCHS = {
    "tiny": Arch((64, 96, 176, 216), (1, 2, 4, 1), mlp_ratio=2),
    "xsmall": Arch((64, 128, 192, 256), (1, 2, 4, 1)),
    "small": Arch((64, 128, 216, 288), (1, 3, 6, 3)),
    "base": Arch((128, 224, 368, 480), (1, 3, 8, 3)),
}

# Trained, so that the weights of ImageNet move on; their statistics are those of all processes, or of each alone.
NORMS = {"sync": nn.SyncBatchNorm, "batch": nn.BatchNorm2d}

TIED = re.compile(r".*\.MHCA_layers\.\d+\.(cpe|crpe|factoratt_crpe\.crpe)\.")
"""Entries of the authors' checkpoints that are second names of shared modules."""


def conv_norm(
    in_channels: int, channels: int, size: int = 1, stride: int = 1, groups: int = 1, fan_groups: int = 1
) -> nn.Conv2d:
    """A convolution without bias that rounds sides up; `fan_groups` divides the fan-out of its initial weights."""
    conv = nn.Conv2d(in_channels, channels, size, stride, size // 2, groups=groups, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 * fan_groups / (size * size * channels)))
    return conv


class ConvNorm(nn.Module):
    """Convolution and batch norm."""

    def __init__(self, in_channels: int, channels: int, norm: str, size: int = 1, stride: int = 1):
        super().__init__()
        self.conv = conv_norm(in_channels, channels, size, stride)
        self.bn = NORMS[norm](channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C', H', W') -> (B, C, H, W)."""
        return self.bn(self.conv(x))


class SeparableConv(nn.Module):
    """Depthwise 3x3 and 1x1 convolution, norm, Hardswish."""

    def __init__(self, channels: int, norm: str, stride: int):
        super().__init__()
        self.dwconv = conv_norm(channels, channels, 3, stride, groups=channels)
        self.pwconv = conv_norm(channels, channels)
        self.bn = NORMS[norm](channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H', W') -> (B, C, H, W)."""
        return F.hardswish(self.bn(self.pwconv(self.dwconv(x))))


class PatchEmbed(nn.Module):
    """What the paths of a stage read: each embeds the one before it, so that they see 3x3, 5x5, 7x7 (section 3.2)."""

    def __init__(self, channels: int, paths: int, norm: str, stride: int):
        super().__init__()
        self.patch_embeds = nn.ModuleList(
            nn.ModuleDict({"patch_conv": SeparableConv(channels, norm, stride=1 if i else stride)})
            for i in range(paths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H', W') -> a map (B, C, H, W) for every path."""
        maps = []
        for embed in self.patch_embeds:
            x = embed["patch_conv"](x)
            maps.append(x)
        return maps


class LocalBranch(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolution, added to their input (section 3.3)."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, norm)
        self.dwconv = conv_norm(channels, channels, 3, groups=channels, fan_groups=channels)
        self.norm = NORMS[norm](channels)
        self.conv2 = ConvNorm(channels, channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        inner = F.hardswish(self.conv1(x))
        return x + self.conv2(F.hardswish(self.norm(self.dwconv(inner))))


class Path(nn.Module):
    """Layers with factorised attention; they share their position convolutions."""

    def __init__(self, channels: int, depth: int, mlp_ratio: int):
        super().__init__()
        self.cpe = ConvPosition(channels)
        self.crpe = RelativePosition(channels)
        self.MHCA_layers = nn.ModuleList(FactorizedLayer(channels, mlp_ratio) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        shape = tuple(x.shape[-2:])
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.MHCA_layers:
            tokens = layer(tokens, shape, self.cpe, self.crpe)
        return tokens_to_map(tokens, shape)


class Stage(nn.Module):
    """The local branch beside the paths, joined by a 1x1 convolution (section 3.3, figure 3)."""

    def __init__(self, channels: int, out_channels: int, paths: int, depth: int, mlp_ratio: int, norm: str):
        super().__init__()
        self.mhca_blks = nn.ModuleList(Path(channels, depth, mlp_ratio) for _ in range(paths))
        self.InvRes = LocalBranch(channels, norm)
        self.aggregate = ConvNorm((paths + 1) * channels, out_channels, norm)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """A map (B, C, H, W) for every path -> (B, C_out, H, W)."""
        seen = [path(x) for path, x in zip(self.mhca_blks, maps, strict=True)]
        return F.hardswish(self.aggregate(torch.cat([self.InvRes(maps[0]), *seen], 1)))


@PARTS.register
class MPViT(nn.Module):
    """MPViT without its classifier: the maps after stages 2, 3 and 4, at strides 8, 16 and 32 (sides rounded up).

    Args:
        arch: "tiny", "xsmall", "small" or "base".
        norm: "sync" (batch norm over all processes) or "batch" (over each process's own images).
        pretrained: a file or URL of the authors' ImageNet weights, or None. Only remembered here; main.py fetches
            `pretrained_source` and hands it to `load_pretrained`.
    """

    def __init__(self, arch: str = "small", norm: str = "sync", pretrained: str | None = None):
        super().__init__()
        if arch not in ARCHS:
            raise ValueError(f"arch='{arch}' is none of MPViT's; {nearest_name(arch, ARCHS)}")
        if norm not in NORMS:
            raise ValueError(f"norm='{norm}' is none of {', '.join(NORMS)}")
        spec = ARCHS[arch]
        widths = spec.channels
        outputs = (*widths[1:], widths[-1])
        self.pretrained, self.channels = pretrained, list(outputs[1:])
        self.stem = nn.ModuleList(
            ConvNorm(below, channels, norm, size=3, stride=2)
            for below, channels in ((3, widths[0] // 2), (widths[0] // 2, widths[0]))
        )
        self.patch_embed_stages = nn.ModuleList(
            PatchEmbed(channels, paths, norm, stride=2 if i else 1)
            for i, (channels, paths) in enumerate(zip(widths, spec.paths, strict=True))
        )
        self.mhca_stages = nn.ModuleList(
            Stage(widths[i], outputs[i], spec.paths[i], spec.depths[i], spec.mlp_ratio, norm) for i in range(4)
        )
        init_trunc_normal(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> three maps (B, C_l, H_l, W_l), finest first."""
        x, maps = images, []
        for conv in self.stem:
            x = F.hardswish(conv(x))
        for embed, stage in zip(self.patch_embed_stages, self.mhca_stages, strict=True):
            x = stage(embed(x))
            maps.append(x)
        return maps[1:]

    def pretrained_source(self) -> str | None:
        """URL or path of the weights that the config asks for."""
        return self.pretrained

    def load_pretrained(self, state_dict: dict[str, Tensor]):
        """Takes weights under the authors' key names; the classifier is skipped."""
        self.load_state_dict(
            {k: v for k, v in state_dict.items() if not k.startswith("cls_head.") and not TIED.match(k)}
        )
