"""Images without annotations: files, folders, patterns and videos, as a user names them."""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from datasets.coco import CorruptImageError, to_rgb

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""What is taken of a folder. A file that is named itself may end as it likes."""
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}


@dataclass(frozen=True)
class InputImage:
    """An image in memory.

    Attributes:
        path: of its file.
        image: RGB, upright.
        frame: its number in a video, from 0; None for an image of its own.
        rate: frames per second of the video.
    """

    path: Path
    image: Image.Image
    frame: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        """The file's name as it was given; a frame has its number behind it."""
        return str(self.path) if self.frame is None else f"{self.path}#{self.frame}"


def find_image_files(arguments: list[str]) -> list[Path]:
    """The files that a command line means, each once.

    Args:
        arguments: files; folders, of which the images and videos directly in them are taken; patterns ("a/**/*.jpg").

    Returns:
        files, sorted within each argument. What names no file stays in the list: reading it says what is wrong.
    """
    found = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES | VIDEOS)
            found += inside or [path]
        elif path.exists():
            found.append(path)
        else:
            found += [Path(match) for match in sorted(glob.glob(argument, recursive=True))] or [path]
    return list(dict.fromkeys(found))


def read_images(path: Path) -> Iterator[InputImage]:
    """The image in a file, or the frames of a video. Raises CorruptImageError."""
    if path.is_dir():
        raise CorruptImageError(f"{path}: a folder without images ({', '.join(sorted(SUFFIXES | VIDEOS))})")
    if not path.is_file():
        raise CorruptImageError(f"{path}: there is no such file")
    if path.suffix.lower() in VIDEOS:
        yield from _frames(path)
    else:
        yield InputImage(path, _read(path))


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise whatever comes to their mind on damaged files
        raise CorruptImageError(f"{path}: cannot be read: {error or type(error).__name__}") from error


def _frames(path: Path) -> Iterator[InputImage]:
    try:
        import cv2
    except ImportError as error:
        raise CorruptImageError(f"{path}: videos need OpenCV: pip install opencv-python-headless") from error
    video = cv2.VideoCapture(str(path))
    rate = video.get(cv2.CAP_PROP_FPS) or 25.0
    number = 0
    try:
        while (answer := video.read())[0]:
            yield InputImage(path, Image.fromarray(cv2.cvtColor(answer[1], cv2.COLOR_BGR2RGB)), number, rate)
            number += 1
    finally:
        video.release()
    if number == 0:
        raise CorruptImageError(f"{path}: OpenCV finds no frames in it")
