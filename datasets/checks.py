"""What is wrong with a data set: found without opening an image, counted, with examples, and what becomes of it."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets.coco_file import Listing

SHOWN = 3
"""How many examples a message names."""

BEYOND = 1.0
"""Pixels by which a box may reach over its image's border before that is worth a word: annotators round."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, wherever it is.

    Attributes:
        what: the thing, in the plural.
        count: how often.
        examples: the first ones, by id and name.
        effect: what becomes of them.
        harmless: normal in good data too; not a reason to fail.
    """

    what: str
    count: int
    examples: tuple[str, ...]
    effect: str = "left out"
    harmless: bool = False

    @classmethod
    def of(cls, what: str, rows: Sequence, name: Callable[..., str], *more, **options) -> "Problem":
        """From the rows that have it and what a row is called."""
        return cls(what, len(rows), tuple(name(row) for row in rows[:SHOWN]), *more, **options)

    def __str__(self):
        dots = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} {self.what} ({', '.join(self.examples)}{dots}): {self.effect}"


@dataclass(frozen=True)
class Judgement:
    """Which objects of a listing can be used.

    Attributes:
        usable: (A,) bool.
        rows: (A,) int64: the image of each object; 0 where there is none.
        problems: of those that cannot be used.
    """

    usable: np.ndarray
    rows: np.ndarray
    problems: tuple[Problem, ...]


def judge_objects(listing: Listing) -> Judgement:
    """Says which objects make sense. One that is wrong in several ways counts for the first."""
    order = np.argsort(listing.image_ids, kind="stable")
    found = np.searchsorted(listing.image_ids, listing.object_image_ids, sorter=order).clip(max=len(order) - 1)
    rows = order[found]
    known = listing.image_ids[rows] == listing.object_image_ids
    heights, widths = listing.sizes[rows].T
    low, high = listing.boxes[:, :2], listing.boxes[:, :2] + listing.boxes[:, 2:]
    outside = (high <= 0).any(1) | (low[:, 0] >= widths) | (low[:, 1] >= heights)
    flipped = (listing.boxes[:, 2:] < 0).any(1)
    faults = {
        "objects of an image that is not listed": ~known,
        "objects of a category that is not listed": ~np.isin(listing.category_ids, category_ids(listing)),
        "boxes with numbers that are not finite": ~np.isfinite(high).all(1) | ~np.isfinite(listing.areas),
        "reversed boxes (negative width or height; COCO boxes are x, y, width, height)": flipped,
        "boxes without area": (listing.boxes[:, 2:] == 0).any(1),
        "boxes outside of their image": outside & (heights > 0) & (widths > 0),
    }
    usable, problems = np.ones(len(rows), bool), []
    entries = "entries without a usable bbox, image_id or category_id"
    if len(listing.unusable):
        problems.append(Problem.of(entries, listing.unusable, lambda place: f"annotations[{place}]"))
    for what, wrong in faults.items():
        wrong &= usable
        usable &= ~wrong
        if wrong.any():
            problems.append(Problem.of(what, wrong.nonzero()[0], lambda row: object_name(listing, row, rows[row])))
    return Judgement(usable, np.where(known, rows, 0), tuple(problems))


def category_ids(listing: Listing) -> list[int]:
    """The ids of the listed categories."""
    return [entry["id"] for entry in listing.categories if isinstance(entry, dict) and type(entry.get("id")) is int]


def object_name(listing: Listing, row: int, image: int) -> str:
    """How messages call an object."""
    key, category, image_id = (
        int(column[row]) for column in (listing.ids, listing.category_ids, listing.object_image_ids)
    )
    own = f"object {key}" if key >= 0 else f"annotations[{listing.places[row]}]"
    known = listing.image_ids[image] == image_id
    place = listing.names[image].decode(errors="replace") if known else f"image {image_id}"
    return f"{own} of category {category} on {place}"


def repeated_rows(values: np.ndarray) -> np.ndarray:
    """Rows whose value stood in an earlier row already."""
    _, first = np.unique(values, return_index=True)
    again = np.ones(len(values), bool)
    again[first] = False
    return again.nonzero()[0]


def first_occurrences(values: list) -> np.ndarray:
    """Places of the values that do not stand earlier in the list."""
    found = {}
    for place, value in enumerate(values):
        found.setdefault(value, place)
    return np.fromiter(found.values(), np.int64, len(found))


def check_ids(listing: Listing) -> list[Problem]:
    """Numbers and names that are given twice."""
    keys, images = listing.image_ids, repeated_rows(listing.image_ids)
    own = listing.ids >= 0
    objects, missing = own.nonzero()[0][repeated_rows(listing.ids[own])], (~own).nonzero()[0]
    categories = [entry for entry in listing.categories if isinstance(entry, dict)]
    ids, labels = [entry.get("id") for entry in categories], [str(entry.get("name")) for entry in categories]
    repeated = sorted(set(range(len(ids))) - set(first_occurrences(ids)))
    named = sorted(set(range(len(ids))) - set(first_occurrences(labels)) - set(repeated))

    def place(row: int) -> str:
        return f"annotations[{listing.places[row]}]"

    def of_image(row: int) -> str:
        return f"{keys[row]}: {listing.names[row].decode(errors='replace')}"

    refused = "training refuses the file; the first of each is kept here"
    found = [
        Problem.of("images whose id is listed before", images, of_image, refused),
        Problem.of("objects whose id is listed before", objects, lambda row: f"{listing.ids[row]}", "kept"),
        Problem.of("objects without a whole number as id", missing, place, "kept"),
        Problem.of("categories whose id is listed before", repeated, lambda row: f"{ids[row]}: {labels[row]}", refused),
        Problem.of("categories whose name is listed before", named, lambda row: f"{ids[row]}: {labels[row]}", "kept"),
    ]
    return [problem for problem in found if problem.count]


def without_repeats(listing: Listing) -> Listing:
    """The listing with the first of all images and categories that share an id."""
    kept = first_occurrences(listing.image_ids.tolist())
    categories = listing.categories
    if all(isinstance(entry, dict) for entry in categories):
        categories = [categories[place] for place in first_occurrences([entry.get("id") for entry in categories])]
    images = (column[kept] for column in (listing.image_ids, listing.names, listing.sizes))
    image_ids, names, sizes = images
    return replace(listing, categories=categories, image_ids=image_ids, names=names, sizes=sizes)


def check_boxes(found, queries: int | None = None) -> list[Problem]:
    """What can be said of usable objects, by image.

    Args:
        found: datasets.annotations.Annotations.
        queries: objects that a model can find in an image; None if that is not known.
    """
    names, sizes, boxes = found.names, found.sizes, found.boxes

    def name(image: int) -> str:
        return names[image].decode(errors="replace")

    counts = np.diff(found.first)
    rows = np.repeat(np.arange(len(names)), counts)
    limits = sizes[rows][:, ::-1]
    over = (boxes[:, :2] < -BEYOND).any(1) | ((boxes[:, :2] + boxes[:, 2:] > limits + BEYOND) & (limits > 0)).any(1)
    single = np.bincount(rows[~found.crowd], minlength=len(names))
    crowded = np.zeros(0, int) if queries is None else (single > queries).nonzero()[0]
    problems = [
        Problem.of(
            f"boxes that reach over the border of their image by more than {BEYOND:g} pixel",
            over.nonzero()[0],
            lambda row: f"{boxes[row].tolist()} on {name(rows[row])}",
            "cut in training",
        ),
        Problem.of(
            "images whose height and width are not listed",
            (sizes == 0).any(1).nonzero()[0],
            name,
            "boxes are not compared with them",
        ),
        Problem.of(
            f"images with more objects than the model's {queries} queries",
            crowded,
            lambda image: f"{name(image)} with {single[image]}",
            "the surplus cannot be found; raise num_queries",
        ),
        Problem.of("images without objects", (counts == 0).nonzero()[0], name, "kept", harmless=True),
    ]
    return [problem for problem in problems if problem.count]


def check_files(names: np.ndarray, folder: Path) -> tuple[np.ndarray, list[Problem]]:
    """Looks for every image's file by listing folders, and opens none.

    Returns:
        (I,) bool: which images have a file inside the folder; and what is wrong.
    """
    texts = [os.fsdecode(name) for name in names]
    inside = np.array([not leaves_folder(text) for text in texts])
    texts = [os.path.normpath(text) for text in texts]
    there = _existing(folder, {os.path.dirname(text) for text, own in zip(texts, inside, strict=True) if own})
    exists = inside & np.array([text in there for text in texts])

    def name(image: int) -> str:
        return texts[image]

    effect = "replaced by the next image in training, without detections in evaluation"
    found = [
        Problem.of(f"file names that lead out of {folder}", (~inside).nonzero()[0], name, effect),
        Problem.of(f"images that are not in {folder}", (inside & ~exists).nonzero()[0], name, effect),
        Problem.of("images whose file is listed before", repeated_rows(names), name, "kept, as images of their own"),
    ]
    return exists, [problem for problem in found if problem.count]


def leaves_folder(name: str) -> bool:
    """Whether a file name could lie outside of the folder that it is relative to."""
    return os.path.isabs(name) or ".." in name.split("/")


def _existing(folder: Path, parts: Iterable[str]) -> set[str]:
    """Files in some folders under `folder`, relative to it."""
    found = set()
    for part in parts:
        if (folder / part).is_dir():
            with os.scandir(folder / part) as entries:
                found.update(os.path.join(part, entry.name) for entry in entries if not entry.is_dir())
    return found
