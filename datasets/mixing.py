"""Images made of several, so that each has more objects: mosaics, and blends of a batch's images (DEIM, its code)."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from datasets.distortion import without_small
from datasets.span import Span
from datasets.transforms import Sample, check_shares, check_sizes

PLACES = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Of the images in a mosaic, from the left and from the top."""


class Mosaic:
    """Four images as the quarters of one, which is then turned, shrunk or enlarged, and shifted.

    What leaves the square is cut off, what comes into it is black. A box becomes what encloses the turned one, cut to
    the square; boxes with less than a pixel in width or height go.

    Args:
        probability: how often an image becomes one of four, with three that are drawn from the split.
        side: of a quarter, in pixels, to which its image is stretched.
        rotation: degrees; drawn between -rotation and rotation, around the centre.
        shift: drawn between -shift and shift across and down, in sides of the square.
        scale: from where to where the factor of shrinking or enlarging is drawn.
        start_epoch: finished epochs after which there are mosaics.
        stop_epoch: finished epochs after which there are none any more; None for never.
    """

    def __init__(
        self,
        probability: float = 0.5,
        side: int = 320,
        rotation: float = 10.0,
        shift: float = 0.1,
        scale: tuple[float, float] = (0.5, 1.5),
        start_epoch: int = 0,
        stop_epoch: int | None = None,
    ):
        check_shares(probability=probability)
        check_sizes(side=(side,))
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation={rotation} must lie between 0 and 180 degrees")
        check_shares(shift=shift)
        _check_range("scale", scale, above=0)
        self.probability, self.side, self.rotation, self.shift, self.scale = probability, side, rotation, shift, scale
        self.epochs = Span(start_epoch, stop_epoch)

    def partners(self, count: int, rng: np.random.Generator, epoch: int) -> list[int]:
        """Which of `count` images come beside one, maybe itself among them; none where that one stays alone."""
        if epoch not in self.epochs or rng.random() >= self.probability:
            return []
        return rng.integers(count, size=len(PLACES) - 1).tolist()

    def __call__(self, samples: list[Sample], rng: np.random.Generator) -> Sample:
        """One of four, with the epoch of the first."""
        side = self.side
        square, boxes = Image.new("RGB", (2 * side, 2 * side)), []
        for sample, (across, down) in zip(samples, PLACES, strict=True):
            quarter = sample.stretch(side, side)
            square.paste(quarter.image, (across * side, down * side))
            boxes.append(quarter.boxes + np.float32([across * side, down * side] * 2))
        labels = np.concatenate([sample.labels for sample in samples])
        whole = replace(samples[0], image=square, boxes=np.concatenate(boxes), labels=labels, mosaic=True)
        return without_small(self._moved(whole, rng).clip_boxes())

    def _moved(self, sample: Sample, rng: np.random.Generator) -> Sample:
        angle = rng.uniform(-self.rotation, self.rotation)
        shifts = [rng.uniform(-self.shift, self.shift) * side for side in sample.image.size]
        move = {"angle": angle, "translate": shifts, "scale": rng.uniform(*self.scale), "shear": [0.0, 0.0]}
        image = tv.affine(sample.image, **move, interpolation=InterpolationMode.BILINEAR, fill=0)
        size = sample.image.size[::-1]
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(sample.boxes), format="XYXY", canvas_size=size)
        return replace(sample, image=image, boxes=tv.affine(boxes, **move).numpy())

    def describe(self) -> str:
        """In words."""
        return f"{100 * self.probability:g} % of images are mosaics of {len(PLACES)}{self.epochs}"


class MixUp:
    """Blends every image of a batch with the one before it; the objects of both are the blend's.

    Args:
        probability: how often a batch is blended.
        ratio: from where to where the image's own share is drawn, one for the batch.
        start_epoch: finished epochs after which there are blends.
        stop_epoch: finished epochs after which there are none any more; None for never.
    """

    def __init__(
        self,
        probability: float = 0.5,
        ratio: tuple[float, float] = (0.45, 0.55),
        start_epoch: int = 0,
        stop_epoch: int | None = None,
    ):
        check_shares(probability=probability)
        _check_range("ratio", ratio)
        for share in ratio:
            check_shares(ratio=share)
        self.probability, self.ratio, self.epochs = probability, ratio, Span(start_epoch, stop_epoch)

    def __call__(
        self, items: list[tuple[Tensor, dict]], rng: np.random.Generator, epoch: int
    ) -> list[tuple[Tensor, dict]]:
        """The items of a batch, images of one size and their targets, as they are or blended."""
        if epoch not in self.epochs or rng.random() >= self.probability:
            return items
        share = rng.uniform(*self.ratio)
        return [_blend(one, other, share) for one, other in zip(items, [items[-1], *items[:-1]], strict=True)]

    def describe(self) -> str:
        """In words."""
        return f"{100 * self.probability:g} % of batches are blended{self.epochs}"


def _blend(one: tuple[Tensor, dict], other: tuple[Tensor, dict], share: float) -> tuple[Tensor, dict]:
    (image, target), (further, added) = one, other
    if target is added:  # a batch of one image
        return one
    objects = {name: torch.cat([target[name], added[name]]) for name in ("labels", "boxes")}
    return image * share + further * (1 - share), {**target, **objects}


def _check_range(name: str, values: tuple[float, float], above: float | None = None):
    """Two numbers, the second no less than the first. Raises ValueError."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(values) != 2 or len(numbers) != 2 or values[0] > values[1]:
        raise ValueError(f"{name}={values!r} should be two numbers, the lower one first")
    if above is not None and values[0] <= above:
        raise ValueError(f"{name}={values!r} must lie above {above}")
