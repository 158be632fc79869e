"""What is wrong with a data set: found without opening an image, counted, with examples, and what becomes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.categories import category_name
from datasets.coco_file import NO_ID, Listing
from datasets.values import id_or_none

SHOWN = 3
"""How many examples a message names."""

MOST_AREA = 2.0
"""Of its box, that an object's area may be said to have: outlines are drawn by other hands than boxes."""

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
        areas: (A,) float64: as listed, or the box's where the file says nothing or what cannot be.
        problems: of those that cannot be used, or were made sense of.
    """

    usable: np.ndarray
    rows: np.ndarray
    areas: np.ndarray
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
        "boxes with numbers that are not finite": ~np.isfinite(high).all(1),
        "reversed boxes (negative width or height; COCO boxes are x, y, width, height)": flipped,
        "boxes without area": (listing.boxes[:, 2:] == 0).any(1),
        "boxes outside of their image": outside & (heights > 0) & (widths > 0),
    }
    usable = np.ones(len(rows), bool)
    problems = [
        Problem.of(what, entries, lambda entry: f"annotations[{entry[0]}]: {entry[1]}")
        for what, entries in listing.unusable.items()
    ]

    def name(row: int) -> str:
        return object_name(listing, row, rows[row])

    for what, wrong in faults.items():
        wrong &= usable
        usable &= ~wrong
        problems.append(Problem.of(what, wrong.nonzero()[0], name))
    areas, senseless = sensible_areas(listing)
    senseless = (senseless & usable).nonzero()[0]
    problems += [
        Problem.of("areas that no object in its box can have", senseless, name, "computed from the box"),
        Problem.of(
            "objects without a box",
            (listing.outlined & usable).nonzero()[0],
            name,
            "boxed by their outline",
            harmless=True,
        ),
        *check_entries(listing, listing.category_ids[usable]),
    ]
    return Judgement(usable, np.where(known, rows, 0), areas, tuple(problem for problem in problems if problem.count))


def sensible_areas(listing: Listing) -> tuple[np.ndarray, np.ndarray]:
    """Areas, where need be of the boxes, and which of the listed ones made no sense.

    COCO's measure takes them to tell small objects from large ones, and passes over objects whose area is negative or
    that of no image.
    """
    unknown = np.isnan(listing.areas)
    with np.errstate(invalid="ignore", over="ignore"):  # boxes that are left out
        boxes = listing.boxes[:, 2] * listing.boxes[:, 3]
        senseless = ~unknown & ~((listing.areas > 0) & (listing.areas <= MOST_AREA * boxes + 1))
    return np.where(unknown | senseless, boxes, listing.areas), senseless


def check_entries(listing: Listing, used: np.ndarray) -> list[Problem]:
    """What is unusual about images and categories.

    Args:
        used: category ids of the usable objects.
    """
    entries = [entry for entry in listing.categories if isinstance(entry, dict)]
    names = [category_name(entry) for entry in entries]
    above = {str(entry["supercategory"]) for entry in entries if entry.get("supercategory") is not None}
    root = [
        entry
        for entry, name in zip(entries, names, strict=True)
        if name in above and entry.get("supercategory") != name and id_or_none(entry.get("id")) not in used
    ]
    kept = "kept as a class that is never found; a root class of Roboflow's looks so"
    again = sorted(set(range(len(names))) - set(first_occurrences(names).tolist()))
    return [
        Problem.of(
            "images without a file_name",
            listing.from_urls.nonzero()[0],
            lambda row: listing.names[row].decode(errors="replace"),
            "named after their coco_url",
            harmless=True,
        ),
        Problem.of(
            "categories without objects that others have as supercategory",
            root,
            lambda entry: f"{entry.get('id')}: {category_name(entry)}",
            kept,
            harmless=True,
        ),
        Problem.of(
            "categories whose name is listed before",
            again,
            lambda place: f"{entries[place].get('id')}: {names[place]}",
            "kept as classes of their own, with their ids behind the name in tables",
        ),
    ]


def category_ids(listing: Listing) -> list[int]:
    """The ids of the listed categories."""
    ids = [id_or_none(entry.get("id")) for entry in listing.categories if isinstance(entry, dict)]
    return [key for key in ids if key is not None]


def object_name(listing: Listing, row: int, image: int) -> str:
    """How messages call an object."""
    key, category, image_id = (
        int(column[row]) for column in (listing.ids, listing.category_ids, listing.object_image_ids)
    )
    own = f"object {key}" if key != NO_ID else f"annotations[{listing.places[row]}]"
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
    own = listing.ids != NO_ID
    objects, missing = own.nonzero()[0][repeated_rows(listing.ids[own])], (~own).nonzero()[0]
    categories = [entry for entry in listing.categories if isinstance(entry, dict)]
    ids, labels = [id_or_none(entry.get("id")) for entry in categories], [category_name(entry) for entry in categories]
    repeated = sorted(set(range(len(ids))) - set(first_occurrences(ids)))

    keyed = np.column_stack([listing.object_image_ids, listing.category_ids, listing.boxes.view(np.int64)])
    order = np.lexsort(keyed.T)
    twins = np.sort(order[1:][(keyed[order[1:]] == keyed[order[:-1]]).all(1)])

    def place(row: int) -> str:
        return f"annotations[{listing.places[row]}]"

    def of_image(row: int) -> str:
        return f"{keys[row]}: {listing.names[row].decode(errors='replace')}"

    refused = "training refuses the file; the first of each is kept here"
    found = [
        Problem.of("images whose id is listed before", images, of_image, refused),
        Problem.of("objects whose id is listed before", objects, lambda row: f"{listing.ids[row]}", "kept"),
        Problem.of("objects without a whole number as id", missing, place, "kept"),
        Problem.of("objects whose image, category and box are listed before", twins, place, "kept"),
        Problem.of("categories whose id is listed before", repeated, lambda row: f"{ids[row]}: {labels[row]}", refused),
    ]
    return [problem for problem in found if problem.count]


def without_repeats(listing: Listing) -> Listing:
    """The listing with the first of all images and categories that share an id."""
    kept = first_occurrences(listing.image_ids.tolist())
    categories, ids = listing.categories, category_ids(listing)
    if len(ids) == len(categories):  # else the file is refused, for the one that has none
        categories = [categories[place] for place in first_occurrences(ids)]
    columns = ("image_ids", "names", "sizes", "from_urls")
    return replace(listing, categories=categories, **{name: getattr(listing, name)[kept] for name in columns})


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
    tiny = (boxes[:, 2:] <= 1).all(1)
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
            "boxes of a pixel or less, most of the file; COCO's are in pixels, these look like shares of an image",
            tiny.nonzero()[0] if tiny.sum() > len(tiny) / 2 else (),
            lambda row: f"{boxes[row].tolist()} on {name(rows[row])}",
            "kept as they are",
        ),
        Problem.of(
            "crowds, and no other objects",
            found.crowd.nonzero()[0] if not found.has_targets() else (),
            lambda row: f"{boxes[row].tolist()} on {name(rows[row])}",
            "kept; a detector neither learns nor is asked to find a crowd",
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
