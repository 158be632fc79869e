"""ResNet, torchvision's own, cut into the stages that a detector reads."""

from itertools import chain

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from models.registry import PARTS

NORMS = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(32, channels),
}
DEPTHS = (18, 34, 50, 101)
EXPANSION = {18: 1, 34: 1, 50: 4, 101: 4}


def _convolve(convolution: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """A convolution and its norm.

    Without gradients, frozen norms are multiplied into the weights, which are fewer than the pixels. With gradients,
    all is rounded as in the papers' code.
    """
    if torch.is_grad_enabled() or not isinstance(norm, FrozenBatchNorm2d):
        return norm(convolution(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight, shift = convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    return F.conv2d(x, weight, shift, convolution.stride, convolution.padding, convolution.dilation)


def _pass(block: nn.Module, x: Tensor) -> Tensor:
    """A residual block of torchvision's, of two convolutions or of three."""
    shortcut = x if block.downsample is None else _convolve(*block.downsample, x)
    x = F.relu(_convolve(block.conv1, block.bn1, x))
    x = _convolve(block.conv2, block.bn2, x)
    if isinstance(block, Bottleneck):
        x = _convolve(block.conv3, block.bn3, F.relu(x))
    return F.relu(x + shortcut)


@PARTS.register
class ResNet(nn.Module):
    """ResNet (He et al., 2016) without its classifier.

    Args:
        depth: 18, 34, 50 or 101.
        stages: which of the stages 1 to 4 (strides 4, 8, 16, 32) are returned.
        norm: "frozen" (batch norm as four constants, for pretrained weights), "batch" or "group" (for training from
            scratch; batch norm wants several pictures per process).
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
        if depth not in DEPTHS:
            raise ValueError(f"depth={depth} is none of {DEPTHS}")
        if norm not in NORMS:
            raise ValueError(f"norm='{norm}' is none of {', '.join(NORMS)}")
        if not stages or not set(stages) <= {1, 2, 3, 4}:
            raise ValueError(f"stages={stages} must be some of 1, 2, 3, 4")
        if dilation and EXPANSION[depth] == 1:
            raise ValueError(f"dilation needs depth 50 or 101: ResNet-{depth}'s blocks cannot dilate")
        self.arch, self.stages, self.pretrained = f"resnet{depth}", tuple(sorted(stages)), pretrained
        self.channels = [64 * 2 ** (stage - 1) * EXPANSION[depth] for stage in self.stages]
        body = torchvision.models.get_model(
            self.arch, weights=None, norm_layer=NORMS[norm], replace_stride_with_dilation=[False, False, dilation]
        )
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
        x = body.maxpool(F.relu(_convolve(body.conv1, body.bn1, images)))
        maps = []
        for stage in range(1, self.stages[-1] + 1):
            for block in getattr(body, f"layer{stage}"):
                x = _pass(block, x)
            if stage in self.stages:
                maps.append(x)
        return maps

    def pretrained_source(self) -> str | None:
        """URL or path of the weights that the config asks for."""
        named = torchvision.models.get_model_weights(self.arch).__members__
        return named[self.pretrained].url if self.pretrained in named else self.pretrained

    def load_pretrained(self, state_dict: dict[str, Tensor]):
        """Takes weights under torchvision's key names; the classifier and unused stages are left out."""
        unused = ("fc.", *(f"layer{stage}." for stage in range(self.stages[-1] + 1, 5)))
        self.body.load_state_dict({key: value for key, value in state_dict.items() if not key.startswith(unused)})
