"""A batch of images of different sizes as one tensor."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@torch.compiler.assume_constant_result
def _nearest_extent(size: int, full: int, cells: int) -> int:
    """How many of `cells` lie in the first `size` of `full` pixels, by PyTorch's nearest-neighbour rule in float32.

    Not computed by PyTorch itself, so that compiled and exported programs take it for the plain number that it is.
    """
    source = np.arange(cells, dtype=np.float32) * (np.float32(full) / np.float32(cells))
    return int((source.astype(np.int64) < size).sum())


def image_sizes(images: list[Tensor]) -> tuple[tuple[int, int], ...]:
    """((h, w), ...) of (3, h, w) tensors. Raises ValueError when the list is empty or a shape does not fit."""
    if not images or any(image.dim() != 3 for image in images):
        raise ValueError(f"a batch is a list of (3, h, w) tensors, got shapes {[tuple(i.shape) for i in images]}")
    return tuple((image.shape[1], image.shape[2]) for image in images)


@dataclass(frozen=True)
class ImageBatch:
    """Images padded with zeros to the right and at the bottom, to the largest height and width of the batch.

    Attributes:
        images: (B, 3, H, W) float.
        padding: (B, H, W) bool, True where there is no image.
        sizes: ((h, w), ...) of the images without padding, as plain numbers: what depends on sizes alone is computed
            on the host. Read off `padding` when not given. One may stand for all images, as in programs whose batches
            are of any length; `padding` is then (1, H, W).
    """

    images: Tensor
    padding: Tensor
    sizes: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self):
        if self.sizes is None:
            heights, widths = (~self.padding[:, :, 0]).sum(1).tolist(), (~self.padding[:, 0]).sum(1).tolist()
            object.__setattr__(self, "sizes", tuple(zip(heights, widths, strict=True)))

    @classmethod
    def of(cls, images: list[Tensor]) -> "ImageBatch":
        """Pads a list of (3, h, w) tensors. Raises ValueError when the list is empty or a shape does not fit."""
        sizes = image_sizes(images)
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        shape, like = (len(images), images[0].shape[0], height, width), images[0]
        batch = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last).zero_()
        padding = torch.ones(len(images), height, width, dtype=torch.bool, device=batch.device)
        for i, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
            batch[i, :, :h, :w] = image
            padding[i, :h, :w] = False
        return cls(batch, padding, sizes)

    def extents(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """((h, w), ...): the part of a (height, width) feature map that each image covers; the rest is padding."""
        full_height, full_width = self.images.shape[-2:]
        sizes = self.sizes or ()  # never None after __post_init__
        return tuple((_nearest_extent(h, full_height, height), _nearest_extent(w, full_width, width)) for h, w in sizes)

    def to(self, device, non_blocking: bool = False) -> "ImageBatch":
        """The same batch on another device."""
        images = self.images.to(device, non_blocking=non_blocking)
        return ImageBatch(images, self.padding.to(device, non_blocking=non_blocking), self.sizes)

    def pin_memory(self) -> "ImageBatch":
        """The same batch in page-locked memory; the data loader calls this."""
        return ImageBatch(self.images.pin_memory(), self.padding.pin_memory(), self.sizes)

    def __len__(self) -> int:
        return len(self.images)
