"""Batches of another size each, of images that all have the same."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from datasets.span import Span
from datasets.transforms import check_sizes

STRIDE = 32
"""Sides are multiples of it: the coarsest map's pixels."""


class MultiScale:
    """Brings all images of a batch to one size that is drawn for it, by their nearest pixels (RT-DETR, D-FINE).

    Args:
        sides: in pixels, multiples of 32; one is drawn for a batch, and one that is listed twice twice as often. It is
            the longer side; the shorter one keeps its ratio, to the nearest multiple of 32.
        stop_epoch: finished epochs after which images keep the size that augmentation gives them; None for never.
    """

    def __init__(self, sides: tuple[int, ...], stop_epoch: int | None = None):
        check_sizes(sides=sides)
        wrong = [side for side in sides if side % STRIDE]
        if wrong:
            raise ValueError(f"sides: {wrong} are no multiples of {STRIDE}")
        self.sides, self.epochs = sides, Span(stop_epoch=stop_epoch)

    def __call__(
        self, items: list[tuple[Tensor, dict]], rng: np.random.Generator, epoch: int
    ) -> list[tuple[Tensor, dict]]:
        """The items of a batch, (3, h, w) images of one size and their targets, at a size that is drawn."""
        if epoch not in self.epochs:
            return items
        size = self.size(int(rng.choice(self.sides)), *items[0][0].shape[1:])
        return [(interpolate(image[None], size)[0], {**target, "size": torch.tensor(size)}) for image, target in items]

    def size(self, side: int, height: int, width: int) -> tuple[int, int]:
        """Height and width of images of this height and width, brought to a side."""
        shorter = max(STRIDE, round(side * min(height, width) / max(height, width) / STRIDE) * STRIDE)
        return (shorter, side) if height < width else (side, shorter)

    def largest(self, sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """(height, width) of a batch of these at the largest side, or as they are where that is more."""
        return [max(size, self.size(max(self.sides), *size)) for size in sizes]

    def describe(self) -> str:
        """In words."""
        return f"batches then {min(self.sides)} to {max(self.sides)}{self.epochs}"
