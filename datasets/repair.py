"""Copies of annotation files without what training leaves out."""

import json
from pathlib import Path

import numpy as np

from datasets.annotations import Annotations
from datasets.checks import first_occurrences
from datasets.coco_file import load_json
from datasets.values import id_or_none, whole_number


def write_fixed(found: Annotations, usable: np.ndarray, target: Path):
    """Writes a copy of an annotation file in which everything can be used.

    Images that are listed twice or cannot be read go, with their objects, and so do objects that make no sense. Boxes
    are cut to their image. Objects without an id of their own get one. What was written in an unusual way (ids as text,
    areas that cannot be, outlines without a box, names that differ from the file's) is written as it was understood.
    All else stays as it is.

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
    entries, categories = content["images"], content.get("categories") or []
    first = first_occurrences([whole_number(entry["id"]) for entry in entries])
    content["images"] = [_image(found, row, entries[first[row]]) for row in usable.nonzero()[0]]
    first = first_occurrences([whole_number(entry["id"]) for entry in categories])
    content["categories"] = [categories[place] | {"id": whole_number(categories[place]["id"])} for place in first]
    content["annotations"] = _objects(found, usable, content.get("annotations") or [])
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(target)


def _image(found: Annotations, row: int, entry: dict) -> dict:
    """An entry of `images` under the name of its file, without a size that it does not know."""
    entry = entry | {"id": int(found.image_ids[row]), "file_name": found.name(row)}
    for key, side in zip(("height", "width"), found.sizes[row].tolist(), strict=True):
        if key in entry and side != entry[key]:
            entry[key] = side
            if not side:
                del entry[key]
    return entry


def _objects(found: Annotations, usable: np.ndarray, entries: list[dict]) -> list[dict]:
    """The usable objects of usable images, in the order of the file."""
    images = np.repeat(np.arange(len(found)), np.diff(found.first))
    rows = usable[images].nonzero()[0]
    rows = rows[np.argsort(found.places[rows])]
    ids = [id_or_none(entries[place].get("id")) for place in found.places[rows]]
    taken, objects = set(), []
    fresh = 1 + max((key for key in ids if key is not None), default=0)
    for row, key in zip(rows, ids, strict=True):
        if key is None or key in taken:
            key, fresh = fresh, fresh + 1
        taken.add(key)
        entry = _object(found, row, entries[found.places[row]]) | {"id": key}
        _cut(entry, *found.sizes[images[row]].tolist())
        objects.append(entry)
    return objects


def _object(found: Annotations, row: int, entry: dict) -> dict:
    """An entry of `annotations` with what was made of it, where that is something else."""
    image = int(found.image_ids[np.searchsorted(found.first, row, side="right") - 1])
    entry = entry | {"image_id": image, "category_id": int(found.category_ids[row])}
    if "iscrowd" in entry:
        entry["iscrowd"] = int(found.crowd[row])
    box = found.boxes[row].tolist()
    if entry.get("bbox") != box:
        entry["bbox"] = box
    if entry.get("area") is not None and entry["area"] != found.areas[row]:
        entry["area"] = float(found.areas[row])
    return entry


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
