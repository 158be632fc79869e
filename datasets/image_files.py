"""Images without annotations: files, folders, patterns and videos, as a user names them, and images in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.images import (
    MAX_PIXELS,
    CorruptImageError,
    check_found,
    find_files,
    image_suffixes,
    read_image,
    upright_rgb,
)

VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
TAKEN = (
    "taken are paths, PIL images, numpy arrays (H, W, 3) of uint8, and tensors (3, H, W) of uint8 or of floats in "
    "0..1; several of them as a list"
)
ROUNDING = 1e-3
"""By how much floats may lie outside of 0..1: resizing and conversions round."""


@dataclass(frozen=True)
class InputImage:
    """An image in memory.

    Attributes:
        path: of its file.
        image: RGB, upright.
        frame: its number in a video, from 0; None for an image of its own.
        rate: frames per second of the video.
        root: the folder that its file is named relative to; None where it is called as its path is.
    """

    path: Path
    image: Image.Image
    frame: int | None = None
    rate: float | None = None
    root: Path | None = None

    @property
    def name(self) -> str:
        """The file's name, relative to the folder that was named; a frame has its number behind it."""
        name = self.path.relative_to(self.root) if self.root else self.path
        return str(name) if self.frame is None else f"{name}#{self.frame}"


def find_image_files(arguments: list[str], without: Path | None = None) -> dict[Path, Path | None]:
    """The images and videos that a command line means. See datasets.images.find_files."""
    return find_files(arguments, image_suffixes() | VIDEOS, without)


def read_images(path: Path, root: Path | None = None, max_pixels: int = MAX_PIXELS) -> Iterator[InputImage]:
    """The image in a file, or the frames of a video.

    Args:
        path, root: as `find_image_files` gives them.
        max_pixels: width times height of the largest image that is read.

    Raises:
        CorruptImageError: there is no such file, or it cannot be used.
    """
    check_found(path, image_suffixes() | VIDEOS)
    if path.suffix.lower() in VIDEOS and path.is_file():
        yield from _frames(path, root)
    else:
        yield InputImage(path, read_image(path, max_pixels=max_pixels), root=root)


def _frames(path: Path, root: Path | None) -> Iterator[InputImage]:
    try:
        import cv2
    except ImportError as error:
        raise CorruptImageError(f"{path}: videos need OpenCV: pip install opencv-python-headless") from error
    video = cv2.VideoCapture(str(path))
    rate = video.get(cv2.CAP_PROP_FPS) or 25.0
    number = 0
    try:
        while (answer := video.read())[0]:
            yield InputImage(path, Image.fromarray(cv2.cvtColor(answer[1], cv2.COLOR_BGR2RGB)), number, rate, root)
            number += 1
    finally:
        video.release()
    if number == 0:
        raise CorruptImageError(f"{path}: OpenCV finds no frames in it")


def as_image(given: str | PathLike | Image.Image | np.ndarray | torch.Tensor, max_pixels=MAX_PIXELS) -> Image.Image:
    """An RGB image of what stands for one.

    Args:
        given: a path; a PIL image of any mode; an array (H, W, 3) of uint8, in RGB; a tensor (3, H, W) of uint8 or of
            floats in 0..1, which are rounded to 8 bits. Paths and PIL images are turned as their EXIF entry says.
        max_pixels: width times height of the largest image that is read of a file.

    Raises:
        CorruptImageError: a file that cannot be used, or a PIL image that was opened from one.
        TypeError, ValueError: anything else; the message says what was given and what is taken.
    """
    if isinstance(given, str | PathLike):
        return read_image(Path(given), max_pixels=max_pixels)
    if isinstance(given, Image.Image):
        try:
            return upright_rgb(given)
        except Exception as error:  # a file that Pillow opened is decoded now
            if file := getattr(given, "filename", ""):
                raise CorruptImageError(f"{file}: cannot be read: {error}") from error
            raise ValueError(f"a PIL image of mode {given.mode}, {given.size}, is no image: {error}") from error
    if isinstance(given, np.ndarray):
        said, fits = f"a numpy array {given.shape} of {given.dtype}", given.ndim == 3 and given.shape[2] == 3
        kind = given.dtype == np.uint8
    elif isinstance(given, torch.Tensor):
        said, fits = f"a tensor {tuple(given.shape)} of {given.dtype}", given.ndim == 3 and given.shape[0] == 3
        kind = given.dtype == torch.uint8 or given.is_floating_point()
    else:
        raise TypeError(f"{type(given).__name__} {given!r:.80} is no image; {TAKEN}")
    if not kind:
        raise TypeError(f"{said} is no image; {TAKEN}")
    if not fits or 0 in given.shape:
        raise ValueError(f"{said} is no image; {TAKEN}")
    return Image.fromarray(np.ascontiguousarray(given if isinstance(given, np.ndarray) else _pixels(given, said)))


def _pixels(tensor: torch.Tensor, said: str) -> np.ndarray:
    """(3, h, w) -> (h, w, 3) uint8."""
    tensor = tensor.detach().cpu().permute(1, 2, 0)
    if tensor.is_floating_point():
        low, high = (float(x) for x in tensor.float().aminmax())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN is neither
            raise ValueError(f"{said} from {low:g} to {high:g} is no image; {TAKEN}")
        tensor = (tensor.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return tensor.numpy()
