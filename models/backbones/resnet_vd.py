"""ResNet-vd (He et al., 2019, "Bag of Tricks", figure 2), as RT-DETR starts from it.

Three 3x3 convolutions are the stem, the stride is on a block's 3x3, and a shortcut is pooled before its 1x1
convolution. Modules bear the names of the authors' checkpoints, which therefore load as they are.
"""

import re
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from models.layers.basic import Recomputable
from models.layers.conv_norm import NORMS, ConvNorm, gradients_of
from models.layers.convolution import max_pool2d
from models.registry import PARTS

RELEASE = "https://github.com/lyuwenyu/storage/releases/download/v0.1/"
RELEASED = {
    18: "ResNet18_vd_pretrained_from_paddle",
    34: "ResNet34_vd_pretrained_from_paddle",
    50: "ResNet50_vd_ssld_v2_pretrained_from_paddle",
    101: "ResNet101_vd_ssld_pretrained_from_paddle",
}
"""{depth: the authors' ImageNet weights}; the deeper two are distilled."""

TIMM = {
    **{rf"^conv1\.{3 * i}\.": f"conv1.conv1_{i + 1}.conv." for i in range(3)},
    **{rf"^conv1\.{3 * i + 1}\.": f"conv1.conv1_{i + 1}.norm." for i in range(2)},
    r"^bn1\.": "conv1.conv1_3.norm.",
    **{
        rf"^layer{stage + 1}\.(\d+)\.{theirs}\.": rf"res_layers.{stage}.blocks.\1.{ours}."
        for stage in range(4)
        for theirs, ours in (
            *((f"conv{i + 1}", f"branch2{'abc'[i]}.conv") for i in range(3)),
            *((f"bn{i + 1}", f"branch2{'abc'[i]}.norm") for i in range(3)),
            (r"downsample\.1", "short.conv.conv" if stage else "short.conv"),
            (r"downsample\.2", "short.conv.norm" if stage else "short.norm"),
        )
    },
}
"""{names in timm's files: ours}."""


class Block(Recomputable):
    """A residual block: its shortcut is a convolution where widths or resolutions differ, and in every stage's first.

    Args:
        in_channels, channels: widths of the input and of the 3x3 convolutions.
        stride: of the block.
        is_first: in its stage.
        norm: makes the norm of so many channels.
    """

    expansion: int

    def __init__(self, in_channels: int, channels: int, stride: int, is_first: bool, norm: Callable[[int], nn.Module]):
        super().__init__()
        out_channels = channels * self.expansion
        self.short: nn.Module = nn.Identity()
        if is_first:
            self.short = ConvNorm(in_channels, out_channels, 1, norm=norm)
        if stride > 1:
            pool = nn.AvgPool2d(stride, ceil_mode=True)
            self.short = nn.Sequential(OrderedDict(pool=pool, conv=self.short))


class BasicBlock(Block):
    """Of two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, is_first: bool, norm: Callable[[int], nn.Module]):
        super().__init__(in_channels, channels, stride, is_first, norm)
        self.branch2a = ConvNorm(in_channels, channels, 3, stride, activation="relu", norm=norm)
        self.branch2b = ConvNorm(channels, channels, 3, activation="relu", norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), sides rounded up."""
        return self.branch2b(self.branch2a(x), self.short(x))


class Bottleneck(Block):
    """Of a 3x3 convolution between two of 1x1."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, is_first: bool, norm: Callable[[int], nn.Module]):
        super().__init__(in_channels, channels, stride, is_first, norm)
        self.branch2a = ConvNorm(in_channels, channels, 1, activation="relu", norm=norm)
        self.branch2b = ConvNorm(channels, channels, 3, stride, activation="relu", norm=norm)
        self.branch2c = ConvNorm(channels, 4 * channels, 1, activation="relu", norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), sides rounded up."""
        return self.branch2c(self.branch2b(self.branch2a(x)), self.short(x))


ARCHS: dict[int, tuple[type[Block], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
"""{depth: (what its blocks are, how many of them every stage has)}."""


@PARTS.register
class ResNetVd(nn.Module):
    """ResNet-vd without its classifier.

    Args:
        depth: 18, 34, 50 or 101.
        stages: which of the stages 1 to 4 (strides 4, 8, 16, 32, sides rounded up) are returned.
        norm: "frozen" (batch norm as four constants, as published for depths 50 and 101), "batch" (for 18 and 34),
            "sync" (batch norm over all processes) or "group".
        frozen: how many leading pieces do not train: 0 none (as published for depths 18 and 34), 1 the stem (for 50 and
            101), 2 the stem and stage 1, and so on.
        pretrained: "imagenet" (the authors' weights of this depth); a URL or file of these, of a detector of theirs or
            of timm's resnet50d or resnet101d (timm's resnet18d and resnet34d are other networks, whose first stage has
            no convolution in its shortcut); or None. Only remembered here; main.py fetches `pretrained_source` and
            hands it to `load_pretrained`.
    """

    def __init__(
        self,
        depth: int = 50,
        stages: tuple[int, ...] = (2, 3, 4),
        norm: str = "frozen",
        frozen: int = 1,
        pretrained: str | None = None,
    ):
        super().__init__()
        if depth not in ARCHS:
            raise ValueError(f"depth={depth} is none of {tuple(ARCHS)}")
        if norm not in NORMS:
            raise ValueError(f"norm='{norm}' is none of {', '.join(NORMS)}")
        if not stages or not set(stages) <= {1, 2, 3, 4}:
            raise ValueError(f"stages={stages} must be some of 1, 2, 3, 4")
        self.depth, self.stages, self.pretrained = depth, tuple(sorted(stages)), pretrained
        block, blocks = ARCHS[depth]
        self.channels = [64 * 2 ** (stage - 1) * block.expansion for stage in self.stages]
        self.conv1 = nn.Sequential(
            OrderedDict(
                conv1_1=ConvNorm(3, 32, 3, 2, activation="relu", norm=NORMS[norm]),
                conv1_2=ConvNorm(32, 32, 3, activation="relu", norm=NORMS[norm]),
                conv1_3=ConvNorm(32, 64, 3, activation="relu", norm=NORMS[norm]),
            )
        )
        self.res_layers, in_channels = nn.ModuleList(), 64
        for stage in range(self.stages[-1]):
            channels, layers = 64 * 2**stage, []
            for i in range(blocks[stage]):
                layers.append(block(in_channels, channels, 2 if stage and not i else 1, i == 0, NORMS[norm]))
                in_channels = channels * block.expansion
            self.res_layers.append(nn.ModuleDict({"blocks": nn.Sequential(*layers)}))
        for piece in [self.conv1, *self.res_layers][:frozen]:
            piece.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, C, H / stride, W / stride) map per stage."""
        with gradients_of(images, self.conv1):
            x = max_pool2d(self.conv1(images), 3, stride=2, padding=1)
        maps = []
        for stage, layers in enumerate(self.res_layers, start=1):
            with gradients_of(x, layers):
                x = layers["blocks"](x)
            if stage in self.stages:
                maps.append(x)
        return maps

    def pretrained_source(self) -> str | None:
        """URL or path of the weights that the config asks for."""
        return f"{RELEASE}{RELEASED[self.depth]}.pth" if self.pretrained == "imagenet" else self.pretrained

    def load_pretrained(self, state_dict: dict[str, Tensor]):
        """Takes weights under the authors' key names or timm's; classifier and unused stages are skipped.

        Raises:
            RuntimeError: they are of another network.
        """
        if "conv1.weight" in state_dict:
            raise RuntimeError("these are weights of a ResNet with one convolution as its stem: `ResNet` takes them")
        whole = {key: value for key, value in state_dict.items() if key.startswith("backbone.")}
        weights = {_own_name(key): value for key, value in (whole or state_dict).items()}
        unused = ("fc.", *(f"res_layers.{stage}." for stage in range(self.stages[-1], 4)))
        self.load_state_dict({key: value for key, value in weights.items() if not key.startswith(unused)})


def _own_name(key: str) -> str:
    """Of an entry that a detector of the authors, a backbone of theirs or timm calls so."""
    key = key.removeprefix("backbone.")
    rule = next((rule for rule in TIMM.items() if re.match(rule[0], key)), (r"^", ""))
    return re.sub(*rule, key)
