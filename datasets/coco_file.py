"""What a COCO annotation file lists, as columns, sensible or not. `datasets.checks` judges it."""

import json
import math
import mmap
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OBJECT, IMAGE = object(), object()
"""What stands in the parsed lists for entries that were taken into columns."""


OUTLINES = re.compile(rb'"segmentation"\s*:\s*\[[\d\s.,eE+\-\[\]]*\](?=\s*(?:,\s*"|\}))')
"""Polygons: most of a file, and nothing that a detector needs."""


@dataclass(frozen=True)
class Listing:
    """The entries of an annotation file, in its order.

    Attributes:
        file: where it was read from.
        categories: the dicts of the list `categories`.
        image_ids: (I,) int64.
        names: (I,) file names, as bytes.
        sizes: (I, 2) int32, height and width; 0 where the file does not say.
        places: (A,) int64: which entry of the list `annotations` an object is.
        ids, object_image_ids, category_ids: (A,) int64: its own id, -1 for none; the id of its image; of its category.
        boxes: (A, 4) float64, x, y, width, height in pixels.
        areas: (A,) float64, width * height where the file does not say.
        crowd: (A,) bool.
        unusable: (U,) int64: entries of `annotations` without a bbox of four numbers, image_id or category_id.
    """

    file: Path
    categories: list[dict]
    image_ids: np.ndarray
    names: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    ids: np.ndarray
    object_image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    unusable: np.ndarray


class _Columns:
    """Takes images and objects out of the parser's hands one by one, so that their dicts never exist all together."""

    def __init__(self):
        self.numbers, self.keys, self.usable = array("d"), array("q"), array("b")
        self.image_ids, self.names, self.sizes = [], [], []

    def __call__(self, entry: dict):
        """What the JSON parser does with every dict."""
        if "file_name" in entry:
            self.image_ids.append(entry.get("id"))
            self.names.append(entry["file_name"])
            self.sizes.append((entry.get("height"), entry.get("width")))
            return IMAGE
        if "image_id" in entry:
            self._take(entry)
            return OBJECT
        return entry

    def _take(self, entry: dict):
        try:
            x, y, w, h = map(float, entry["bbox"])
            area = entry.get("area")
            numbers = (x, y, w, h, w * h if area is None else float(area))
            keys = (whole_number(entry["image_id"]), whole_number(entry["category_id"]), bool(entry.get("iscrowd", 0)))
        except (KeyError, TypeError, ValueError, OverflowError):
            numbers, keys = (), ()
        own = entry.get("id")
        self.usable.append(bool(keys))
        self.numbers.extend(numbers)
        self.keys.extend(keys and (*keys, own if type(own) is int and abs(own) < 2**63 else -1))


def parse_coco_file(file: Path) -> Listing:
    """Reads an annotation file.

    Args:
        file: JSON with `images`, `categories` and, unless the images are to be detected blindly, `annotations`.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or is no COCO annotation file; the message says why.
    """
    try:
        columns = _Columns()
        content = load_json(file, columns, lambda text: OUTLINES.sub(b'"segmentation":0', text))
    except ValueError:  # of something unusual that the pattern cut in two, or of the file itself
        columns = _Columns()
        content = load_json(file, columns)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{file}: not a COCO annotation file: it has no list 'images'")
    images, annotations, categories = (content.get(key) or [] for key in ("images", "annotations", "categories"))
    if not images:
        raise ValueError(f"{file}: lists no images")
    for name, entries in (("annotations", annotations), ("categories", categories)):
        if not isinstance(entries, list):
            raise ValueError(f"{file}: '{name}' is a {type(entries).__name__}, not a list")
    for place, entry in enumerate(images):
        if entry is not IMAGE:
            raise ValueError(f"{file}: images[{place}] has no 'file_name'")
    taken = np.fromiter((entry is OBJECT for entry in annotations), bool, len(annotations))
    if len(columns.image_ids) != len(images) or len(columns.usable) != taken.sum():
        raise ValueError(f"{file}: not a COCO detection file: images or objects stand outside of their lists")
    return Listing(file, categories, *_images(file, columns), *_objects(columns, taken))


def load_json(file: Path, hook: Callable | None = None, shorten: Callable[[mmap.mmap], bytes] | None = None):
    """The content of a JSON file.

    Args:
        hook: what the parser does with every dict.
        shorten: what is done with the text before it is parsed.

    Raises:
        FileNotFoundError, ValueError: names the file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such annotation file; docs/training.md shows the layouts")
    if not file.stat().st_size:
        raise ValueError(f"{file}: not a JSON file: it is empty")
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            text = str(shorten(content) if shorten else content, json.detect_encoding(content[:4]))
        return json.loads(text, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a JSON file: {error}") from error


def _images(file: Path, columns: _Columns) -> tuple[np.ndarray, ...]:
    """image_ids, names, sizes."""
    ids, sizes = [], []
    for place, (key, name, size) in enumerate(zip(columns.image_ids, columns.names, columns.sizes, strict=True)):
        try:
            ids.append(whole_number(key))
            sizes.append([whole_number(side or 0) for side in size])
            if not isinstance(name, str) or not name or "\0" in name:
                raise ValueError(f"{name!r} is not a name")
            if not 0 <= min(sizes[-1]) <= max(sizes[-1]) < 2**31:
                raise ValueError(f"height {size[0]!r}, width {size[1]!r}")
        except (TypeError, ValueError) as error:
            wanted = "expected a whole number 'id', a 'file_name', and no or sensible 'height' and 'width'"
            raise ValueError(f"{file}: images[{place}]: {error}; {wanted}") from error
    names = np.array([name.encode("utf-8", "surrogateescape") for name in columns.names])
    return np.array(ids, dtype=np.int64), names, np.array(sizes, dtype=np.int32).reshape(-1, 2)


def _objects(columns: _Columns, taken: np.ndarray) -> tuple[np.ndarray, ...]:
    """places, ids, object_image_ids, category_ids, boxes, areas, crowd; unusable."""
    usable = np.array(columns.usable, dtype=bool)
    places = taken.nonzero()[0]
    numbers = np.array(columns.numbers).reshape(-1, 5)
    image, category, crowd, own = np.array(columns.keys, dtype=np.int64).reshape(-1, 4).T
    unusable = np.sort(np.concatenate([places[~usable], (~taken).nonzero()[0]]))
    boxes, areas = np.ascontiguousarray(numbers[:, :4]), numbers[:, 4].copy()
    return places[usable], own.copy(), image.copy(), category.copy(), boxes, areas, crowd.astype(bool), unusable


def whole_number(value) -> int:
    """A whole number of 64 bits, also one that is written 3.0."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if type(value) is float and math.isfinite(value) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    raise ValueError(f"{value!r} is not a whole number")
