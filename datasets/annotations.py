"""A COCO annotation file as a few flat arrays.

Arrays rather than a dict per object: worker processes share their pages, where the reference counts of small Python
objects would make every worker copy them one by one.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.categories import Categories


@dataclass(frozen=True)
class Annotations:
    """Pictures and their objects.

    Objects of picture i are rows first[i] to first[i + 1] of the object arrays.

    Attributes:
        file: where it was read from.
        categories: the classes and their slots.
        image_ids: (I,) int64.
        names: (I,) file names, as bytes.
        sizes: (I, 2) int32, height and width as listed; 0 where the file does not say.
        first: (I + 1,) int64.
        boxes: (A, 4) float64, x, y, width, height in pixels, as annotated.
        category_ids: (A,) int64.
        crowd: (A,) bool.
        areas: (A,) float64.
        problems: what was left out, and how often.
    """

    file: Path
    categories: Categories
    image_ids: np.ndarray
    names: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    category_ids: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    problems: Counter = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.image_ids)

    def name(self, index: int) -> str:
        """File name of a picture."""
        return self.names[index].decode()

    def objects(self, index: int) -> slice:
        """The rows of a picture's objects."""
        return slice(int(self.first[index]), int(self.first[index + 1]))


def read_annotations(file: Path, convention: str = "auto") -> Annotations:
    """Reads a COCO annotation file; what makes no sense in it is left out and counted.

    Args:
        file: JSON with `images`, `categories` and, unless the pictures are to be detected blindly, `annotations`.
        convention: see `Categories.of`.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or is no COCO annotation file; the message says why.
    """
    content = _load(file)
    images = content["images"]
    try:
        categories = Categories.of(content.get("categories", []), convention)
        image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        names = np.array([image["file_name"].encode() for image in images])
        sizes = np.array([(image.get("height") or 0, image.get("width") or 0) for image in images], dtype=np.int32)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file}: {type(error).__name__}: {error}") from error
    if len(np.unique(image_ids)) != len(image_ids):
        raise ValueError(f"{file}: an image id is listed twice; ids must be unique")

    problems, rows = Counter(), []
    place = {int(key): index for index, key in enumerate(image_ids)}
    for entry in content.get("annotations", []):
        row = _read_object(entry, place, categories, problems)
        if row is not None:
            rows.append(row)
    table = np.array(rows, dtype=np.float64).reshape(-1, 8)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return Annotations(
        file=file,
        categories=categories,
        image_ids=image_ids,
        names=names,
        sizes=sizes.reshape(-1, 2),
        first=np.searchsorted(table[:, 0], np.arange(len(image_ids) + 1)),
        boxes=table[:, 1:5],
        category_ids=table[:, 5].astype(np.int64),
        crowd=table[:, 6].astype(bool),
        areas=table[:, 7],
        problems=problems,
    )


def _load(file: Path) -> dict:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such annotation file; see 'Data' in README.md for the layouts")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{file}: not a COCO annotation file: it has no list 'images'")
    if not content["images"]:
        raise ValueError(f"{file}: lists no pictures")
    return content


def _read_object(entry, place: dict[int, int], categories: Categories, problems: Counter) -> tuple | None:
    """(picture, x, y, w, h, category, crowd, area), or None with a problem counted."""
    try:
        x, y, w, h = (float(number) for number in entry["bbox"])
        picture, category = place.get(entry["image_id"]), int(entry["category_id"])
        area = entry.get("area")
        area = w * h if area is None else float(area)
        crowd = bool(entry.get("iscrowd", 0))
    except (KeyError, TypeError, ValueError, OverflowError):
        problems["entries without a usable bbox, image_id or category_id"] += 1
        return None
    if picture is None:
        problems["objects of a picture that is not listed"] += 1
    elif category not in categories.slots:
        problems[f"objects of category {category}, which is not listed"] += 1
    elif not np.isfinite([x, y, w, h, area]).all():
        problems["boxes with numbers that are not finite"] += 1
    elif w < 0 or h < 0:
        problems["reversed boxes (negative width or height; COCO boxes are x, y, width, height)"] += 1
    elif w == 0 or h == 0:
        problems["boxes without area"] += 1
    else:
        return picture, x, y, w, h, category, crowd, area
    return None
