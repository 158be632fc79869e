"""Multiply-adds, counted as the papers' tables count them."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def _five_per_element(x_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 5 * torch.Size(x_shape).numel()


def _four_per_element(x_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 4 * torch.Size(out_shape).numel()


# In units of two operations per multiply-add, like the formulas that FlopCounterMode brings.
CONVENTION = {
    aten.native_layer_norm: _five_per_element,
    aten.native_group_norm: _five_per_element,
    aten.grid_sampler_2d: _four_per_element,
}


def count_gmacs(detector: nn.Module, images: list[Tensor], inference: bool = False) -> float:
    """Multiply-adds of one forward pass, in 10^9.

    Counts as fvcore does, which is what published tables hold: convolutions and matrix products one per multiply-add
    (attention's two products included), bilinear samples four per number, layer and group norms five per element,
    everything else nothing. Runs on shapes alone: no device, kernel or backend changes the count.

    Args:
        detector: any module that takes a list of pictures.
        images: list of (3, h, w) tensors; only their sizes matter.
        inference: leave out what is computed for losses alone.

    Returns:
        10^9 multiply-adds of the whole batch.
    """
    return sum(count_by_part(detector, images, inference).values())


def count_by_part(detector: nn.Module, images: list[Tensor], inference: bool = False) -> dict[str, float]:
    """The same, for each of the module's children, in 10^9."""
    try:
        return _count(detector, images, inference, "meta")
    except NotImplementedError:  # its shapes depend on values, as region proposals do: black pictures must do
        return _count(detector, images, inference, "cpu")


def _count(detector: nn.Module, images: list[Tensor], inference: bool, device: str) -> dict[str, float]:
    # A copy, since functional_call does not give back what modules that stand in two places held.
    detector = copy.deepcopy(detector).to(device).eval().requires_grad_(not inference)
    images = [torch.zeros_like(image, device=device) for image in images]
    # With gradients enabled a detector computes all that its papers' code computes; meta tensors make that free.
    with torch.set_grad_enabled(not inference), FlopCounterMode(display=False, custom_mapping=CONVENTION) as counter:
        detector(images)
    counts, root = counter.get_flop_counts(), type(detector).__name__
    parts = {name: counts.get(f"{root}.{name}", {}) for name, _ in detector.named_children()}
    return {name: sum(part.values()) / 2e9 for name, part in parts.items()}
