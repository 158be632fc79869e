"""Runs an exported detector on images. Needs numpy, Pillow and onnxruntime alone; copy it wherever the file goes.

usage: python run_onnx.py model.onnx IMAGE|FOLDER|PATTERN ... [--score S] [--output_dir DIR] [--max_pixels N]

model.onnx comes from `tools/export.py --with_processing`. Prints what was found; with --output_dir draws it too. Exits
with 1 if not one image could be used.
"""

import argparse
import functools
import glob
import io
import itertools
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import ExifTags, Image, ImageDraw, ImageFile, UnidentifiedImageError

# ------------------------------------------------------------------------------------------------------------ images
# Word for word as in datasets/images.py, so that images are read as in training; tests/tools/test_run_onnx.py compares.

MAX_PIXELS = 89_478_485
"""Width times height of the largest image that is read where nothing else is said: Pillow's own limit."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations, and what turns an image upright."""
PILLOWS_LIMIT = threading.Lock()
"""Held while Pillow's own limit, which is one for the whole process, is off."""


class CorruptImageError(OSError):
    """An image that cannot be used; the message names the file and what is wrong with it."""


def read_image(
    path: Path, listed: tuple[int, int] = (0, 0), max_pixels: int = MAX_PIXELS, encoded: bytes | None = None
) -> Image.Image:
    """The image in a file as RGB; of several frames or pages the first.

    Args:
        path: of the file.
        listed: width and height as something else says. An image that is stored with them is taken as it is stored;
            any other is turned as its EXIF entry says.
        max_pixels: width times height of the largest image that is decoded.
        encoded: what is in the file, where that was read before.

    Raises:
        CorruptImageError: there is no such file, or it is damaged, too large, or no image that can be used.
    """
    try:
        encoded = path.read_bytes() if encoded is None else encoded
        if not encoded:
            raise ValueError("the file is empty")
        return upright_rgb(_open_image(encoded, max_pixels), listed)
    except UnidentifiedImageError as error:
        raise CorruptImageError(f"{path}: cannot be read: not an image of a known format") from error
    except Exception as error:  # decoders raise whatever comes to their mind on damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CorruptImageError(f"{path}: cannot be read: {reason}") from error


def _open_image(encoded: bytes, max_pixels: int) -> Image.Image:
    with PILLOWS_LIMIT:  # it only warns of some images, refuses others, and looks at some again as they are decoded
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(encoded))
            width, height = image.size
            if width * height > max_pixels:
                raise ValueError(
                    f"{width} x {height} are {width * height} pixels, and more than {max_pixels} are refused; "
                    "data.max_pixels in a config, max_pixels of a Predictor and --max_pixels of a tool allow more"
                )
            if usual is not None and width * height > usual:
                image.load()
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    return image


def upright_rgb(image: Image.Image, listed: tuple[int, int] = (0, 0)) -> Image.Image:
    """An image of any mode as a new one in RGB: 16 bits are scaled, not cut; transparency is dropped.

    Args:
        image: as Pillow opened it.
        listed: width and height with which it is not turned; any other is turned as its EXIF entry says.

    Raises:
        ValueError: it has no pixels, or ones of an unknown range.
    """
    image.load()
    if 0 in image.size:
        raise ValueError("it has no pixels")
    turn = None if image.size == listed else _turn(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        raise ValueError("its pixels are fractions of an unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _from_16_bits(np.asarray(image))
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    image.info = {}  # what it said of turning is done, and must not be done again
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a damaged EXIF entry turns nothing, and its image is whole
        return None


def _from_16_bits(values: np.ndarray) -> Image.Image:
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"its pixels are {low} to {high}, which are not 16 bits; save it with 8 or 16 bits")
    return Image.fromarray((values.astype(np.float64) / 257).astype(np.uint8))


@functools.cache
def image_suffixes() -> frozenset[str]:
    """What names of images end in, in lower case: all formats that Pillow decodes here without another program."""
    Image.init()
    stubs = {name for name, (make, _) in Image.OPEN.items() if _is_stub(make)} | {"EPS", "MPEG"}
    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN and name not in stubs
    )


def _is_stub(make) -> bool:
    return isinstance(make, type) and issubclass(make, ImageFile.StubImageFile)


def find_files(
    arguments: Iterable[str], suffixes: Collection[str], without: Path | None = None
) -> dict[Path, Path | None]:
    """The files that a command line means, each once, in its order.

    Args:
        arguments: files, which may end as they like; folders, of which and of whose sub-folders all is taken that ends
            in one of `suffixes` and is not hidden; patterns ("a/**/*.jpg").
        suffixes: in lower case.
        without: a folder that is not looked into where it lies in another: the one that is written to.

    Returns:
        {file: the folder that it is named relative to}. None where it keeps the name that it was given with: for a file
        that was named itself or by a pattern, and for files of one name in several folders that were named. What names
        no file stays in the list, and `check_found` and `read_image` say what is wrong with it.
    """
    found: dict[Path, Path | None] = {}
    for argument in arguments:
        matches = [] if Path(argument).exists() else sorted(glob.glob(argument, recursive=True))
        for path in map(Path, matches or [argument]):
            inside = sorted(_files_below(path, suffixes, without)) if path.is_dir() else []
            for file in inside or [path]:
                found.setdefault(file, path if inside and not matches else None)
    names = Counter(file.relative_to(folder) for file, folder in found.items() if folder)
    return {file: folder if folder and names[file.relative_to(folder)] == 1 else None for file, folder in found.items()}


def _files_below(folder: Path, suffixes: Collection[str], without: Path | None) -> Iterator[Path]:
    seen = set() if without is None else {os.path.realpath(without)} - {os.path.realpath(folder)}
    closed: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=lambda e: closed.append(Path(e.filename)), followlinks=True):
        if os.path.realpath(place) in seen:  # links may lead back
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(place, name)
    yield from closed


def check_found(path: Path, suffixes: Collection[str]):
    """Raises CorruptImageError for a folder that `find_files` could not list, or in which it found nothing."""
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise CorruptImageError(f"{path}: a folder that cannot be listed: permission denied")
        raise CorruptImageError(
            f"{path}: a folder without images: no file in it or its sub-folders ends in one of "
            f"{', '.join(sorted(suffixes))}; hidden files and folders are left out"
        )


class OutputNames:
    """Gives every input of a run a name of its own for what is written about it.

    Args:
        folder: of all outputs.
    """

    def __init__(self, folder: Path):
        self.folder, self.taken = folder, set()

    def place(self, file: Path, root: Path | None) -> Path:
        """Where the output about a file goes, without an ending; the folder is made.

        Args:
            file, root: as `find_files` gives them. A file in a sub-folder of `root` has its output in one, too.
        """
        name = (file.relative_to(root) if root else Path(file.name)).with_suffix("")
        numbered = (name.with_name(f"{name.name}-{number}") for number in itertools.count(2))
        name = next(name for name in itertools.chain([name], numbered) if name not in self.taken)
        self.taken.add(name)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        return self.folder / name


# ------------------------------------------------------------------------------------------------------- the detector


class Detector:
    """An exported program: detector(image) -> scores (n,), labels (n,), boxes (n, 4) as x0, y0, x1, y1 in pixels."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options)
        if self.session.get_inputs()[0].name != "image":
            raise SystemExit(f"{path}: takes resized tensors; export it with --with_processing")
        self.names = json.loads(self.session.get_modelmeta().custom_metadata_map.get("names", "[]"))

    def __call__(self, image: Image.Image) -> list[np.ndarray]:
        return self.session.run(None, {"image": np.array(image.convert("RGB"))})

    def name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else str(label)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", help="files, folders with their sub-folders, patterns ('a/**/*.jpg')")
    parser.add_argument("--score", type=float, default=0.3, help="detections below are left out")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="images of more are skipped")
    args = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # a console need not know every character of a class or a path
    if args.output_dir:
        try:
            args.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--output_dir {args.output_dir}: no folder to write to: {error.strerror}; choose another")
    detector, names = Detector(args.model), args.output_dir and OutputNames(args.output_dir)
    used = 0
    for path, root in find_files(args.images, image_suffixes(), args.output_dir).items():
        try:
            check_found(path, image_suffixes())
            image = read_image(path, max_pixels=args.max_pixels)
        except CorruptImageError as error:
            print(f"skipped {error}", file=sys.stderr)
            continue
        used += 1
        pen = ImageDraw.Draw(image)
        for score, label, box in zip(*detector(image), strict=True):
            if score >= args.score:
                print(f"{path}: {detector.name(label)} {score:.2f} at {box.round().astype(int).tolist()}")
                pen.rectangle((*box[:2], *box.clip(box[[0, 1, 0, 1]])[2:]), outline="red", width=2)
                pen.text(box[:2], f"{detector.name(label)} {score:.2f}", fill="red")
        if names:
            target = f"{names.place(path, root)}.png"
            try:
                image.save(target)
            except OSError as error:
                raise SystemExit(f"{target}: cannot be written: {error.strerror or error}; make space") from error
    return 0 if used else 1


if __name__ == "__main__":
    sys.exit(main())
