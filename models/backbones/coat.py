"""CoaT and CoaT-Lite, co-scale conv-attentional image transformers (Xu et al., 2021).

Modules bear the names of the authors' checkpoints, which therefore load as they are.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from models.layers.basic import GELUMLP, Recomputable, init_trunc_normal
from models.layers.factorized_attention import (
    ConvPosition,
    FactorizedAttention,
    FactorizedLayer,
    RelativePosition,
    tokens_to_map,
)
from models.registry import PARTS
from util.config import nearest_name


@dataclass(frozen=True)
class Arch:
    """Widths, layers and MLP ratios of the four stages, and how many parallel blocks follow (table 1)."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    parallel: int = 0


ARCHS = {
    "tiny": Arch((152, 152, 152, 152), (2, 2, 2, 2), (4, 4, 4, 4), parallel=6),
    "mini": Arch((152, 216, 216, 216), (2, 2, 2, 2), (4, 4, 4, 4), parallel=6),
    "small": Arch((152, 320, 320, 320), (2, 2, 2, 2), (4, 4, 4, 4), parallel=6),
    "lite_tiny": Arch((64, 128, 256, 320), (2, 2, 2, 2), (8, 8, 4, 4)),
    "lite_mini": Arch((64, 128, 320, 512), (2, 2, 2, 2), (8, 8, 4, 4)),
    "lite_small": Arch((64, 128, 320, 512), (3, 4, 6, 3), (8, 8, 4, 4)),
    "lite_medium": Arch((128, 256, 320, 512), (3, 6, 10, 8), (4, 4, 4, 4)),
}

TIED = re.compile(r"(serial_blocks\d\.\d+|parallel_blocks\.\d+)\.(cpe|mlp[34]|factoratt_crpe\d?\.crpe)\.")
"""Entries of the authors' checkpoints that are second names of shared modules."""


class PatchEmbed(nn.Module):
    """Patches of `size` x `size` cells become one token; what is left over at the right and the bottom is dropped.

    A map that is narrower than a patch is padded with zeros to one.
    """

    def __init__(self, in_channels: int, channels: int, size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, size, stride=size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C', H', W') -> tokens (B, H * W, C), row by row, and (H, W)."""
        below, right = (max(0, self.proj.stride[0] - side) for side in x.shape[-2:])
        x = self.proj(F.pad(x, (0, right, 0, below)) if right or below else x)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[-2], x.shape[-1])


class ParallelBlock(Recomputable):
    """Stages 2 to 4 attend each within itself and add to each other what they found, resized (section 4.2, figure 4).

    Class tokens take part: they are added as they are.
    """

    LEVELS = (2, 3, 4)

    def __init__(self, channels: int, mlp_ratio: int, drop_path: float):
        super().__init__()
        for level in self.LEVELS:
            self.add_module(f"norm1{level}", nn.LayerNorm(channels, eps=1e-6))
            self.add_module(f"factoratt_crpe{level}", FactorizedAttention(channels))
            self.add_module(f"norm2{level}", nn.LayerNorm(channels, eps=1e-6))
        self.mlp2 = GELUMLP(channels, mlp_ratio * channels)  # one for all three levels
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(
        self,
        levels: list[Tensor],
        shapes: list[tuple[int, int]],
        positions: list[ConvPosition],
        relatives: list[RelativePosition],
    ) -> list[Tensor]:
        """Tokens (B, 1 + H_l * W_l, C) of three levels -> the same, finest first."""
        levels = [position(x, shape) for position, x, shape in zip(positions, levels, shapes, strict=True)]
        found = [
            getattr(self, f"factoratt_crpe{name}")(getattr(self, f"norm1{name}")(x), shape, relative)
            for name, x, shape, relative in zip(self.LEVELS, levels, shapes, relatives, strict=True)
        ]
        answers = []
        for i, (name, x, shape) in enumerate(zip(self.LEVELS, levels, shapes, strict=True)):
            others = [resize_token_map(found[j], shapes[j], shape) for j in range(len(levels)) if j != i]
            x = x + self.drop_path(found[i] + others[0] + others[1])
            answers.append(x + self.drop_path(self.mlp2(getattr(self, f"norm2{name}")(x))))
        return answers


def resize_token_map(tokens: Tensor, shape: tuple[int, int], new_shape: tuple[int, int]) -> Tensor:
    """Tokens (B, 1 + H * W, C) with their map resized; shrinking averages nothing, it only samples."""
    image = F.interpolate(tokens_to_map(tokens, shape), new_shape, mode="bilinear", align_corners=False)
    return torch.cat([tokens[:, :1], image.flatten(2).transpose(1, 2)], 1)


@PARTS.register
class CoaT(nn.Module):
    """CoaT without its classifier: the maps of stages 2, 3 and 4, at strides 8, 16 and 32 (sides rounded down).

    Args:
        arch: a key of ARCHS. The "lite" ones are the serial stages alone; the others add parallel blocks.
        drop_path: stochastic depth, the same for all blocks.
        pretrained: a file or URL of the authors' ImageNet weights, or None. Only remembered here; main.py fetches
            `pretrained_source` and hands it to `load_pretrained`.
    """

    def __init__(self, arch: str = "lite_small", drop_path: float = 0.0, pretrained: str | None = None):
        super().__init__()
        if arch not in ARCHS:
            raise ValueError(f"arch='{arch}' is none of CoaT's; {nearest_name(arch, ARCHS)}")
        spec = ARCHS[arch]
        self.pretrained, self.channels = pretrained, list(spec.channels[1:])
        for i, (below, channels) in enumerate(zip((3, *spec.channels), spec.channels, strict=False)):
            self.register_parameter(f"cls_token{i + 1}", nn.Parameter(torch.empty(1, 1, channels).normal_(std=0.02)))
            self.add_module(f"patch_embed{i + 1}", PatchEmbed(below, channels, size=2 if i else 4))
            self.add_module(f"cpe{i + 1}", ConvPosition(channels))
            self.add_module(f"crpe{i + 1}", RelativePosition(channels))
            layers = (FactorizedLayer(channels, spec.mlp_ratios[i], drop_path) for _ in range(spec.depths[i]))
            self.add_module(f"serial_blocks{i + 1}", nn.ModuleList(layers))
        self.parallel_blocks = nn.ModuleList(
            ParallelBlock(spec.channels[-1], spec.mlp_ratios[-1], drop_path) for _ in range(spec.parallel)
        )
        init_trunc_normal(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> three maps (B, C_l, H_l, W_l), finest first."""
        levels, shapes, x = [], [], images
        for i in (1, 2, 3, 4):
            tokens, shape = self.serial(i, x)
            x = tokens_to_map(tokens, shape)
            levels.append(tokens)
            shapes.append(shape)
        levels, shapes = levels[1:], shapes[1:]
        positions = [self.cpe2, self.cpe3, self.cpe4]
        relatives = [self.crpe2, self.crpe3, self.crpe4]
        for block in self.parallel_blocks:
            levels = block(levels, shapes, positions, relatives)
        return [tokens_to_map(tokens, shape) for tokens, shape in zip(levels, shapes, strict=True)]

    def serial(self, stage: int, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """One serial stage: a map -> tokens (B, 1 + H * W, C), the stage's own class token first, and (H, W)."""
        tokens, shape = getattr(self, f"patch_embed{stage}")(x)
        token = getattr(self, f"cls_token{stage}").expand(len(tokens), -1, -1).to(tokens.dtype)
        tokens = torch.cat([token, tokens], 1)
        position, relative = getattr(self, f"cpe{stage}"), getattr(self, f"crpe{stage}")
        for layer in getattr(self, f"serial_blocks{stage}"):
            tokens = layer(tokens, shape, position, relative)
        return tokens, shape

    def pretrained_source(self) -> str | None:
        """URL or path of the weights that the config asks for."""
        return self.pretrained

    def load_pretrained(self, state_dict: dict[str, Tensor]):
        """Takes weights under the authors' key names; what only the classifier needs is skipped."""
        unused = ("norm1.", "norm2.", "norm3.", "norm4.", "head.", "aggregate.")
        self.load_state_dict({k: v for k, v in state_dict.items() if not k.startswith(unused) and not TIED.match(k)})
