"""The augmentation of RT-DETR and D-FINE, after SSD's (Liu et al., 2016), with the constants of torchvision's.

Pixels change by torchvision's functions; what they are given is drawn here, in the order in which its transforms draw,
since every random number has to come from the generator that is handed in.
"""

from dataclasses import replace

import numpy as np
from torchvision.transforms.v2 import functional as tv

from datasets.span import Span
from datasets.transforms import Sample, Stretch, check_shares

BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)
"""From where to where the factors of distorted colours are drawn, and what is added to hues, of which 1 is a turn."""
LARGEST_CANVAS = 4.0
"""Sides of the canvas, in the image's."""
SCALES, RATIOS, OVERLAPS, TRIALS = (0.3, 1.0), (0.5, 2.0), (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), 40
"""Of a crop: sides in the image's, width by height, the least IoU with one of the objects (1: no crop), draws."""
SMALLEST = 1.0
"""Pixels of a box's shorter side; smaller ones are no objects any more."""


def distort_colours(sample: Sample, rng: np.random.Generator, share: float) -> Sample:
    """Brightness, contrast, saturation, hue and the order of the channels, each changed in a share of all images."""
    limits = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
    brightness, contrast, saturation, hue = (rng.uniform(*one) if rng.random() < share else None for one in limits)
    contrast_first = rng.random() < 0.5
    image = sample.image
    if brightness is not None:
        image = tv.adjust_brightness(image, brightness)
    if contrast is not None and contrast_first:
        image = tv.adjust_contrast(image, contrast)
    if saturation is not None:
        image = tv.adjust_saturation(image, saturation)
    if hue is not None:
        image = tv.adjust_hue(image, hue)
    if contrast is not None and not contrast_first:
        image = tv.adjust_contrast(image, contrast)
    if rng.random() < share:
        image = tv.permute_channels(image, rng.permutation(3).tolist())
    return replace(sample, image=image)


def zoom_out(sample: Sample, rng: np.random.Generator) -> Sample:
    """The image somewhere on a black canvas of its own ratio, of up to 16 times its pixels."""
    width, height = sample.image.size
    factor = 1 + rng.random() * (LARGEST_CANVAS - 1)
    canvas_width, canvas_height = int(width * factor), int(height * factor)
    left, top = int((canvas_width - width) * rng.random()), int((canvas_height - height) * rng.random())
    right, bottom = canvas_width - width - left, canvas_height - height - top
    image = tv.pad(sample.image, [left, top, right, bottom], fill=0)
    return replace(sample, image=image, boxes=sample.boxes + np.float32([left, top] * 2))


def crop_by_overlap(sample: Sample, rng: np.random.Generator) -> Sample:
    """A window that overlaps one object at least as much as was drawn, with the objects whose centres are in it.

    Without objects no window can do that: the image stays whole, as it does where no crop was drawn.
    """
    width, height = sample.image.size
    centres = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
    while len(centres):
        overlap = OVERLAPS[rng.integers(len(OVERLAPS))]
        if overlap >= 1:
            break
        for _ in range(TRIALS):
            across, down = SCALES[0] + (SCALES[1] - SCALES[0]) * rng.random(2)
            new_width, new_height = int(width * across), int(height * down)
            if not (new_height and RATIOS[0] <= new_width / new_height <= RATIOS[1]):
                continue
            across, down = rng.random(2)
            left, top = int((width - new_width) * across), int((height - new_height) * down)
            window = np.float32([left, top, left + new_width, top + new_height])
            inside = ((window[:2] < centres) & (centres < window[2:])).all(1)
            if inside.any() and overlaps(sample.boxes[inside], window).max() >= overlap:
                kept = replace(sample, boxes=sample.boxes[inside], labels=sample.labels[inside])
                return kept.crop(left, top, new_width, new_height)
    return sample


def overlaps(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    """(T,) IoU of boxes (T, 4) with a window (4,), all x0, y0, x1, y1."""
    shared = (np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])).clip(0).prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (window[2:] - window[:2]).prod() - shared)


def without_small(sample: Sample) -> Sample:
    """The sample without boxes a side of which is below SMALLEST."""
    kept = (sample.boxes[:, 2:] - sample.boxes[:, :2] >= SMALLEST).all(1)
    return replace(sample, boxes=sample.boxes[kept], labels=sample.labels[kept])


class DistortZoomCrop:
    """Distorted colours, a larger canvas, a crop around objects, a flip, and a stretch to a fixed size.

    Boxes of which the crop or the stretch leaves less than a pixel in width or height go. Mosaics, which have been
    scaled and cut, come on no canvas and are not cropped.

    Args:
        height, width: of the stretched image, in pixels.
        distort: how often brightness, contrast, saturation, hue and the order of the channels change, each by itself.
        zoom_out: how often the image is put on a black canvas of up to 4 times its sides.
        crop: how often a window is looked for that overlaps an object by 0, 0.1, 0.3, 0.5, 0.7 or 0.9 at least, or
            none is taken after all.
        flip: how often left and right are exchanged.
        flip_vertical: how often top and bottom are; 0 in all papers.
        start_epoch: finished epochs before which there are only flips and stretches.
        stop_epoch: finished epochs after which only flips and stretches are left; None for never.
    """

    def __init__(
        self,
        height: int = 640,
        width: int = 640,
        distort: float = 0.5,
        zoom_out: float = 0.5,
        crop: float = 0.8,
        flip: float = 0.5,
        flip_vertical: float = 0.0,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
    ):
        check_shares(distort=distort, zoom_out=zoom_out, crop=crop, flip=flip, flip_vertical=flip_vertical)
        self.epochs = Span(start_epoch, stop_epoch)
        self.stretch = Stretch(height, width)
        self.distort, self.zoom_out, self.crop = distort, zoom_out, crop
        self.flip, self.flip_vertical = flip, flip_vertical

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """One random variant of a sample, of the kind that its epoch has."""
        if sample.epoch in self.epochs:
            sample = distort_colours(sample, rng, self.distort)
            if not sample.mosaic and rng.random() < self.zoom_out:
                sample = zoom_out(sample, rng)
            if not sample.mosaic and rng.random() < self.crop:
                sample = crop_by_overlap(sample, rng)
        sample = without_small(sample)
        if rng.random() < self.flip:
            sample = sample.hflip()
        if rng.random() < self.flip_vertical:
            sample = sample.vflip()
        return without_small(self.stretch(sample))

    def largest(self, count: int) -> list[tuple[int, int]]:
        """(height, width) of the images of the largest batch."""
        return [self.stretch.size] * count

    def describe(self) -> str:
        """To which sizes images are brought, in words."""
        when = str(self.epochs)
        return f"{self.stretch.describe()}, distorted and cropped{when}" if when else self.stretch.describe()
