"""A convolution with its norm, a shortcut and an activation.

Without gradients a norm of constants is multiplied into the weights, which are far fewer than the pixels, and what
follows is computed while the convolution's answers are at hand, where kernels do that.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from models.layers.convolution import call_convolution, convolve, has_kernels, joined, takes_apart
from models.layers.hooks import has_hooks
from models.ops.maps import activated, fold_norm
from util.tensors.device import is_traced

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "group": lambda channels: nn.GroupNorm(32, channels),
}
"""What `norm` may say in configs: batch norm as four constants, of each process alone, of all processes; group norm."""

ACTIVATIONS = (None, "relu", "silu")


def is_folded(convolution: nn.Module, norm: nn.Module, x: Tensor) -> bool:
    """Whether a norm is multiplied into the weights: it is one of constants, and nobody looks at what is between.

    With gradients only a frozen norm in a training on the CPU: else all is rounded as in the papers' code.
    """
    if isinstance(norm, FrozenBatchNorm2d):
        constant = not torch.is_grad_enabled() or (x.is_cpu and convolution.training)
    else:
        constant = not torch.is_grad_enabled() and _is_batch_norm_of_constants(norm)
    if not constant or type(convolution) is not nn.Conv2d or convolution.bias is not None:
        return False
    return convolution.padding_mode == "zeros" and not has_hooks(convolution) and not has_hooks(norm)


def _is_batch_norm_of_constants(norm: nn.Module) -> bool:
    """Whether this is a batch norm that uses its running statistics, and has a scale and a bias."""
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) or norm.training:
        return False
    return bool(norm.affine and norm.track_running_stats)


def folded(convolution: nn.Conv2d, norm: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Weight, of a type where that saves a pass, and bias of both together, where `is_folded` says so."""
    return fold_norm(convolution.weight, norm, dtype)


Maps = Tensor | Sequence[Tensor]
"""A map (B, C, H, W), or several that stand side by side, enlarged to the last to the nearest pixel."""


def conv_norm(
    convolution: nn.Module,
    norm: nn.Module,
    x: Maps,
    activation: str | None = None,
    residual: Tensor | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """activation(norm(convolution(x)) + residual).

    Args:
        convolution: without bias.
        norm: of its channels.
        x: (B, C, H, W) in all.
        activation: None, "relu" or "silu".
        residual: (B, C', H', W'), or None.
        affine: scale and shift, (1,) each, of what a ReLU answers; or None.

    Returns:
        (B, C', H', W').
    """
    if not isinstance(x, Tensor):
        if residual is None and takes_maps(convolution, norm, x):
            return convolve(x, *folded(convolution, norm), None, activation, affine)
        x = joined(x)
    if not is_folded(convolution, norm, x):
        y = norm(call_convolution(convolution, x))
        return activated(y if residual is None else y.add_(residual), activation, affine)
    if has_kernels(convolution, x):
        if torch.is_grad_enabled() and (activation != "relu" or affine):  # kernels have gradients of a ReLU alone
            return activated(convolve(x, *folded(convolution, norm), residual), activation, affine)
        return convolve(x, *folded(convolution, norm), residual, activation, affine)
    if activation == "relu" and affine is None and _has_fused_kernels(convolution, x):
        return _fused(convolution, *folded(convolution, norm), x, residual)
    autocast = x.is_cpu and torch.is_autocast_enabled("cpu")
    weight, bias = folded(convolution, norm, torch.get_autocast_dtype("cpu") if autocast else torch.float32)
    y = F.conv2d(x, weight, bias, *_geometry(convolution))
    return activated(y if residual is None else y.add_(residual), activation, affine)


def takes_maps(convolution: nn.Module, norm: nn.Module, maps: Sequence[Tensor]) -> bool:
    """Whether `conv_norm` is faster of maps as they are than of `joined` ones."""
    return is_folded(convolution, norm, maps[-1]) and takes_apart(convolution, maps)


def _geometry(convolution: nn.Conv2d) -> tuple:
    return convolution.stride, convolution.padding, convolution.dilation, convolution.groups


def _has_fused_kernels(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether cuDNN can add and rectify while it convolves, which saves reading and writing every map twice."""
    if is_traced() or not x.is_cuda or x.dtype == torch.float64 or x.numel() == 0:
        return False
    if convolution.groups != 1:
        return False  # PyTorch has kernels of its own for convolutions by channel
    cudnn = torch.backends.cudnn  # of AMD's GPUs it speaks for MIOpen, which lacks these
    return torch.version.hip is None and cudnn.is_available() and cudnn.enabled


def _fused(convolution: nn.Conv2d, weight: Tensor, bias: Tensor, x: Tensor, residual: Tensor | None) -> Tensor:
    """relu(x * weight + bias + residual) in one kernel, which knows nothing of autocast."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    if residual is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *_geometry(convolution))
    return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *_geometry(convolution))


class ConvNorm(nn.Module):
    """A convolution without bias, its norm, and an activation.

    Args:
        in_channels, out_channels: widths before and after.
        kernel: side of the kernel.
        stride: of the convolution.
        groups: of the channels; `in_channels` of them make it one by channel.
        padding: zeros on every side; None are those that keep H and W at stride 1, of odd kernels.
        activation: None, "relu" or "silu".
        norm: makes the norm of so many channels, a value of `NORMS` for example.

    Raises:
        ValueError: there is no such activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        activation: str | None = None,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is none of {ACTIVATIONS}")
        self.activation = activation
        padding = (kernel - 1) // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Maps, residual: Tensor | None = None) -> Tensor:
        """activation(norm(conv(x)) + residual): (B, C, H, W) -> (B, C', H', W')."""
        return conv_norm(self.conv, self.norm, x, self.activation, residual)

    def takes(self, maps: Sequence[Tensor]) -> bool:
        """Whether it is faster of maps as they are than of `joined` ones."""
        return takes_maps(self.conv, self.norm, maps)


def gradients_of(x: Tensor, *modules: nn.Module) -> AbstractContextManager:
    """Within this a training has gradients only where something learns: what is frozen is as fast as in inference."""
    parameters = chain.from_iterable(module.parameters() for module in modules)
    learns = x.requires_grad or any(parameter.requires_grad for parameter in parameters)
    return torch.no_grad() if modules[0].training and not learns else nullcontext()
