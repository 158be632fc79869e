"""What a forward pass computes: MACs as the papers' tables count them, and every arithmetic operation."""

import copy
import math
from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from util.tensors.device import is_traced

aten = torch.ops.aten


def _per_element(operations: int) -> Callable[..., int]:
    """A formula: so many operations for every number that comes out, or out first."""

    def formula(*args, out_shape=None, **kwargs) -> int:
        shape = out_shape if isinstance(out_shape, torch.Size) else out_shape[0]
        return operations * shape.numel()

    return formula


def _per_input(shape, *args, **kwargs) -> int:
    return torch.Size(shape).numel()


def _per_pooled(shape, kernel, *args, out_shape=None, **kwargs) -> int:
    area = math.prod(kernel) if len(kernel) == 2 else kernel[0] ** 2
    return area * (out_shape if isinstance(out_shape, torch.Size) else out_shape[0]).numel()


# In units of two operations per multiply-add, like the formulas that FlopCounterMode brings.
CONVENTION = {
    aten.native_layer_norm: _per_element(2 * 5),
    aten.native_group_norm: _per_element(2 * 5),
    aten.native_batch_norm: _per_element(2 * 2),
    aten._native_batch_norm_legit_no_training: _per_element(2 * 2),
    aten.grid_sampler_2d: _per_element(2 * 4),
}
ELEMENTWISE = CONVENTION | {
    **{getattr(aten, name): _per_element(2) for name in ("add", "add_", "sub", "mul", "div", "relu", "relu_")},
    aten.rsqrt: _per_element(2 * 2),
    aten._softmax: _per_element(2 * 5),
    aten._safe_softmax: _per_element(2 * 5),
}
"""As the tables of DETR and Conditional DETR count: sums, products and ReLUs one per number too, a softmax five."""
COPIES = ("alias", "clone", "copy", "copy_", "fill", "fill_", "_to_copy", "zero", "zero_")
REDUCTIONS = ("all", "amax", "amin", "any", "argmax", "cumsum", "max", "mean", "min", "prod", "std", "sum", "var")


def _every_operation() -> dict[Callable, Callable]:
    """What PyTorch's operators cost beside the matrix products and convolutions, which FlopCounterMode knows."""
    found = {}
    # All that are registered; dir(aten) names those that somebody has looked at before.
    registered = (name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names() if "aten::" in name)
    for name in {name.split(".")[0] for name in registered}:
        packet = getattr(aten, name, None)
        overloads = packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else []
        if overloads and name not in COPIES and torch.Tag.pointwise in getattr(packet, overloads[0]).tags:
            found[packet] = _per_element(1)
    return (
        found
        | {getattr(aten, name): _per_input for name in REDUCTIONS}
        | {
            aten._softmax: _per_element(5),  # maximum, difference, exponential, sum, quotient
            aten._safe_softmax: _per_element(5),
            aten.native_layer_norm: _per_element(7),  # mean, difference, square, sum, quotient, weight, bias
            aten.native_group_norm: _per_element(7),
            aten._native_batch_norm_legit_no_training: _per_element(4),
            aten.max_pool2d_with_indices: _per_pooled,
            aten.avg_pool2d: _per_pooled,
            aten.upsample_bilinear2d: _per_element(2 * 4),
            aten.grid_sampler_2d: _per_element(2 * 4),
        }
    )


_COUNTED: ContextVar[str | None] = ContextVar("counted", default=None)


def is_counted() -> bool:
    """Whether a forward pass is counted as published tables do: all that inference needs, without shortcuts."""
    return not is_traced() and _COUNTED.get() == "as published"


def is_counted_as_inference() -> bool:
    """Whether a forward pass is counted with its shortcuts."""
    return not is_traced() and _COUNTED.get() == "inference"


EVERYTHING = _every_operation()
"""{operator: formula}. Whoever brings an operator of their own puts it in."""


def count_gmacs(
    detector: nn.Module, images: list[Tensor], inference: bool = False, convention: dict = CONVENTION
) -> float:
    """MACs of one forward pass, in 10^9.

    Counts as fvcore does, which is what published tables hold: convolutions and matrix products one per multiply-add
    (attention's two products included), bilinear samples four per number, layer and group norms five per element, batch
    norms two, everything else nothing. Runs on shapes alone: no device, kernel or backend changes the count.

    Args:
        detector: any module that takes a list of images.
        images: list of (3, h, w) tensors; only their sizes matter.
        inference: as inference computes it: without what is for losses alone, norms folded into their convolutions.
        convention: CONVENTION, or ELEMENTWISE.

    Returns:
        10^9 multiply-accumulate operations of the whole batch.
    """
    return sum(_count(detector, images, inference, convention).values()) / 2e9


def count_by_part(detector: nn.Module, images: list[Tensor], inference: bool = False) -> dict[str, float]:
    """The same, for each of the module's children, in 10^9."""
    counts = _count(detector, images, inference, CONVENTION)
    return {name: count / 2e9 for name, count in counts.items()}


def count_operations_by_part(detector: nn.Module, images: list[Tensor], inference: bool = False) -> dict[str, float]:
    """Every arithmetic operation of one forward pass, for each of the module's children, in 10^9.

    A multiply-add is two. Whatever works element by element, be it a sum, an exponential or a comparison, is one per
    number that comes out; a reduction one per number that goes in; a softmax five per number, a norm seven; pooling one
    per number that is looked at; deformable attention as models.ops.library lists it. Copies, sorting and integers that
    only say where something lies are none. Arguments as in `count_gmacs`, and as independent of devices.
    """
    counts = _count(detector, images, inference, EVERYTHING)
    return {name: count / 1e9 for name, count in counts.items()}


def _count(detector: nn.Module, images: list[Tensor], inference: bool, formulas: dict) -> dict[str, int]:
    try:
        return _count_on("meta", detector, images, inference, formulas)
    except RuntimeError:  # it asks for values, as region proposals do: black images must do; other faults come again
        return _count_on("cpu", detector, images, inference, formulas)


def _count_on(
    device: str, detector: nn.Module, images: list[Tensor], inference: bool, formulas: dict
) -> dict[str, int]:
    # A copy, since functional_call does not give back what modules that stand in two places held.
    detector = copy.deepcopy(detector).to(device).eval().requires_grad_(not inference)
    images = [torch.zeros_like(image, device=device) for image in images]
    # With gradients enabled a detector computes all that its papers' code computes; meta tensors make that free.
    token = _COUNTED.set("inference" if inference else "as published")
    try:
        with torch.set_grad_enabled(not inference), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            detector(images)
    finally:
        _COUNTED.reset(token)
    counts, root = counter.get_flop_counts(), type(detector).__name__
    return {name: sum(counts.get(f"{root}.{name}", {}).values()) for name, _ in detector.named_children()}
