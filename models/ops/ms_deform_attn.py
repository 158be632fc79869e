"""Deformable attention as the models call it: checks the arguments and picks the fastest backend that serves them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.ops import reference


@dataclass(frozen=True)
class Backend:
    """One way to compute both attentions.

    Attributes:
        serves: whether it can take tensors like this one (its device, its dtype).
        ms_deform_attn: (value, shapes, locations, weights) -> answer.
        key_aware_deform_attn: (query, key, value, shapes, locations) -> answer.
    """

    serves: Callable[[Tensor], bool]
    ms_deform_attn: Callable[..., Tensor]
    key_aware_deform_attn: Callable[..., Tensor]


def _operator(name: str) -> Callable[..., Tensor]:
    """A registered operator, which takes its shapes as one flat list of numbers."""
    operator = getattr(torch.ops.leandetr, name)
    at = [argument.name for argument in operator.default._schema.arguments].index("shapes")

    def call(*arguments):
        flat = [size for shape in arguments[at] for size in shape]
        return operator(*arguments[:at], flat, *arguments[at + 1 :])

    return call


OPERATOR = Backend(lambda tensor: tensor.is_meta, _operator("ms_deform_attn"), _operator("key_aware_deform_attn"))
BACKENDS: dict[str, Backend] = {}
"""Fastest first; a compiled backend puts itself before the reference with `register_backend`."""


def register_backend(name: str, backend: Backend):
    """Makes a backend known. It is asked before those that were there."""
    known = {key: value for key, value in BACKENDS.items() if key != name}
    BACKENDS.clear()
    BACKENDS.update({name: backend, **known})


register_backend("reference", Backend(lambda tensor: True, reference.ms_deform_attn, reference.key_aware_deform_attn))


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` accepts here, fastest first."""
    return tuple(BACKENDS)


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
        ValueError: shapes that do not fit together, an unknown backend, or one that cannot take these tensors.
    """
    shapes = _checked(value, shapes, locations)
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"weights {tuple(weights.shape)} do not fit locations {tuple(locations.shape)}")
    return _pick(backend, value).ms_deform_attn(value, shapes, locations, weights)


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
    shapes = _checked(value, shapes, locations)
    if key.shape != value.shape:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} differ in shape")
    if query.shape != (*locations.shape[:3], value.shape[3]):
        raise ValueError(
            f"query {tuple(query.shape)} does not fit locations {tuple(locations.shape)} and value's width"
        )
    return _pick(backend, value).key_aware_deform_attn(query, key, value, shapes, locations)


def _checked(value: Tensor, shapes, locations: Tensor) -> reference.Shapes:
    """The shapes as plain numbers, after checking that everything adds up."""
    if isinstance(shapes, Tensor):
        shapes = shapes.tolist()
    shapes = tuple((int(h), int(w)) for h, w in shapes)
    if value.dim() != 4 or locations.dim() != 6 or locations.shape[-1] != 2:
        got = f"{tuple(value.shape)} and {tuple(locations.shape)}"
        raise ValueError(f"expected value (N, S, M, D) and locations (N, Q, M, L, P, 2), got {got}")
    if sum(h * w for h, w in shapes) != value.shape[1]:
        raise ValueError(
            f"value holds {value.shape[1]} tokens, but the levels {shapes} have {sum(h * w for h, w in shapes)}"
        )
    N, _, M, L = locations.shape[:4]
    if (value.shape[0], value.shape[2], len(shapes)) != (N, M, L):
        raise ValueError(
            f"locations {tuple(locations.shape)} do not fit value {tuple(value.shape)} and {len(shapes)} levels"
        )
    return shapes


def _pick(backend: str, value: Tensor) -> Backend:
    if value.is_meta:
        return OPERATOR
    if backend == "auto":
        return next(candidate for candidate in BACKENDS.values() if candidate.serves(value))
    if backend not in BACKENDS:
        raise ValueError(f"backend '{backend}' is not available here; available: {', '.join(BACKENDS)}")
    if not BACKENDS[backend].serves(value):
        raise ValueError(f"backend '{backend}' cannot take {value.dtype} tensors on {value.device}")
    return BACKENDS[backend]
