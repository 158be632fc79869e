"""ResNet, torchvision's own, cut into the stages that a detector reads."""

from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

from models.layers.basic import Recomputable
from models.layers.convolution import call_convolution, convolve, has_kernels
from models.layers.hooks import has_hooks
from models.registry import PARTS
from util.tensors.device import is_traced

NORMS = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(32, channels),
}


def _is_folded(convolution: nn.Module, norm: nn.Module, x: Tensor) -> bool:
    """Whether a norm is multiplied into the weights, which are fewer than the pixels.

    With gradients in a training on the CPU alone: else all is rounded as in the papers' code.
    """
    if torch.is_grad_enabled() and not (x.is_cpu and convolution.training):
        return False
    kinds = type(convolution) is nn.Conv2d and isinstance(norm, FrozenBatchNorm2d)
    return kinds and not has_hooks(convolution) and not has_hooks(norm)


def _folded(convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of both together."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def _geometry(convolution: nn.Conv2d) -> tuple:
    return convolution.stride, convolution.padding, convolution.dilation, convolution.groups


def _convolve(convolution: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """A convolution and its norm."""
    if _is_folded(convolution, norm, x):
        return F.conv2d(x, *_folded(convolution, norm), *_geometry(convolution))
    return norm(call_convolution(convolution, x))


def _activate(convolution: nn.Conv2d, norm: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """The ReLU of a convolution, its norm and a shortcut."""
    if _is_folded(convolution, norm, x):
        if has_kernels(convolution, x):
            return convolve(x, *_folded(convolution, norm), shortcut, rectify=True)
        if _has_fused_kernels(x):
            return _fused(convolution, *_folded(convolution, norm), x, shortcut)
    x = _convolve(convolution, norm, x)
    return F.relu(x if shortcut is None else x.add_(shortcut), inplace=True)


def _has_fused_kernels(x: Tensor) -> bool:
    """Whether cuDNN can add and rectify while it convolves, which saves reading and writing every map twice."""
    if is_traced() or not x.is_cuda or x.dtype == torch.float64 or x.numel() == 0:
        return False
    cudnn = torch.backends.cudnn  # of AMD's GPUs it speaks for MIOpen, which lacks these
    return torch.version.hip is None and cudnn.is_available() and cudnn.enabled


def _fused(convolution: nn.Conv2d, weight: Tensor, bias: Tensor, x: Tensor, shortcut: Tensor | None) -> Tensor:
    """`_activate` in one kernel, which knows nothing of autocast."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    if shortcut is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *_geometry(convolution))
    return torch.cudnn_convolution_add_relu(x, weight, shortcut, 1.0, bias, *_geometry(convolution))


def _gradients_of(x: Tensor, *modules: nn.Module) -> AbstractContextManager:
    """Within this a training has gradients only where something learns: what is frozen is as fast as in inference."""
    parameters = chain.from_iterable(module.parameters() for module in modules)
    learns = x.requires_grad or any(parameter.requires_grad for parameter in parameters)
    return torch.no_grad() if modules[0].training and not learns else nullcontext()


def _shortcut(block: nn.Module, x: Tensor) -> Tensor:
    return x if block.downsample is None else _convolve(*block.downsample, x)  # type: ignore[call-arg, misc]  # a Sequential


class BasicBlock(Recomputable, resnet.BasicBlock):
    """torchvision's residual block of two convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        hidden = _activate(self.conv1, self.bn1, x)
        return _activate(self.conv2, self.bn2, hidden, _shortcut(self, x))


class Bottleneck(Recomputable, resnet.Bottleneck):
    """torchvision's residual block of three convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        hidden = _activate(self.conv2, self.bn2, _activate(self.conv1, self.bn1, x))
        return _activate(self.conv3, self.bn3, hidden, _shortcut(self, x))


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
        norm: "frozen" (batch norm as four constants, for pretrained weights), "batch" or "group" (for training from
            scratch; batch norm wants several images per process).
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
        with _gradients_of(images, body.conv1, body.bn1):
            x = body.maxpool(_activate(body.conv1, body.bn1, images))
        maps = []
        for stage in range(1, self.stages[-1] + 1):
            blocks = getattr(body, f"layer{stage}")
            with _gradients_of(x, blocks):
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
