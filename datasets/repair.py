"""Copies of annotation files without what training leaves out."""

import json
from pathlib import Path

import numpy as np

from datasets.annotations import Annotations
from datasets.checks import first_occurrences
from datasets.coco_file import load_json


def write_fixed(found: Annotations, usable: np.ndarray, target: Path):
    """Writes a copy of an annotation file in which everything can be used.

    Images that are listed twice or cannot be read go, with their objects, and so do objects that make no sense. Boxes
    are cut to their image. Objects without an id of their own get one. All else stays as it is.

    Args:
        found: what can be used of the file.
        usable: (I,) bool, of its images.
        target: is written as a whole or not at all; must not be the file itself.

    Raises:
        ValueError: the copy would replace what it is a copy of.
    """
    if target.resolve() == found.file.resolve():
        raise ValueError(f"{target}: --fix writes a copy, and does not replace the file itself; name another")
    content = load_json(found.file)
    first = first_occurrences([image["id"] for image in content["images"]])
    content["images"] = [content["images"][place] for place in first[usable]]
    kept = content["categories"]
    content["categories"] = [kept[place] for place in first_occurrences([entry["id"] for entry in kept])]
    content["annotations"] = _objects(found, usable, content.get("annotations") or [])
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(target)


def _objects(found: Annotations, usable: np.ndarray, entries: list[dict]) -> list[dict]:
    """The usable objects of usable images, in the order of the file."""
    images = np.repeat(np.arange(len(found)), np.diff(found.first))
    rows = usable[images].nonzero()[0]
    rows = rows[np.argsort(found.places[rows])]
    taken, objects = set(), []
    fresh = 1 + max((entries[place]["id"] for place in found.places[rows] if _has_id(entries[place])), default=0)
    for row in rows:
        entry = dict(entries[found.places[row]])
        if not _has_id(entry) or entry["id"] in taken:
            entry["id"], fresh = fresh, fresh + 1
        taken.add(entry["id"])
        _cut(entry, *found.sizes[images[row]].tolist())
        objects.append(entry)
    return objects


def _has_id(entry: dict) -> bool:
    return type(entry.get("id")) is int


def _cut(entry: dict, height: int, width: int):
    """Cuts a box to its image; its area follows where it is the box's, and not that of an outline."""
    x, y, w, h = map(float, entry["bbox"])
    if not height or not width or (x >= 0 and y >= 0 and x + w <= width and y + h <= height):
        return
    low, high = (max(x, 0.0), max(y, 0.0)), (min(x + w, width), min(y + h, height))
    new_width, new_height = high[0] - low[0], high[1] - low[1]
    if entry.get("area") is not None and abs(float(entry["area"]) - w * h) <= 1e-6 * w * h:
        entry["area"] = new_width * new_height
    entry["bbox"] = [*low, new_width, new_height]
