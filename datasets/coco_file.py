"""What a COCO annotation file lists, as columns, sensible or not. `datasets.checks` judges it."""

import json
import mmap
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.outlines import box_of_outline
from datasets.values import id_or_none, name_in_url, shown, side, stated_area, truth, whole_number

OBJECT, IMAGE = object(), object()
"""What stands in the parsed lists for entries that were taken into columns."""

OUTLINES = re.compile(rb'"segmentation"\s*:\s*\[[\d\s.,eE+\-\[\]]*\](?=\s*(?:,\s*"|\}))')
"""Polygons: most of a file, and nothing that a detector needs where there are boxes."""
CUT_OUTLINE = 0
"""What is left of a polygon."""

NO_ID = -(2**63)
"""Stands for the id of an object that has none of its own."""

NO_ENTRY = "entries of annotations that are no objects"

WANTED = {"bbox": "four numbers", "image_id": "a whole number", "category_id": "a whole number", "iscrowd": "0 or 1"}
"""What an object must have under its keys."""


class _UnusableError(ValueError):
    """An object that cannot be used. Its arguments say what it lacks, and what it has instead."""


def _unusable(key: str, entry: dict) -> _UnusableError:
    """The error of an object whose value under a key is none."""
    value = f"{key} {shown(entry[key])}" if key in entry else f"no {key}"
    return _UnusableError(f"entries without a usable {key} ({WANTED[key]})", value)


@dataclass(frozen=True)
class Listing:
    """The entries of an annotation file, in its order.

    Attributes:
        file: where it was read from.
        categories: the dicts of the list `categories`.
        image_ids: (I,) int64.
        names: (I,) file names, as bytes.
        sizes: (I, 2) int32, height and width; 0 where the file does not say.
        from_urls: (I,) bool: images without a file name, which were named after their `coco_url`.
        places: (A,) int64: which entry of the list `annotations` an object is.
        ids, object_image_ids, category_ids: (A,) int64: its own id, NO_ID for none; the id of its image; of its
            category.
        boxes: (A, 4) float64, x, y, width, height in pixels.
        areas: (A,) float64; NaN where the file does not say, infinity where it says what is no number.
        crowd: (A,) bool.
        outlined: (A,) bool: objects without a box, which was made from their outline.
        unusable: {what is wrong: the entries of `annotations` that have it, as (place, value)}.
    """

    file: Path
    categories: list[dict]
    image_ids: np.ndarray
    names: np.ndarray
    sizes: np.ndarray
    from_urls: np.ndarray
    places: np.ndarray
    ids: np.ndarray
    object_image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    outlined: np.ndarray
    unusable: dict[str, list[tuple[int, str]]]

    @property
    def num_objects(self) -> int:
        """Entries of the list `annotations`."""
        return len(self.places) + sum(map(len, self.unusable.values()))


class _Columns:
    """Takes images and objects out of the parser's hands one by one, so that their dicts never exist all together.

    Attributes:
        lacks_outlines: an object has no box, and an outline that was cut out of the text.
        panoptic: an object has segments in place of a box.
    """

    def __init__(self):
        self.numbers, self.keys = array("d"), array("q")
        self.usable, self.outlined = array("b"), array("b")
        self.faults = []
        self.image_ids, self.names, self.sizes, self.from_urls = [], [], [], []
        self.lacks_outlines = self.panoptic = False

    def __call__(self, entry: dict):
        """What the JSON parser does with every dict, of whatever list: `agree` finds out whether that was right."""
        if "image_id" in entry:
            return self.take_object(entry)
        if "file_name" in entry or "coco_url" in entry:
            return self.take_image(entry)
        return entry

    def take_image(self, entry: dict):
        """Takes an entry of `images`, without a look at its values."""
        self.image_ids.append(entry.get("id"))
        self.names.append(entry.get("file_name"))
        self.from_urls.append(self.names[-1] is None)
        if self.from_urls[-1]:
            self.names[-1] = name_in_url(entry.get("coco_url"))
        self.sizes.append((entry.get("height"), entry.get("width")))
        return IMAGE

    def take_object(self, entry: dict):
        """Takes an entry of `annotations`, if it can be used."""
        try:
            numbers, keys, outlined = self._values(entry)
        except _UnusableError as error:
            self.faults.append(error.args)
            self.panoptic |= "segments_info" in entry
            numbers, keys, outlined = (), (), False
        self.usable.append(bool(keys))
        self.numbers.extend(numbers)
        self.keys.extend(keys)
        if keys:
            self.outlined.append(outlined)
        return OBJECT

    def _values(self, entry: dict) -> tuple[tuple[float, ...], tuple[int, ...], bool]:
        """x, y, w, h, area; image_id, category_id, iscrowd, id; whether the box is the outline's."""
        box = entry.get("bbox")
        if outlined := not box:
            box = self._box_of_outline(entry)
        try:
            if type(box) is not list:
                raise ValueError
            x, y, w, h = map(float, box)
        except (TypeError, ValueError, OverflowError) as error:
            raise _unusable("bbox", entry) from error
        own = id_or_none(entry.get("id"))
        keys = (
            _read(whole_number, "image_id", entry),
            _read(whole_number, "category_id", entry),
            _read(truth, "iscrowd", entry),
            NO_ID if own is None else own,
        )
        return (x, y, w, h, stated_area(entry.get("area"))), keys, outlined

    def _box_of_outline(self, entry: dict) -> list[float] | None:
        outline = entry.get("segmentation")
        self.lacks_outlines |= outline == CUT_OUTLINE
        return box_of_outline(outline) if outline else None

    def agree(self, images: list, objects: list) -> bool:
        """Whether all that was taken is what stands in a file's two lists."""
        return (
            len(self.image_ids) == len(images)
            and all(entry is IMAGE for entry in images)
            and len(self.usable) == sum(entry is OBJECT for entry in objects)
            and not any(entry is IMAGE for entry in objects)
        )


def _read(read: Callable, key: str, entry: dict):
    try:
        return read(entry.get(key))
    except ValueError as error:
        raise _unusable(key, entry) from error


def parse_coco_file(file: Path) -> Listing:
    """Reads an annotation file.

    Args:
        file: JSON with `images` and, unless the images are to be detected blindly, `categories` and `annotations`.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or is no COCO annotation file; the message says why.
    """
    content, columns = _parsed(file)
    images, objects, categories = _lists(file, content)
    if not columns.agree(images, objects):  # keys of their own made entries look like those of another list
        images, objects, categories = _lists(file, load_json(file, pairs=_once))
        columns = _Columns()
        images = [columns.take_image(entry) if _is_image(entry) else entry for entry in images]
        objects = [columns.take_object(entry) if isinstance(entry, dict) else entry for entry in objects]
    for place, entry in enumerate(images):
        if entry is not IMAGE:
            raise ValueError(f"{file}: images[{place}] has no 'file_name': {shown(entry)}")
    if columns.panoptic:
        remedy = "a detector learns from COCO's instances_*.json, which list every object with its box"
        raise ValueError(f"{file}: a panoptic file, its annotations have 'segments_info' in place of boxes; {remedy}")
    return Listing(file, categories, *_images(file, columns), *_objects(columns, objects))


def _parsed(file: Path) -> tuple[object, _Columns]:
    """The parsed file, and what was taken out of it on the way."""
    try:
        columns = _Columns()
        content = load_json(file, columns, lambda text: OUTLINES.sub(b'"segmentation":%d' % CUT_OUTLINE, text))
        if not columns.lacks_outlines:
            return content, columns
    except ValueError:  # of something unusual that the pattern cut in two, or of the file itself
        pass
    columns = _Columns()
    return load_json(file, columns), columns


def _lists(file: Path, content) -> tuple[list, list, list]:
    """The lists `images`, `annotations` and `categories`."""
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        is_list = isinstance(content, list) and content
        what = "; a list at the top is what COCO's results look like" if is_list else ""
        raise ValueError(f"{file}: not a COCO annotation file: it has no list 'images'{what}")
    images, *others = (content.get(key) or [] for key in ("images", "annotations", "categories"))
    if not images:
        raise ValueError(f"{file}: lists no images")
    for name, entries in zip(("annotations", "categories"), others, strict=True):
        if not isinstance(entries, list):
            raise ValueError(f"{file}: '{name}' is a {type(entries).__name__}, not a list")
    return images, *others


def _once(pairs: list[tuple[str, object]]) -> dict:
    """A dict of what a file lists; of a list that stands there twice, JSON would keep the last one."""
    entry = dict(pairs)
    for name in ("images", "annotations", "categories"):
        if [key for key, _ in pairs].count(name) > 1:
            raise ValueError(f"it has several '{name}'")
    return entry


def _is_image(entry) -> bool:
    return isinstance(entry, dict) and ("file_name" in entry or "coco_url" in entry)


def load_json(
    file: Path,
    hook: Callable | None = None,
    shorten: Callable[[mmap.mmap], bytes] | None = None,
    pairs: Callable | None = None,
):
    """The content of a JSON file.

    Args:
        hook: what the parser does with every dict.
        pairs: the same for the list of its keys and values, in place of `hook`.
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
        return json.loads(text, object_hook=hook, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a JSON file: {error}") from error


def _images(file: Path, columns: _Columns) -> tuple[np.ndarray, ...]:
    """image_ids, names, sizes, from_urls."""
    ids, sizes = [], []
    for place, (key, name, size) in enumerate(zip(columns.image_ids, columns.names, columns.sizes, strict=True)):
        try:
            ids.append(whole_number(key))
            sizes.append([side(value) for value in size])
            if not isinstance(name, str) or not name or "\0" in name:
                raise ValueError(f"{name!r} is not a name")
            if not 0 <= min(sizes[-1]) <= max(sizes[-1]) < 2**31:
                raise ValueError(f"height {size[0]!r}, width {size[1]!r}")
        except (TypeError, ValueError) as error:
            wanted = "expected a whole number 'id', a 'file_name', and no or sensible 'height' and 'width'"
            raise ValueError(f"{file}: images[{place}]: {error}; {wanted}") from error
    names = np.array([name.encode("utf-8", "surrogateescape") for name in columns.names])
    sizes = np.array(sizes, dtype=np.int32).reshape(-1, 2)
    return np.array(ids, dtype=np.int64), names, sizes, np.array(columns.from_urls, dtype=bool)


def _objects(columns: _Columns, entries: list) -> tuple:
    """places, ids, object_image_ids, category_ids, boxes, areas, crowd, outlined; unusable."""
    usable = np.array(columns.usable, dtype=bool)
    taken = np.fromiter((entry is OBJECT for entry in entries), bool, len(entries))
    places = taken.nonzero()[0]
    unusable = {}
    for place, (what, value) in zip(places[~usable].tolist(), columns.faults, strict=True):
        unusable.setdefault(what, []).append((place, value))
    for place in (~taken).nonzero()[0].tolist():
        entry = entries[place]
        what, value = _unusable("image_id", entry).args if isinstance(entry, dict) else (NO_ENTRY, shown(entry))
        unusable.setdefault(what, []).append((place, value))
    numbers = np.array(columns.numbers).reshape(-1, 5)
    image, category, crowd, own = (column.copy() for column in np.array(columns.keys, np.int64).reshape(-1, 4).T)
    boxes, areas, outlined = (
        np.ascontiguousarray(numbers[:, :4]),
        numbers[:, 4].copy(),
        np.array(columns.outlined, bool),
    )
    return places[usable], own, image, category, boxes, areas, crowd.astype(bool), outlined, unusable
