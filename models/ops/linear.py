"""Linear layers as the models call them: by the extension's kernels where those serve, else by oneDNN or MKL.

PyTorch gives float32 products on x86 to MKL, which leaves AMD's AVX-512 unused and knows nothing of what stands around
a product. The extension's kernels take bias, residual, activation and layer norm along while the numbers are in a
core's cache. Where it is not built, oneDNN is taken on processors that MKL serves badly.

LEANDETR_LINEAR overrides the choice, which is else a rule of processor, type and build, never of timing or of how many
rows there are: "kernels", "onednn" or "pytorch".
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from models.ops.extension import has_compiled_kernels
from models.ops.linear_operators import ACTIVATIONS, operators

CHOICES = ("kernels", "onednn", "pytorch")
"""What LEANDETR_LINEAR may say."""
ACTIVATED = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
"""The activations as PyTorch has them."""


def _find_instructions() -> dict[torch.dtype, str]:
    """{type: the instructions by which the extension's kernels multiply it on this processor}."""
    if not has_compiled_kernels("CPU", "linear"):
        return {}
    found = {dtype: operators.product_instructions(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return {dtype: name for dtype, name in found.items() if name}


INSTRUCTIONS = _find_instructions()  # now, when nothing is traced


class ProductsError(ValueError):
    """LEANDETR_LINEAR names products that are not here; the message says which are."""


@functools.cache
def linear_products() -> str:
    """Which of `CHOICES` computes float32 linear layers on this CPU.

    Raises:
        ProductsError: LEANDETR_LINEAR names none of them, or one that is not here.
    """
    here = [name for name, found in (("kernels", _has_kernels), ("onednn", _has_onednn)) if found()] + ["pytorch"]
    wish = os.environ.get("LEANDETR_LINEAR")
    if wish is not None and wish not in here:
        raise ProductsError(f"LEANDETR_LINEAR={wish!r}: here are {', '.join(here)}")
    return wish or next(name for name in here if name != "onednn" or _mkl_is_slow())


def describe_products() -> str:
    """The same in words, with the instructions that multiply."""
    names = {"onednn": "oneDNN in inference, PyTorch's own in training", "pytorch": "PyTorch's own"}
    kinds = ", ".join(INSTRUCTIONS[dtype] for dtype in _kernel_dtypes(linear_products()))
    return names.get(linear_products(), f"the extension's kernels ({kinds})")


def _has_kernels() -> bool:
    return torch.float32 in INSTRUCTIONS


def _has_onednn() -> bool:
    """Whether this PyTorch has the operator of its compiler that hands a linear layer to oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _mkl_is_slow() -> bool:
    """Whether this is a processor with AVX-512 that MKL takes its AVX2 path on: AMD's."""
    about = Path("/proc/cpuinfo")
    return bool(_processor().get("avx512_f")) and about.exists() and "AuthenticAMD" in about.read_text(encoding="utf-8")


def _processor() -> dict[str, Any]:
    """What PyTorch says of it; nothing in older versions."""
    tell: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return tell()


@functools.cache
def _kernel_dtypes(choice: str) -> tuple[torch.dtype, ...]:
    """Types that the extension's kernels multiply here. Processors with AMX multiply bfloat16 faster by oneDNN."""
    if choice != "kernels":
        return ()
    amx = _processor().get("amx_bf16")
    return tuple(dtype for dtype in INSTRUCTIONS if dtype == torch.float32 or not amx)


def serves(*tensors: Tensor | None) -> bool:
    """Whether the extension's kernels compute for such tensors, whatever their types.

    They serve plain tensors on the CPU; what is traced, compiled, exported or transformed sees PyTorch's own operators.
    """
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:  # this is asked for every layer: `all` would take several times as long
        if tensor is not None and not tensor.is_cpu:
            return False
    return _are_plain(*tensors) and linear_products() == "kernels"


def kernel_dtype(x: Tensor, *parameters: Tensor | None) -> torch.dtype | None:
    """The type in which the extension's kernels multiply for these tensors; None where they do not serve."""
    if not serves(x, *parameters):
        return None
    dtype = x.dtype
    if torch.is_autocast_enabled("cpu"):
        if any(t is not None and t.dtype not in (torch.float32, torch.bfloat16) for t in (x, *parameters)):
            return None
        dtype = torch.get_autocast_dtype("cpu")
    else:
        for parameter in parameters:
            if parameter is not None and parameter.dtype != dtype:
                return None
    if dtype not in _kernel_dtypes(linear_products()) or (dtype != torch.float32 and torch.is_grad_enabled()):
        return None
    return dtype


PLAIN = {Tensor, nn.Parameter, type(None)}


def _are_plain(*tensors: Tensor | None) -> bool:
    """Whether these are tensors as such, which no mode or transform has to see the operators of."""
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0:
        return False
    kinds = {type(tensor) for tensor in tensors}
    return kinds <= PLAIN


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x weight^T + bias + residual).

    Args:
        x: (..., K).
        weight, bias: (N, K) and (N,).
        activation: "none", "relu" or "gelu".
        residual: (..., N).

    Returns:
        (..., N), of the type that torch.nn.functional.linear returns.
    """
    dtype = kernel_dtype(x, weight, bias)
    learns = torch.is_grad_enabled()
    if dtype is not None and not (learns and (residual is not None or activation == "gelu")):
        return operators.linear(x, weight, bias, residual, ACTIVATIONS[activation], dtype)
    if dtype is not None:
        y = operators.linear(x, weight, bias, None, ACTIVATIONS["none"], dtype)
    elif _suits_onednn(x, weight, bias):
        fused = activation if residual is None and activation == "relu" else "none"
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, fused, [], "")
    else:
        y = F.linear(x, weight, bias)
    return ACTIVATED[activation](y if residual is None else y + residual)


def _suits_onednn(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether a layer without gradients is better multiplied by oneDNN than by MKL."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if not x.is_cpu or not _are_plain(x, *parameters) or linear_products() != "onednn":
        return False
    return x.numel() > 0 and all(p is None or p.dtype == torch.float32 for p in (x, *parameters))


def linear_norm(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, norm: nn.LayerNorm) -> Tensor:
    """norm(residual + x weight^T + bias), without gradients where the kernels serve.

    Args:
        x: (..., K).
        weight, bias: (N, K) and (N,).
        residual: (..., N), or None.
        norm: of N channels, with weight and bias.
    """
    dtype = None if torch.is_grad_enabled() else kernel_dtype(x, weight, bias)
    if dtype is None:
        return norm(linear(x, weight, bias, residual=residual))
    return operators.linear_norm(x, weight, bias, residual, norm.weight, norm.bias, norm.eps, dtype).to(
        _normed_dtype(x if residual is None else residual)
    )


def convolve_1x1(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    affine: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """activation(W [maps] + bias + residual), without gradients and where `kernel_dtype` says that the kernels serve.

    Args:
        maps: (B, C_i, H, W) each, best stored channels last; their channels stand side by side. One may be smaller than
            the last, and counts as enlarged to it, to the nearest pixel; then there is no residual.
        weight, bias: (N, sum of C_i, 1, 1) and (N,).
        residual: (B, N, H, W).
        activation: "none", "relu" or "silu".
        affine: scale and shift, (1,) each, of what a ReLU answers.

    Returns:
        (B, N, H, W), stored channels last, of the type that PyTorch's convolution returns.
    """
    kind = ACTIVATIONS["scaled_relu" if affine else activation]
    dtype = kernel_dtype(maps[-1], weight)
    return operators.convolution_1x1(maps, weight, bias, residual, kind, *(affine or (None, None)), dtype)


def feed_forward(
    x: Tensor, weights: tuple[Tensor, Tensor], biases: tuple[Tensor | None, Tensor | None], norm: nn.LayerNorm
) -> Tensor:
    """norm(x + W2 relu(W1 x + b1) + b2), in one pass without gradients, where kernels serve.

    Args:
        x: (..., C).
        weights: (H, C) and (C, H).
        biases: (H,) and (C,).
        norm: of C channels, with weight and bias.
    """
    dtype = None if torch.is_grad_enabled() else kernel_dtype(x, *weights, *biases)
    if dtype is None:
        hidden = linear(x, weights[0], biases[0], "relu")
        return linear_norm(hidden, weights[1], biases[1], x, norm)
    layers = (weights[0], biases[0], weights[1], biases[1])
    return operators.feed_forward(x, *layers, norm.weight, norm.bias, norm.eps, ACTIVATIONS["relu"], dtype).to(
        _normed_dtype(x)
    )


def _normed_dtype(x: Tensor) -> torch.dtype:
    """Of a layer norm: under autocast float32."""
    return torch.float32 if torch.is_autocast_enabled("cpu") else x.dtype
