"""Deformable attention as the models call it: checks the arguments and picks the fastest backend that serves them."""

import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from models.ops import library, reference
from models.ops.extension import EXTENSIONS, has_compiled_kernels
from models.ops.linear import serves

log = logging.getLogger(__name__)

MAX_SAMPLES = 128
"""Levels times points that the compiled kernels take."""


@dataclass(frozen=True)
class Backend:
    """One way to compute both attentions.

    Attributes:
        serves: whether it can take this value and these locations.
        ms_deform_attn: (value, shapes, locations, weights) -> answer.
        key_aware_deform_attn: (query, key, value, shapes, locations) -> answer.
        transforms: whether torch.func's transforms and forward-mode differentiation see through it.
    """

    serves: Callable[[Tensor, Tensor], bool]
    ms_deform_attn: Callable[..., Tensor]
    key_aware_deform_attn: Callable[..., Tensor]
    transforms: bool = False


def _compiled(device: str, dtypes: tuple[torch.dtype, ...], widest: int | None = None) -> Backend:
    """The compiled kernels of one device, for heads of up to `widest` channels."""

    def serves(value: Tensor, locations: Tensor) -> bool:
        _, tokens, heads, width = value.shape
        samples = locations.shape[3] * locations.shape[4]
        fits = width % 4 == 0 and samples <= MAX_SAMPLES and tokens * heads * width < 2**31
        fits = fits and (widest is None or width <= widest)
        fits = fits and value.device.type == device and value.dtype in dtypes
        return fits and (device != "cuda" or _runs_on(value.device.index))

    return Backend(serves, library.ms_deform_attn, library.key_aware_deform_attn)


def _find_backends() -> dict[str, Backend]:
    """What can compute here, fastest first."""
    found = {}
    if torch.cuda.is_available() and has_compiled_kernels("CUDA"):
        found["cuda"] = _compiled("cuda", (torch.float32, torch.bfloat16, torch.float16), widest=128)
    if has_compiled_kernels("CPU"):
        found["cpu"] = _compiled("cpu", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
    found["reference"] = Backend(
        lambda value, locations: True, reference.ms_deform_attn, reference.key_aware_deform_attn, transforms=True
    )
    return found


def cuda_architectures() -> str:
    """What the CUDA kernels were built for, in the form of TORCH_CUDA_ARCH_LIST; empty where there are none."""
    for name in EXTENSIONS:
        if name in sys.modules:
            return sys.modules[name].cuda_architectures
    return ""


def fits_card(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels run on a GPU: machine code on later cards of one major version, PTX on all later ones.

    Args:
        architectures: as TORCH_CUDA_ARCH_LIST takes them, such as "8.0;9.0+PTX". Names of architectures, such as
            "Ampere", are taken to fit.
        capability: major and minor version of the GPU.
    """
    built = re.findall(r"(\d+)\.(\d+)\w?(\+PTX)?", architectures)
    pairs = [((int(major), int(minor)), ptx) for major, minor, ptx in built]
    return not pairs or any(least <= capability and (ptx or least[0] == capability[0]) for least, ptx in pairs)


FIT_CARDS: dict[int, bool] = {}
"""{index of a GPU: whether the CUDA kernels run on it}, of those that were asked about."""


@torch.compiler.assume_constant_result  # the compiler takes the answer, and does not trace what asks the driver
def _runs_on(index: int) -> bool:
    """Whether the CUDA kernels run on a GPU; says so once if they do not."""
    if index in FIT_CARDS:
        return FIT_CARDS[index]
    capability, architectures = torch.cuda.get_device_capability(index), cuda_architectures()
    fits = FIT_CARDS[index] = fits_card(architectures, capability)
    if not fits:
        card = f"{torch.cuda.get_device_name(index)} has compute capability {capability[0]}.{capability[1]}"
        remedy = "`make clean ops` on this machine builds for its own cards"
        log.warning("%s, the CUDA kernels are for %s: using plain PyTorch, slower; %s", card, architectures, remedy)
    return fits


SHAPES_ONLY = Backend(lambda value, locations: value.is_meta, library.ms_deform_attn, library.key_aware_deform_attn)
BACKENDS = _find_backends()


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` accepts here, fastest first."""
    cards = range(torch.cuda.device_count() if "cuda" in BACKENDS else 0)
    return tuple(name for name in BACKENDS if name != "cuda" or any(_runs_on(card) for card in cards))


def ms_deform_attn(value: Tensor, shapes, locations: Tensor, weights: Tensor, backend: str = "auto") -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, equation 3).

    Args:
        value: (N, S, M, D): projected memory, M heads of D channels, the levels one after the other.
        shapes: ((H, W), ...) or an (L, 2) integer tensor; S is the sum of H * W.
        locations: (N, Q, M, L, P, 2), x and y in [0, 1] over each level; samples outside are zero.
        weights: (N, Q, M, L, P), of each sample.
        backend: "auto", or one of `available_backends()`.

    Returns:
        (N, Q, M*D), of value's dtype.

    Raises:
        ValueError: shapes that do not fit together or a level without area, tensors on different devices or of whole
            numbers, an unknown backend, or one that cannot take these tensors.
    """
    shapes = _checked(value, shapes, locations, weights)
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"weights {tuple(weights.shape)} do not fit locations {tuple(locations.shape)}")
    return _pick(backend, value, locations, weights).ms_deform_attn(value, shapes, locations, weights)


def takes_offsets(value: Tensor, offsets: Tensor, logits: Tensor) -> bool:
    """Whether `ms_deform_attn_of_offsets` serves these: without gradients, where linear layers have kernels."""
    if (
        torch.is_grad_enabled()
        or not serves(value, offsets, logits)
        or not offsets.dtype == logits.dtype == value.dtype
    ):
        return False
    return "cpu" in BACKENDS and BACKENDS["cpu"].serves(value, offsets)


def ms_deform_attn_of_offsets(value: Tensor, shapes, offsets: Tensor, logits: Tensor, reference: Tensor) -> Tensor:
    """`ms_deform_attn` whose locations and weights are made on the way, where `takes_offsets` says so.

    Args:
        value, shapes: as in `ms_deform_attn`.
        offsets: (N, Q, M, L, P, 2), from the reference: of points in pixels of the level, of boxes in shares of half
            their size (Deformable DETR, equation 2 and appendix A.4).
        logits: (N, Q, M, L, P), whose softmax over all samples of a head are the weights.
        reference: (N, Q, L, 2 or 4), points or boxes relative to each level.

    Returns:
        (N, Q, M*D), of value's dtype.

    Raises:
        ValueError: as in `ms_deform_attn`.
    """
    shapes = _checked(value, shapes, offsets, logits, reference)
    return library.ms_deform_attn_of_offsets(value, shapes, offsets, logits, reference)


def key_aware_deform_attn(
    query: Tensor, key: Tensor, value: Tensor, shapes, locations: Tensor, backend: str = "auto"
) -> Tensor:
    """Key-aware deformable attention (Lite-DETR, equations 4 and 5).

    Each sample weighs softmax over all L*P samples of (query . sampled key) / sqrt(D). Samples outside have key 0.

    Args:
        query: (N, Q, M, D).
        key, value: (N, S, M, D); give the same tensor twice where they are the same, it is sampled once.
        shapes, locations, backend: as in `ms_deform_attn`.

    Returns:
        (N, Q, M*D), of value's dtype.

    Raises:
        ValueError: as in `ms_deform_attn`.
    """
    shapes = _checked(value, shapes, locations, query, key)
    if key.shape != value.shape:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} differ in shape")
    if query.shape != (*locations.shape[:3], value.shape[3]):
        raise ValueError(
            f"query {tuple(query.shape)} does not fit locations {tuple(locations.shape)} and value's width"
        )
    return _pick(backend, value, locations, query, key).key_aware_deform_attn(query, key, value, shapes, locations)


def _checked(value: Tensor, shapes, locations: Tensor, *others: Tensor) -> reference.Shapes:
    """The shapes as plain numbers, after checking that everything adds up."""
    for tensor in (value, locations, *others):
        if not tensor.is_floating_point():
            raise ValueError(f"expected tensors of floating-point numbers, got one of {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"value is on {value.device}, another tensor on {tensor.device}")
    if isinstance(shapes, Tensor):
        shapes = shapes.tolist()
    shapes = tuple((int(h), int(w)) for h, w in shapes)
    if not shapes or min(map(min, shapes)) < 1:
        raise ValueError(f"expected levels of 1x1 or more, got {shapes}")
    if value.dim() != 4 or locations.dim() != 6 or locations.shape[-1] != 2:
        got = f"{tuple(value.shape)} and {tuple(locations.shape)}"
        raise ValueError(f"expected value (N, S, M, D) and locations (N, Q, M, L, P, 2), got {got}")
    if sum(h * w for h, w in shapes) != value.shape[1]:
        raise ValueError(
            f"value holds {value.shape[1]} tokens, but the levels {shapes} have {sum(h * w for h, w in shapes)}"
        )
    N, _, M, L, P, _ = locations.shape
    if P < 1:
        raise ValueError(f"locations {tuple(locations.shape)} hold no sample")
    if (value.shape[0], value.shape[2], len(shapes)) != (N, M, L):
        raise ValueError(
            f"locations {tuple(locations.shape)} do not fit value {tuple(value.shape)} and {len(shapes)} levels"
        )
    return shapes


def _pick(backend: str, *tensors: Tensor) -> Backend:
    """The backend for a value, locations and whatever else there is."""
    value, locations = tensors[:2]
    if value.is_meta:
        return SHAPES_ONLY
    transformed = _are_transformed(tensors)
    if backend == "auto" and (transformed or torch.onnx.is_in_onnx_export()):
        return BACKENDS["reference"]  # ONNX knows grid_sample, not our operators
    if backend == "auto":
        return next(candidate for candidate in BACKENDS.values() if candidate.serves(value, locations))
    if backend not in BACKENDS:
        raise ValueError(f"backend '{backend}' is not available here; available: {', '.join(available_backends())}")
    chosen = BACKENDS[backend]
    if not chosen.serves(value, locations):
        raise ValueError(f"backend '{backend}' cannot take {value.dtype} {tuple(value.shape)} on {value.device}")
    if transformed and not chosen.transforms:
        raise ValueError(
            f"backend '{backend}' has no forward-mode derivatives and takes no part in torch.func; use 'reference'"
        )
    return chosen


def _are_transformed(tensors: tuple[Tensor, ...]) -> bool:
    """Whether tensors carry forward-mode derivatives, or belong to a transform of torch.func.

    Operators of a library would drop such derivatives without a word.
    """
    if torch.compiler.is_compiling():  # the compiler sees one operator, and has no such tensors
        return False
    return torch._C._are_functorch_transforms_active() or any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )
