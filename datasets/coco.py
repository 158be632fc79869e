"""Pictures and boxes of one split, ready for a model."""

import io
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from datasets.annotations import Annotations
from datasets.transforms import EvalTransform, Sample, TrainTransform

log = logging.getLogger(__name__)

TRIES = 10
"""How many pictures in a row may be unreadable before training stops."""


class BrokenPictureError(OSError):
    """A picture that cannot be read; the message names the file and what is wrong with it."""


class DetectionDataset(Dataset):
    """A split of a data set in COCO format.

    An item is asked for by index, or by (index, epoch): the two and the seed fix every random choice of its
    augmentation, whichever worker makes it and in whatever order.

    Args:
        annotations: what is on the pictures.
        folder: where the pictures are.
        transform: TrainTransform or EvalTransform.
        training: an unreadable picture is replaced by the next one; in evaluation it has no sample.
        seed: of the augmentation.
        cached: keep the encoded pictures in memory, shared with the workers.
    """

    def __init__(
        self,
        annotations: Annotations,
        folder: Path,
        transform: TrainTransform | EvalTransform,
        training: bool,
        seed: int = 0,
        cached: bool = False,
    ):
        self.annotations, self.folder, self.transform = annotations, folder, transform
        self.training, self.seed = training, seed
        self.slots = np.zeros(1 + max(annotations.categories.slots), dtype=np.int64)
        for category, slot in annotations.categories.slots.items():
            self.slots[category] = slot
        self.cache = _Cache(self) if cached else None

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor | None, dict]:
        """Picture and target.

        Returns:
            (3, h, w) float, or None for an unreadable picture in evaluation; and a dict with `labels` (T,), `boxes`
            (T, 4) as cx, cy, w, h in (0, 1), `size`, `orig_size` (h, w), `image_id`, and `broken`: messages about
            unreadable files. Crowd boxes are not among the objects; they stay in the annotations for evaluation.

        Raises:
            BrokenPictureError: too many unreadable pictures in a row, in training.
        """
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        broken = []
        for step in range(TRIES):
            chosen = (index + step) % len(self)
            try:
                image, target = self._load(chosen, np.random.default_rng((self.seed, epoch, index, step)))
            except BrokenPictureError as error:
                broken.append(str(error))
                if not self.training:
                    return None, {"image_id": self._image_id(index), "broken": broken}
                continue
            return image, {**target, "image_id": self._image_id(chosen), "broken": broken}
        raise BrokenPictureError(f"{TRIES} pictures in a row cannot be read, the last: {broken[-1]}")

    def _image_id(self, index: int) -> Tensor:
        return torch.tensor(int(self.annotations.image_ids[index]))

    def _load(self, index: int, rng: np.random.Generator) -> tuple[Tensor, dict]:
        image = self.picture(index)
        rows = self.annotations.objects(index)
        single = ~self.annotations.crowd[rows]
        boxes = self.annotations.boxes[rows][single]
        labels = self.slots[self.annotations.category_ids[rows][single]]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).astype(np.float32)
        sample = Sample(image, corners, labels).clipped()
        tensor, target = self.transform(sample, rng).tensors()
        return tensor, {**target, "orig_size": torch.tensor([image.height, image.width])}

    def picture(self, index: int) -> Image.Image:
        """The picture as RGB, turned as its annotations have it. Raises BrokenPictureError."""
        path = self.path(index)
        try:
            encoded = self.cache.read(index) if self.cache else path.read_bytes()
            image = Image.open(io.BytesIO(encoded))
            image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BrokenPictureError(f"{path}: cannot be read: {error}") from error
        listed = tuple(int(side) for side in self.annotations.sizes[index][::-1])
        if image.size != listed:
            image = ImageOps.exif_transpose(image)
        if image.size != listed and all(listed):
            raise BrokenPictureError(f"{path}: is {image.size} pixels large, its annotations say {listed}")
        return _to_rgb(image)

    def path(self, index: int) -> Path:
        """Where the picture lies. Raises BrokenPictureError when its name leads out of the folder."""
        path = self.folder / self.annotations.name(index)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise BrokenPictureError(f"{path}: leads out of the picture folder {self.folder}")
        return path


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; 16-bit pictures are scaled, not cut."""
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


class _Cache:
    """All encoded pictures of a data set in one block of shared memory."""

    def __init__(self, dataset: DetectionDataset):
        contents = []
        for index in range(len(dataset)):
            try:
                contents.append(dataset.path(index).read_bytes())
            except OSError:  # said when the picture is asked for
                contents.append(b"")
        ends = np.cumsum([len(content) for content in contents])
        self.ends = np.concatenate([[0], ends])
        self.block = torch.frombuffer(bytearray(b"".join(contents)) or bytearray(1), dtype=torch.uint8).share_memory_()
        log.info("cached %d pictures of %s, %.1f MB", len(contents), dataset.folder, self.ends[-1] / 1e6)

    def read(self, index: int) -> bytes:
        """The encoded picture."""
        return self.block[self.ends[index] : self.ends[index + 1]].numpy().tobytes()
