"""A COCO annotation file as a few flat arrays.

Arrays rather than a dict per object: worker processes share their pages, where the reference counts of small Python
objects would make every worker copy them one by one.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets.categories import Categories
from datasets.checks import Problem, judge_objects, repeated_rows
from datasets.coco_file import Listing, parse_coco_file


@dataclass(frozen=True)
class Annotations:
    """Images and their objects.

    Objects of image i are rows first[i] to first[i + 1] of the object arrays.

    Attributes:
        file: where it was read from.
        categories: the classes and their slots.
        image_ids: (I,) int64.
        names: (I,) file names, as bytes.
        sizes: (I, 2) int32, height and width as listed; 0 where the file does not say.
        from_urls: (I,) bool: images without a file name, which were named after their address.
        first: (I + 1,) int64.
        boxes: (A, 4) float64, x, y, width, height in pixels, as annotated.
        category_ids: (A,) int64.
        crowd: (A,) bool.
        areas: (A,) float64.
        places: (A,) int64: which entry of the file's list an object is.
        problems: what was left out, how often, with examples.
    """

    file: Path
    categories: Categories
    image_ids: np.ndarray
    names: np.ndarray
    sizes: np.ndarray
    from_urls: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    category_ids: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    places: np.ndarray
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def name(self, index: int) -> str:
        """File name of an image."""
        return self.names[index].decode("utf-8", "surrogateescape")

    def objects(self, index: int) -> slice:
        """The rows of an image's objects."""
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def slots(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """(n,) int64: the classifier's slots of some objects, or of all."""
        ids, slots = self.categories.sorted_slots
        return slots[np.searchsorted(ids, self.category_ids[rows])]

    def has_targets(self) -> bool:
        """Whether there is an object that a detector is to find: crowds are passed over."""
        return bool((~self.crowd).any())

    def arranged_as(self, categories: Categories, source: str) -> "Annotations":
        """The same in the slots of other categories, by name. See `Categories.arranged_as`."""
        used = np.unique(self.category_ids).tolist()
        return replace(self, categories=self.categories.arranged_as(categories, used, source))

    def most_objects(self) -> int:
        """Of the image with the most."""
        return int(np.diff(self.first).max(initial=0))

    def head(self, count: int) -> "Annotations":
        """Those of the first images only."""
        objects = slice(0, int(self.first[min(count, len(self))]))
        images = {name: getattr(self, name)[:count] for name in ("image_ids", "names", "sizes", "from_urls")}
        rows = {name: getattr(self, name)[objects] for name in ("boxes", "category_ids", "crowd", "areas", "places")}
        return replace(self, first=self.first[: count + 1], **images, **rows)


def read_annotations(file: Path, convention: str = "auto", unlisted: Categories | None = None) -> Annotations:
    """Reads a COCO annotation file; what makes no sense in it is left out and counted.

    Args:
        file: JSON with `images`, `categories` and, unless the images are to be detected blindly, `annotations`.
        convention: see `Categories.of`.
        unlisted: the categories of a file that lists none, and no objects.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or is no COCO annotation file; the message says why.
    """
    return usable_annotations(parse_coco_file(file), convention, unlisted)


def usable_annotations(listing: Listing, convention: str = "auto", unlisted: Categories | None = None) -> Annotations:
    """What can be used of a listing. Raises ValueError where it cannot be told which image or class is meant."""
    file = listing.file
    again = listing.image_ids[repeated_rows(listing.image_ids)]
    if len(again):
        shown = ", ".join(map(str, again[:5]))
        remedy = "ids must be unique; `python -m datasets.validate --fix` keeps the first of each"
        raise ValueError(f"{file}: an image id is listed twice: {shown}; {remedy}")
    blind = unlisted is not None and not listing.categories and not listing.num_objects
    try:
        categories = unlisted if blind else Categories.of(listing.categories, convention)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    judgement = judge_objects(listing)
    kept = judgement.usable.nonzero()[0]
    kept = kept[np.argsort(judgement.rows[kept], kind="stable")]
    return Annotations(
        file=file,
        categories=categories,
        image_ids=listing.image_ids,
        names=listing.names,
        sizes=listing.sizes,
        from_urls=listing.from_urls,
        first=np.searchsorted(judgement.rows[kept], np.arange(len(listing.image_ids) + 1)),
        boxes=listing.boxes[kept],
        category_ids=listing.category_ids[kept],
        crowd=listing.crowd[kept],
        areas=judgement.areas[kept],
        places=listing.places[kept],
        problems=judgement.problems,
    )
