"""Which number of the classifier means which category of the annotation file."""

from dataclasses import dataclass
from functools import cached_property

from datasets.coco_file import whole_number

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


@dataclass(frozen=True)
class Categories:
    """The categories of a data set and the classifier's slots for them.

    Attributes:
        ids: category ids of the annotation file, by slot; None for a slot that no category uses.
        names: by slot.
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
            names[key] = str(entry.get("name", key))
        is_coco = all(COCO.get(key) == name for key, name in names.items())
        if convention == "contiguous" or (convention == "auto" and not is_coco):
            ids = tuple(sorted(names))
            return cls(ids, tuple(names[key] for key in ids))
        if not all(0 < key <= 90 for key in names):
            raise ValueError("data.categories = 'coco' needs ids from 1 to 90; take 'contiguous' for other data")
        slots = [key if key in names else None for key in range(91)]
        return cls(tuple(slots), tuple(names.get(key, "") for key in range(91)))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def slots(self) -> dict[int, int]:
        """{category id: slot}."""
        return {key: slot for slot, key in enumerate(self.ids) if key is not None}

    @property
    def used(self) -> list[tuple[int, str]]:
        """(category id, name) of all categories, in order of slots."""
        return [(key, name) for key, name in zip(self.ids, self.names, strict=True) if key is not None]

    def state_dict(self) -> dict:
        """Plain values for a checkpoint."""
        return {"ids": list(self.ids), "names": list(self.names)}
