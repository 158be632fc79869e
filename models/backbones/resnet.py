"""ResNet, torchvision's own, cut into the stages that a detector reads."""

from itertools import chain

import torchvision
from torch import Tensor, nn
from torchvision.models import resnet

from models.layers.basic import Recomputable
from models.layers.conv_norm import NORMS, conv_norm, gradients_of
from models.registry import PARTS


def _shortcut(block: nn.Module, x: Tensor) -> Tensor:
    return x if block.downsample is None else conv_norm(*block.downsample, x)  # type: ignore[call-arg, misc]  # a Sequential


class BasicBlock(Recomputable, resnet.BasicBlock):
    """torchvision's residual block of two convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        hidden = conv_norm(self.conv1, self.bn1, x, "relu")
        return conv_norm(self.conv2, self.bn2, hidden, "relu", _shortcut(self, x))


class Bottleneck(Recomputable, resnet.Bottleneck):
    """torchvision's residual block of three convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        hidden = conv_norm(self.conv1, self.bn1, x, "relu")
        hidden = conv_norm(self.conv2, self.bn2, hidden, "relu")
        return conv_norm(self.conv3, self.bn3, hidden, "relu", _shortcut(self, x))


ARCHS = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
}
"""{depth: (what its blocks are, how many of them every stage has)}."""


@PARTS.register
class ResNet(nn.Module):
    """ResNet (He et al., 2016) without its classifier.

    Args:
        depth: 18, 34, 50 or 101.
        stages: which of the stages 1 to 4 (strides 4, 8, 16, 32) are returned.
        norm: "frozen" (batch norm as four constants, for pretrained weights), "batch", "sync" (batch norm over all
            processes) or "group" (for training from scratch; batch norm wants several images per process).
        frozen: how many leading pieces do not train: 0 none, 1 the stem, 2 the stem and stage 1, and so on.
        dilation: DC5: the last stage keeps its input's resolution and dilates instead.
        pretrained: torchvision's name of the weights ("IMAGENET1K_V1"), a checkpoint file with torchvision's key names,
            or None. Only remembered here; main.py fetches `pretrained_source` and hands it to `load_pretrained`.
    """

    def __init__(
        self,
        depth: int = 50,
        stages: tuple[int, ...] = (2, 3, 4),
        norm: str = "frozen",
        frozen: int = 2,
        dilation: bool = False,
        pretrained: str | None = None,
    ):
        super().__init__()
        if depth not in ARCHS:
            raise ValueError(f"depth={depth} is none of {tuple(ARCHS)}")
        if norm not in NORMS:
            raise ValueError(f"norm='{norm}' is none of {', '.join(NORMS)}")
        if not stages or not set(stages) <= {1, 2, 3, 4}:
            raise ValueError(f"stages={stages} must be some of 1, 2, 3, 4")
        block, blocks = ARCHS[depth]
        if dilation and block is BasicBlock:
            raise ValueError(f"dilation needs depth 50 or 101: ResNet-{depth}'s blocks cannot dilate")
        self.arch, self.stages, self.pretrained = f"resnet{depth}", tuple(sorted(stages)), pretrained
        self.channels = [64 * 2 ** (stage - 1) * block.expansion for stage in self.stages]
        dilated = [False, False, dilation]
        body = resnet.ResNet(block, blocks, norm_layer=NORMS[norm], replace_stride_with_dilation=dilated)
        unused = [f"layer{stage}" for stage in range(self.stages[-1] + 1, 5)] + ["avgpool", "fc"]
        for name in unused:
            delattr(body, name)
        pieces = [
            (body.conv1, body.bn1),
            *([getattr(body, f"layer{stage}")] for stage in range(1, self.stages[-1] + 1)),
        ]
        for module in chain.from_iterable(pieces[:frozen]):
            module.requires_grad_(False)
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, C, H / stride, W / stride) map per stage."""
        body = self.body
        with gradients_of(images, body.conv1, body.bn1):
            x = body.maxpool(conv_norm(body.conv1, body.bn1, images, "relu"))
        maps = []
        for stage in range(1, self.stages[-1] + 1):
            blocks = getattr(body, f"layer{stage}")
            with gradients_of(x, blocks):
                x = blocks(x)
            if stage in self.stages:
                maps.append(x)
        return maps

    def pretrained_source(self) -> str | None:
        """URL or path of the weights that the config asks for."""
        named = torchvision.models.get_model_weights(self.arch).__members__
        return named[self.pretrained].url if self.pretrained in named else self.pretrained

    def load_pretrained(self, state_dict: dict[str, Tensor]):
        """Takes weights under torchvision's key names; the classifier and unused stages are skipped."""
        unused = ("fc.", *(f"layer{stage}." for stage in range(self.stages[-1] + 1, 5)))
        self.body.load_state_dict({key: value for key, value in state_dict.items() if not key.startswith(unused)})
