"""Augmentation with the papers' constants. Every random number comes from the generator that is handed in."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NORMALIZATIONS: dict[str | None, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (MEAN, STD),
    None: ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""What is taken off pixels in [0, 1], and what they are divided by: `data.normalize` of a config; None leaves them."""
NARROW = 16
"""Images whose sides are further apart than this to 1 are resized within bounds that the papers' code does not have."""


@dataclass(frozen=True)
class Sample:
    """An image and its objects on the way from the file to the model.

    Attributes:
        image: RGB.
        boxes: (T, 4) float32 corners x0, y0, x1, y1 in pixels, inside the image.
        labels: (T,) int64.
        epoch: finished epochs of the training that it is for.
        mosaic: whether it is made of several.
    """

    image: Image.Image
    boxes: np.ndarray
    labels: np.ndarray
    epoch: int = 0
    mosaic: bool = False

    def resize(self, scale: int, max_size: int | None) -> "Sample":
        """The shorter side becomes `scale`, or less where the longer one would pass `max_size`; see resized_shape."""
        width, height = self.image.size
        return self.stretch(*resized_shape(width, height, scale, max_size))

    def stretch(self, width: int, height: int) -> "Sample":
        """To this size, whatever the ratio of the sides was; bilinear, and antialiased where it shrinks."""
        ratio = np.float32([width / self.image.width, height / self.image.height] * 2)
        image = self.image.resize((width, height), Image.Resampling.BILINEAR)
        return replace(self, image=image, boxes=self.boxes * ratio)

    def crop(self, left: int, top: int, width: int, height: int) -> "Sample":
        """A window of the image, and what is inside it of the boxes."""
        window = self.image.crop((left, top, left + width, top + height))
        return replace(self, image=window, boxes=self.boxes - np.float32([left, top] * 2)).clip_boxes()

    def clip_boxes(self) -> "Sample":
        """Boxes cut to the image; those that are left without area go."""
        boxes = self.boxes.clip(0, np.float32(self.image.size * 2))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return replace(self, boxes=boxes[kept], labels=self.labels[kept])

    def hflip(self) -> "Sample":
        """Left and right exchanged."""
        width = self.image.width
        boxes = self.boxes[:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1]) + np.float32([width, 0, width, 0])
        return replace(self, image=self.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes=boxes)

    def vflip(self) -> "Sample":
        """Top and bottom exchanged."""
        height = self.image.height
        boxes = self.boxes[:, [0, 3, 2, 1]] * np.float32([1, -1, 1, -1]) + np.float32([0, height, 0, height])
        return replace(self, image=self.image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), boxes=boxes)

    def tensors(self, normalize: str | None = "imagenet") -> tuple[Tensor, dict[str, Tensor]]:
        """The (3, h, w) image, and `labels`, `boxes` as cx, cy, w, h in (0, 1), `size` as h, w.

        Args:
            normalize: one of NORMALIZATIONS.
        """
        width, height = self.image.size
        pixels = torch.from_numpy(np.array(self.image)).view(height, 3 * width).float()
        # By rows, in place: a batch has the same order of memory, and rows are long enough for vector instructions.
        pixels.div_(255)
        if normalize is not None:
            mean, std = NORMALIZATIONS[normalize]
            pixels.sub_(torch.tensor(mean).repeat(width)).div_(torch.tensor(std).repeat(width))
        image = pixels.view(height, width, 3).permute(2, 0, 1)
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        boxes = np.concatenate([(low + high) / 2, high - low], 1) / np.float32([width, height] * 2)
        target = {
            "labels": torch.from_numpy(self.labels),
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "size": torch.tensor([height, width]),
        }
        return image, target


def resized_shape(width: int, height: int, scale: int, max_size: int | None) -> tuple[int, int]:
    """Width and height after resizing, rounded as the papers' code rounds.

    The shorter side is `scale` exactly, or the rounded length at which the longer one meets `max_size`; the longer side
    is cut to whole pixels. So rounding may take it beyond `max_size`, by half a pixel times the ratio of the sides.

    In narrow images, whose sides are more than NARROW to 1, `max_size` holds exactly. No side is less than a pixel.
    """
    short, long = min(width, height), max(width, height)
    if max_size is not None and long / short * scale > max_size:
        scale = max(1, round(max_size * short / long))
    longer = int(scale * long / short)
    if max_size is not None and long > NARROW * short:
        longer = min(longer, max_size)
    return (scale, longer) if width < height else (longer, scale)


def check_sizes(**sizes: tuple[int, ...]):
    """Lengths in pixels are whole and positive, and there is one at least. Raises ValueError."""
    for name, values in sizes.items():
        if not isinstance(values, tuple | list) or not values or any(type(v) is not int or v < 1 for v in values):
            raise ValueError(f"{name}: {values!r} should be whole numbers of pixels, 1 or more")


def check_shares(**shares: float):
    """How often something happens, or how much of it there is. Raises ValueError."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} must lie between 0 and 1")


class TrainTransform:
    """Flip, then at even odds a resize, or a resize, a crop and a resize (DETR, A.4).

    Args:
        scales: lengths of the shorter side to choose from.
        max_size: of the longer side.
        crop: None, or dict(scales, min_size, max_size): the image is resized to one of these scales, and a window
            whose sides are each drawn from min_size to the smaller of max_size and the image's side is cut out. Of
            narrow images the longer side becomes NARROW times the scale, and a side below min_size is kept whole.
        flip: how often left and right are exchanged.
        flip_vertical: how often top and bottom are; 0 in all papers.
    """

    def __init__(
        self,
        scales: tuple[int, ...],
        max_size: int,
        crop: dict | None = None,
        flip: float = 0.5,
        flip_vertical: float = 0.0,
    ):
        check_sizes(scales=scales, max_size=(max_size,))
        check_shares(flip=flip, flip_vertical=flip_vertical)
        if crop is not None:
            if set(crop) != {"scales", "min_size", "max_size"}:
                raise ValueError(f"crop={dict(crop)} should name scales, min_size and max_size")
            check_sizes(**{f"crop.{name}": value if name == "scales" else (value,) for name, value in crop.items()})
            if min(crop["scales"]) < crop["min_size"]:
                raise ValueError(f"crop.min_size={crop['min_size']} is larger than the smallest of {crop['scales']}")
            if crop["max_size"] < crop["min_size"]:
                raise ValueError(f"crop.max_size={crop['max_size']} is less than crop.min_size={crop['min_size']}")
        self.scales, self.max_size, self.crop = scales, max_size, crop
        self.flip, self.flip_vertical = flip, flip_vertical

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """One random variant of a sample."""
        if rng.random() < self.flip:
            sample = sample.hflip()
        if rng.random() < self.flip_vertical:
            sample = sample.vflip()
        if self.crop is not None and rng.random() < 0.5:
            scale = int(rng.choice(self.crop["scales"]))
            # The papers' code has no bound here, and makes 400 x 1,200,000 of 1 x 3000.
            sample = self._random_crop(sample.resize(scale, NARROW * scale), rng)
        return sample.resize(int(rng.choice(self.scales)), self.max_size)

    def largest(self, count: int) -> list[tuple[int, int]]:
        """(height, width) of the images of the largest batch: lying and standing ones, which are padded to squares."""
        short, long = max(self.scales), self.max_size
        return [(short, long) if number % 2 == 0 else (long, short) for number in range(count)]

    def describe(self) -> str:
        """To which sizes images are brought, in words."""
        return f"{min(self.scales)} to {max(self.scales)}, longer side at most {self.max_size}"

    def _random_crop(self, sample: Sample, rng: np.random.Generator) -> Sample:
        low, high = self.crop["min_size"], self.crop["max_size"]
        width, height = (
            int(rng.integers(min(low, side), min(side, high), endpoint=True)) for side in sample.image.size
        )
        left = int(rng.integers(0, sample.image.width - width, endpoint=True))
        top = int(rng.integers(0, sample.image.height - height, endpoint=True))
        return sample.crop(left, top, width, height)


class EvalTransform:
    """One resize: the shorter side to `scale`, the longer at most `max_size`."""

    def __init__(self, scale: int = 800, max_size: int = 1333):
        check_sizes(scale=(scale,), max_size=(max_size,))
        self.scale, self.max_size = scale, max_size

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """The resized sample; nothing is random."""
        return sample.resize(self.scale, self.max_size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image of 3 to 4."""
        return self.scale, min(self.max_size, self.scale * 4 // 3)

    def describe(self) -> str:
        """To which sizes images are brought, in words."""
        return f"{self.scale}, at most {self.max_size}"


class Stretch:
    """One resize to a fixed size, whatever the ratio of the sides was (RT-DETR, D-FINE).

    Args:
        height, width: in pixels.
    """

    def __init__(self, height: int = 640, width: int = 640):
        check_sizes(height=(height,), width=(width,))
        self.height, self.width = height, width

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """The stretched sample; nothing is random."""
        return sample.stretch(self.width, self.height)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image."""
        return self.height, self.width

    def describe(self) -> str:
        """To which sizes images are brought, in words."""
        return f"stretched to {self.width} x {self.height}"
