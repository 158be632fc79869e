"""Samples of deformable attention that lie within a few roundings of whole pixels, and what they are exactly.

Next to a whole pixel, the sum that finds a sample's pixel may round to the next one: the sample then lies between other
pixels, or between one of the map and one behind it. Models meet such places all the time: reference points are the
centres of pixels, and fresh models add whole numbers to them.

usage: python -m tests.harness.whole_pixels [EXTENSION] [--device cuda]
Prints one line for each kind of numbers, and fails if one of them is wrong. EXTENSION is a compiled op in place of the
one that models.ops finds, such as one with AddressSanitizer (make sanitize).
"""

import argparse
import importlib
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

SIZES = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 40, 64, 65, 129)
"""Of maps: powers of two and their neighbours are where sums round to whole pixels."""
ROUNDINGS = 3
KINDS = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bfloat16": (torch.bfloat16, torch.float32),
}
"""Types of values, and of locations and weights."""
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Of the largest number of a tensor."""


@dataclass(frozen=True)
class Case:
    """One call of the op on one map; N and M are 1, P is 2, D is 4.

    Attributes:
        shape: height and width of the map.
        query, key, value, locations, weights, grad: see models.ops; grad is that of the answer. Behind the keys and the
            values lies memory full of NaN.
    """

    shape: tuple[int, int]
    query: Tensor
    key: Tensor
    value: Tensor
    locations: Tensor
    weights: Tensor
    grad: Tensor


def cases(kind: str, sizes: tuple[int, ...] = SIZES, repeats: tuple[int, ...] = (1, 6)) -> Iterator[Case]:
    """Maps of some sizes along both axes.

    Args:
        kind: of KINDS.
        sizes: of the maps' sides.
        repeats: how many queries ask at each place; kernels treat few and many of them differently.
    """
    stored, wide = KINDS[kind]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(stored)

    for size, other, times, transposed in itertools.product(sizes, (1, 6), repeats, (False, True)):
        along = _places(size, wide)
        across = torch.tensor([0.4, *_places(other, wide).tolist()], dtype=wide)  # between pixels, and next to them
        pairs = torch.stack([along, across.repeat(1 + len(along) // len(across))[: len(along)]], -1)
        pairs = torch.stack([pairs, torch.stack([along, torch.full_like(along, 0.4)], -1)], 1).repeat(times, 1, 1)
        locations = pairs.flip(-1) if transposed else pairs  # (Q, 2, 2)
        shape = (size, other) if transposed else (other, size)
        tokens, queries = size * other, len(locations)
        key, value = (_poisoned(normal(1, tokens, 1, 4)) for _ in range(2))
        yield Case(
            shape,
            normal(1, queries, 1, 4),
            key,
            value,
            locations.view(1, queries, 1, 1, 2, 2),
            torch.rand(1, queries, 1, 1, 2, generator=generator, dtype=wide) + 0.5,
            normal(1, queries, 4),
        )


def _places(size: int, dtype: torch.dtype) -> Tensor:
    """Locations within ROUNDINGS of whole pixels: at both edges, outside, and where a power of two begins or ends."""
    pixels = {-2, -1, 0, 1, 2, size // 2, size - 2, size - 1, size, size + 1}
    pixels |= {power + step for power in (4, 8, 16, 32, 64, 128) for step in (-1, 0) if power + step < size}
    places = [torch.tensor([(pixel + 0.5) / size for pixel in sorted(pixels)], dtype=dtype)]
    for direction in (-math.inf, math.inf):
        nearby = places[0]
        for _ in range(ROUNDINGS):
            nearby = torch.nextafter(nearby, torch.tensor(direction, dtype=dtype))
            places.append(nearby)
    return torch.cat(places)


def _poisoned(tensor: Tensor) -> Tensor:
    """The same numbers, with NaN behind them."""
    memory = torch.full((tensor.numel() + 1024,), math.nan, dtype=tensor.dtype)
    memory[: tensor.numel()] = tensor.flatten()
    return memory[: tensor.numel()].view(tensor.shape)


def _between(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The pixel below each place, and how far it is away, by exact arithmetic."""
    exact = [Fraction(place) * size - Fraction(1, 2) for place in places.tolist()]
    floors = [math.floor(x) for x in exact]
    rests = [float(x - n) for x, n in zip(exact, floors, strict=True)]
    return torch.tensor(floors), torch.tensor(rests, dtype=torch.float64)


class ExactSamples:
    """Bilinear samples of a case by the definition, in float64, differentiable.

    Args:
        case: what to sample.
    """

    def __init__(self, case: Case):
        self.height, self.width = case.shape
        x, y = case.locations.view(-1, 2).unbind(-1)
        (self.x, across), (self.y, down) = _between(x, self.width), _between(y, self.height)
        self.across, self.down = across.requires_grad_(), down.requires_grad_()

    def of(self, rows: Tensor) -> Tensor:
        """(Q, 2, 4): samples of (S, 4) rows, zero outside the map."""
        answer = torch.zeros(len(self.x), 4, dtype=torch.float64)
        for low, right in itertools.product((0, 1), repeat=2):
            x, y = self.x + right, self.y + low
            inside = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
            share = (self.across if right else 1 - self.across) * (self.down if low else 1 - self.down)
            chosen = rows[y.clamp(0, self.height - 1) * self.width + x.clamp(0, self.width - 1)]
            answer = answer + torch.where(inside[:, None], share[:, None] * chosen, 0.0)
        return answer.view(-1, 2, 4)

    def gradients(self, answer: Tensor, inputs: list[Tensor], grad: Tensor) -> tuple[list[Tensor], Tensor]:
        """By the inputs, and by the locations (Q, 2, 2)."""
        *grads, across, down = torch.autograd.grad(answer, (*inputs, self.across, self.down), grad)
        return grads, torch.stack([across * self.width, down * self.height], -1)


def _wide(tensor: Tensor, *shape: int) -> Tensor:
    return tensor.double().view(shape).requires_grad_()


def exact_plain(case: Case) -> list[Tensor]:
    """The answer of plain attention and its gradients by value, locations and weights, in float64."""
    samples, value, weights = ExactSamples(case), _wide(case.value, -1, 4), _wide(case.weights, -1, 2, 1)
    answer = (samples.of(value) * weights).sum(1)
    (by_value, by_weights), by_locations = samples.gradients(answer, [value, weights], case.grad[0].double())
    return [answer.detach(), by_value, by_locations, by_weights]


def exact_aware(case: Case, shared: bool) -> list[Tensor]:
    """The same of key-aware attention, by query, key, value and locations; without the key where it is the value."""
    samples, query, value = ExactSamples(case), _wide(case.query, -1, 1, 4), _wide(case.value, -1, 4)
    key = value if shared else _wide(case.key, -1, 4)
    weights = ((samples.of(key) * query).sum(-1, keepdim=True) / 2).softmax(1)
    answer = (samples.of(value) * weights).sum(1)
    inputs = [query, value] if shared else [query, key, value]
    grads, by_locations = samples.gradients(answer, inputs, case.grad[0].double())
    return [answer.detach(), *grads, by_locations]


def wrong(ours: list[Tensor], exact: list[Tensor], stored: torch.dtype) -> int:
    """How many numbers are not what they should be, whatever the shapes; NaN never is."""
    count = 0
    for a, b in zip(ours, exact, strict=True):
        limit = TOLERANCE[stored] * max(1.0, b.abs().max().item())
        count += int((~((a.double().flatten() - b.flatten()).abs() <= limit)).sum())
    return count


def sweep(kind: str, device: str = "cpu") -> tuple[int, int]:
    """How many samples were tried with the compiled kernels of a device, and how many numbers were wrong."""
    from models.ops import key_aware_deform_attn, ms_deform_attn

    tried = bad = 0
    for case in cases(kind):
        shapes = (case.shape,)

        def differing(exact: list[Tensor], function: Callable[..., Tensor], *inputs: Tensor, case: Case = case) -> int:
            inputs = [x.detach().to(device).requires_grad_() for x in inputs]
            answer = function(*inputs)
            found = [answer, *torch.autograd.grad(answer, inputs, case.grad.to(device))]
            return wrong([x.cpu() for x in found], exact, case.value.dtype)

        def plain(value: Tensor, locations: Tensor, weights: Tensor, shapes=shapes) -> Tensor:
            return ms_deform_attn(value, shapes, locations, weights, device)

        def aware(query: Tensor, key: Tensor, value: Tensor, locations: Tensor, shapes=shapes) -> Tensor:
            return key_aware_deform_attn(query, key, value, shapes, locations, device)

        def shared(query: Tensor, value: Tensor, locations: Tensor, shapes=shapes) -> Tensor:
            return key_aware_deform_attn(query, value, value, shapes, locations, device)

        tried += case.locations.numel() // 2
        bad += differing(exact_plain(case), plain, case.value, case.locations, case.weights)
        bad += differing(exact_aware(case, False), aware, case.query, case.key, case.value, case.locations)
        bad += differing(exact_aware(case, True), shared, case.query, case.value, case.locations)
    return tried, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("extension", nargs="?", metavar="EXTENSION")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    if args.extension:
        name = "models.ops.leandetr_ops"
        spec = importlib.util.spec_from_file_location(name, args.extension)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        importlib.import_module("models.ops.library")  # the operators, to which the kernels attach themselves
        spec.loader.exec_module(sys.modules[name])
    kinds = [kind for kind in KINDS if args.device == "cpu" or kind != "float64"]  # GPUs compute that in plain PyTorch
    results = {kind: sweep(kind, args.device) for kind in kinds}
    for kind, (tried, bad) in results.items():
        print(f"{kind}: {tried} samples next to whole pixels, {bad} numbers wrong")
    return int(any(bad for _, bad in results.values()))


if __name__ == "__main__":
    sys.exit(main())
