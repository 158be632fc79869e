"""Images and boxes of one split, ready for a model."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.annotations import Annotations
from datasets.image_paths import leaves_folder
from datasets.images import MAX_PIXELS, CorruptImageError, read_image
from datasets.mixing import PLACES, MixUp, Mosaic
from datasets.multi_scale import MultiScale
from datasets.transforms import Sample
from util.tensors.shared_memory import shared_bytes

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How many corrupt images training bears, which cannot be read or transformed: `data.corrupt` of a config.

    Attributes:
        in_a_row: neighbours in the data set, before one that can be used.
        files: different ones, in one run of one process.
    """

    in_a_row: int = 10
    files: int = 100

    def __post_init__(self):
        if self.in_a_row < 1 or self.files < 0:
            raise ValueError(f"in_a_row={self.in_a_row} must be 1 or more, files={self.files} 0 or more")


class DetectionDataset(Dataset):
    """A split of a data set in COCO format.

    An item is asked for by index, or by (index, epoch): the two and the seed fix every random choice of its
    augmentation, whichever worker makes it and in whatever order. A batch is asked for by the list of its keys; what is
    drawn for all of it is fixed by the first.

    Args:
        annotations: what is on the images.
        folder: where the images are.
        transform: (Sample, generator) -> Sample; one of those in datasets.preparation.
        training: a corrupt image is replaced by the next one; in evaluation it has no sample.
        seed: of the augmentation.
        cached: keep the encoded images in memory, shared with the workers.
        limits: to corrupt images in training.
        max_pixels: width times height of the largest image that is read; larger ones count as corrupt.
        normalize: one of datasets.transforms.NORMALIZATIONS.
        multi_scale: gives every batch a size of its own, in training; None for none.
        mosaic: puts three further images beside one, before it is transformed, in training; None for none.
        mixup: blends the images of a batch, in training; None for none.
    """

    def __init__(
        self,
        annotations: Annotations,
        folder: Path,
        transform: Callable[[Sample, np.random.Generator], Sample],
        training: bool,
        seed: int = 0,
        cached: bool = False,
        limits: Limits | None = None,
        max_pixels: int = MAX_PIXELS,
        normalize: str | None = "imagenet",
        multi_scale: MultiScale | None = None,
        mosaic: Mosaic | None = None,
        mixup: MixUp | None = None,
    ):
        self.annotations, self.folder, self.transform = annotations, folder, transform
        self.training, self.seed, self.limits = training, seed, limits or Limits()
        self.max_pixels, self.normalize = max_pixels, normalize
        self.multi_scale, self.mosaic, self.mixup = multi_scale, mosaic, mixup
        self.cache = _Cache(self) if cached else None

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor | None, dict]:
        """Image and target.

        Returns:
            (3, h, w) float, or None for a corrupt image in evaluation; and a dict with `labels` (T,), `boxes`
            (T, 4) as cx, cy, w, h in (0, 1), `size`, `orig_size` (h, w), `image_id`, and `corrupt`: messages about
            corrupt images. Crowd boxes are not among the objects; they stay in the annotations for evaluation. A mosaic
            has the id of its first image.

        Raises:
            CorruptImageError: too many corrupt images in a row, in training.
        """
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        corrupt: list[str] = []
        partners = self._partners(index, epoch, corrupt)

        def load(chosen: int, step: int) -> tuple[Tensor, dict]:
            return self._load(chosen, np.random.default_rng((self.seed, epoch, index, step)), epoch, partners)

        if self.training:
            chosen, (image, target) = self._first_usable(index, load, corrupt)
            return image, {**target, "image_id": self._image_id(chosen), "corrupt": corrupt}
        try:
            image, target = load(index, 0)
        except CorruptImageError as error:
            return None, {"image_id": self._image_id(index), "corrupt": [str(error)]}
        return image, {**target, "image_id": self._image_id(index), "corrupt": corrupt}

    def _first_usable(self, index: int, load: Callable[[int, int], T], corrupt: list[str]) -> tuple[int, T]:
        """The first image from `index` on that is not corrupt, and what `load` makes of it, given it and its distance.

        Messages about those before it join `corrupt`. Raises CorruptImageError for too many of them.
        """
        found = []
        for step in range(self.limits.in_a_row):
            chosen = (index + step) % len(self)
            try:
                return chosen, load(chosen, step)
            except CorruptImageError as error:
                found.append(str(error))
                corrupt.append(str(error))
        listed = "\n  ".join(found)
        remedy = "`python -m datasets.validate` finds all that cannot be read; data.corrupt.in_a_row allows more"
        raise CorruptImageError(f"{len(found)} images in a row cannot be read or transformed; {remedy}:\n  {listed}")

    def _partners(self, index: int, epoch: int, corrupt: list[str]) -> list[Sample]:
        """What an image becomes a mosaic with, if it does; corrupt ones are replaced like itself."""
        if self.mosaic is None:
            return []
        drawn = self.mosaic.partners(len(self), self._generator(epoch, index, 2), epoch)
        return [
            self._first_usable(partner, lambda chosen, _: self._sample(chosen, epoch), corrupt)[1] for partner in drawn
        ]

    def __getitems__(self, keys: list[int | tuple[int, int]]) -> list[tuple[Tensor | None, dict]]:
        """The items of a batch; PyTorch's loaders ask so."""
        items = [self[key] for key in keys]
        index, epoch = keys[0] if isinstance(keys[0], tuple) else (keys[0], 0)
        rng = self._generator(epoch, index, 1)
        for change in (self.multi_scale, self.mixup):
            if change is not None:
                items = change(items, rng, epoch)
        return items

    def _generator(self, epoch: int, index: int, purpose: int) -> np.random.Generator:
        """Of what is drawn beside an image's own augmentation; purposes are counted from 1."""
        # Of another length than an image's key: trailing zeros do not count.
        return np.random.default_rng((self.seed, epoch, index, 0, purpose))

    def largest_batch(self, count: int) -> list[tuple[int, int]]:
        """(height, width) of the images of the largest training batch."""
        sizes = self.transform.largest(count)
        return sizes if self.multi_scale is None else self.multi_scale.largest(sizes)

    def most_objects(self) -> int:
        """The most that an image of a batch may have."""
        blended = 1 if self.mixup is None else 2
        return self.annotations.most_objects() * blended * (1 if self.mosaic is None else len(PLACES))

    def _image_id(self, index: int) -> Tensor:
        return torch.tensor(int(self.annotations.image_ids[index]))

    def _load(self, index: int, rng: np.random.Generator, epoch: int, partners: list[Sample]) -> tuple[Tensor, dict]:
        sample = self._sample(index, epoch)
        try:
            if self.mosaic is not None and partners:
                sample = self.mosaic([sample, *partners], rng)
            tensor, target = self.transform(sample, rng).tensors(self.normalize)
        except Exception as error:  # of what kind it is cannot be told from that of a mistake in the transform
            reason = f"{type(error).__name__}: {error}"
            raise CorruptImageError(f"{self.path(index)}: cannot be transformed: {reason}") from error
        return tensor, {**target, "orig_size": torch.tensor([sample.image.height, sample.image.width])}

    def _sample(self, index: int, epoch: int) -> Sample:
        """An image with its objects, as they are. Raises CorruptImageError."""
        image = self.load_image(index)
        rows = self.annotations.objects(index)
        single = ~self.annotations.crowd[rows]
        boxes = self.annotations.boxes[rows][single]
        labels = self.annotations.slots(rows)[single]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).astype(np.float32)
        return Sample(image, corners, labels, epoch).clip_boxes()

    def load_image(self, index: int) -> Image.Image:
        """The image as RGB, turned as its annotations have it. Raises CorruptImageError.

        The listed height and width decide: an image that is stored with them is taken as it is stored, as the papers'
        code takes all; one that has them only after turning it as its EXIF entry says, is turned.
        """
        path = self.path(index)
        listed = tuple(int(side) for side in self.annotations.sizes[index][::-1])
        encoded = self.cache.read(index) if self.cache else None
        image = read_image(path, listed, self.max_pixels, encoded or None)  # what the cache lacks says why
        if image.size != listed and all(listed):
            raise CorruptImageError(f"{path}: is {image.size} pixels large, its annotations say {listed}")
        return image

    def path(self, index: int) -> Path:
        """Where the image lies. Raises CorruptImageError when its name leads out of the folder."""
        name = self.annotations.name(index)
        if leaves_folder(name):
            raise CorruptImageError(f"{self.folder / name}: leads out of the image folder {self.folder}")
        return self.folder / name


class _Cache:
    """All encoded images of a data set in one block of shared memory."""

    def __init__(self, dataset: DetectionDataset):
        sizes = [self._size(dataset, index) for index in range(len(dataset))]
        self.ends = np.concatenate([[0], np.cumsum(sizes)])
        self.block = shared_bytes(max(1, int(self.ends[-1])), f"--cache_mode: the images of {dataset.folder} need")
        for index, size in enumerate(sizes):
            if size:
                with dataset.path(index).open("rb") as file:
                    file.readinto(self._part(index))
        log.info("cached %d images of %s, %.1f MB", len(sizes), dataset.folder, self.ends[-1] / 1e6)

    @staticmethod
    def _size(dataset: DetectionDataset, index: int) -> int:
        try:
            return dataset.path(index).stat().st_size
        except OSError:  # said when the image is asked for
            return 0

    def _part(self, index: int) -> np.ndarray:
        return self.block[self.ends[index] : self.ends[index + 1]].numpy()

    def read(self, index: int) -> bytes:
        """The encoded image."""
        return self._part(index).tobytes()
