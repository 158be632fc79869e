"""Which number of the classifier means which category of the annotation file."""

import unicodedata
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datasets.values import whole_number

COCO = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
"""Ids and names of COCO 2017's 80 categories; the ids have gaps."""

COCO_SLOTS = 91
"""The papers' models count from 0, which is nothing, to the largest id."""

SHOWN = 8
"""How many names a message lists."""
LONGEST = 40
"""Characters of a name in a table."""


class DifferentCategoriesError(ValueError):
    """Two sets of categories cannot be matched by name."""


@dataclass(frozen=True)
class Categories:
    """The categories of a data set and the classifier's slots for them.

    Attributes:
        ids: category ids of the annotation file, by slot; None for a slot that no category of the file uses.
        names: by slot; "" for a slot that means nothing.
    """

    ids: tuple[int | None, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, listed: list[dict], convention: str = "auto") -> "Categories":
        """From the `categories` list of an annotation file.

        Args:
            listed: dicts with `id` and `name`.
            convention: "coco": slot = id, 91 slots, as all official checkpoints have it; "contiguous": one slot per
                category, in order of ids; "auto": "coco" when the ids and names are COCO's own, else "contiguous".

        Raises:
            ValueError: an unknown convention, no categories, one without an id, an id twice, or ids outside of COCO's
                slots.
        """
        if convention not in ("auto", "coco", "contiguous"):
            raise ValueError(f"data.categories = '{convention}' is none of auto, coco, contiguous")
        if not listed:
            raise ValueError("the annotation file lists no categories; every class needs an entry with 'id' and 'name'")
        names = {}
        for place, entry in enumerate(listed):
            try:
                key = whole_number(entry["id"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"categories[{place}] = {entry!r} has no whole number as its 'id'") from error
            if key in names:
                raise ValueError(f"the annotation file lists a category id twice: {key}")
            names[key] = category_name(entry)
        is_coco = all(COCO.get(key) == name for key, name in names.items())
        if convention == "contiguous" or (convention == "auto" and not is_coco):
            ids = tuple(sorted(names))
            return cls(ids, tuple(names[key] for key in ids))
        if not all(0 < key < COCO_SLOTS for key in names):
            raise ValueError("data.categories = 'coco' needs ids from 1 to 90; take 'contiguous' for other data")
        slots = [key if key in names else None for key in range(COCO_SLOTS)]
        return cls(tuple(slots), tuple(names.get(key, "") for key in range(COCO_SLOTS)))

    @classmethod
    def stored(cls, found: dict[str, list] | None, num_classes: int) -> "Categories":
        """Those of a checkpoint.

        Args:
            found: as `state_dict` has them; None for a checkpoint that does not say: COCO's then for as many slots as
                the papers' models have, 91 or, of the real-time ones, 80; else numbers.
            num_classes: slots of its classifier.
        """
        if found is not None:
            return cls(tuple(found["ids"]), tuple(found["names"]))
        if num_classes in (COCO_SLOTS, len(COCO)):
            convention = "coco" if num_classes == COCO_SLOTS else "contiguous"
            return cls.of([{"id": key, "name": name} for key, name in COCO.items()], convention)
        return cls(tuple(range(num_classes)), tuple(f"class {key}" for key in range(num_classes)))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def slots(self) -> dict[int, int]:
        """{category id: slot}."""
        return {key: slot for slot, key in enumerate(self.ids) if key is not None}

    @cached_property
    def sorted_slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Category ids in ascending order, and their slots, (K,) int64 both."""
        pairs = np.array(sorted(self.slots.items()), dtype=np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    @property
    def used(self) -> list[tuple[int, str]]:
        """(category id, name) of all categories, in order of slots."""
        return [(key, name) for key, name in zip(self.ids, self.names, strict=True) if key is not None]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """By slot: the name, with the id behind it where several categories have that name."""
        times = Counter(self.names)
        numbered = [f"{name} ({key})" if name else "" for key, name in self._pairs()]
        labels = [name if times[name] == 1 else other for name, other in zip(self.names, numbered, strict=True)]
        shown = [label for label in labels if label]
        return tuple(labels if len(set(shown)) == len(shown) else numbered)  # else a name looks like another's label

    def _pairs(self) -> Iterable[tuple[int | None, str]]:
        return zip(self.ids, self.names, strict=True)

    def arranged_as(self, other: "Categories", used: Container[int], source: str) -> "Categories":
        """These categories in the slots in which others have the same names.

        Args:
            other: of a checkpoint, or of another split.
            used: category ids that have objects. Without objects, a category may be missing in `other`, and goes.
            source: whose categories the others are, for messages.

        Raises:
            DifferentCategoriesError: says which names are on either side alone.
        """
        slots = {label: slot for slot, label in enumerate(other.labels) if label}
        ids: list[int | None] = [None] * len(other)
        strange, missing = [], set(slots)
        for (key, name), label in zip(self._pairs(), self.labels, strict=True):
            label = label if label in slots else f"{name} ({key})"
            if key is not None and label in slots:
                ids[slots[label]] = key
                missing.discard(label)
            elif key is not None and key in used:
                strange.append(name)
        if strange:
            lacking = [label for label in slots if label in missing]
            own, others = _quoted(strange), _quoted(lacking)
            message = f"its categories are not those of {source}: only this one has {own}, only the other has {others}"
            raise DifferentCategoriesError(message + _spelling(strange, lacking))
        return Categories(tuple(ids), other.names)

    def state_dict(self) -> dict:
        """Plain values for a checkpoint."""
        return {"ids": list(self.ids), "names": list(self.names)}


def category_name(entry: dict) -> str:
    """The name of an entry of `categories`; its id where it has none."""
    name = str(entry.get("name", ""))
    return name if name.strip() and entry["name"] is not None else str(entry.get("id"))


def one_line(name: str) -> str:
    """A name for a table: without what would move a console's cursor, and not too long."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _quoted(labels: list[str]) -> str:
    shown = ", ".join(map(repr, labels[:SHOWN]))
    return f"{shown} and {len(labels) - SHOWN} more" if len(labels) > SHOWN else shown or "none"


def _spelling(some: list[str], others: list[str]) -> str:
    """A hint where names on both sides would be equal if they were spelt alike."""
    folded = [
        {" ".join(unicodedata.normalize("NFKC", label).casefold().split()) for label in n} for n in (some, others)
    ]
    return " (in other letters of upper and lower case, spaces or accents)" if folded[0] & folded[1] else ""
