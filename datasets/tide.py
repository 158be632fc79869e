"""What kinds of errors a detector makes, each as the AP50 that it costs, as TIDE defines them.

Bolya, Foley, Hays, Hoffman: "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020. A false
positive is the first of these that it can be, with the foreground threshold 0.5 and the background threshold 0.1:

* localisation: its IoU with an object of its class is at least 0.1, with none 0.5.
* classification: its IoU with an object of another class is at least 0.5.
* duplicate: its IoU with an object of its class is at least 0.5, and a surer detection has found that one.
* background: its IoU with every object is below 0.1.
* both: all else; it has neither the class nor the place of any object.

An object is missed if nothing found it and no localisation or classification error would have, had it been right.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pycocotools import mask

from datasets.annotations import Annotations

FOREGROUND, BACKGROUND = 0.5, 0.1
KINDS = ("classification", "localisation", "both", "duplicate", "background")
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Matches:
    """Which detections found which objects at IoU 0.5, as COCO assigns them.

    Attributes:
        rows: (N,) the detections that count, at most 100 of a class in an image, as rows of the table of detections:
            by class, image, falling score.
        ground truth: (N,) the object that each found, as a row of the annotations; -1 for none.
        ignored: (N,) bool: neither right nor wrong, in a crowd.
        found: (A,) bool, which objects were found.
    """

    rows: np.ndarray
    ground_truth: np.ndarray
    ignored: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class ErrorCost:
    """A type of error.

    Attributes:
        kind: its name.
        cost: AP50 with all errors of the type put right, minus AP50.
        count: how many there are among all detections that count, of whatever score.
        sure: how many of them at the score that was asked for; None for missed objects.
    """

    kind: str
    cost: float
    count: int
    sure: int | None


@dataclass(frozen=True)
class TideErrors:
    """The errors among detections that were matched.

    Attributes:
        annotations, detections, matches: what was looked at.
        kinds: (N,) index into KINDS; -1 for detections that are right or ignored.
        targets: (N,) the object that a classification or localisation error would have found; -1 for others.
        confused_with: (N,) the object of another class that a detection overlaps most, if by 0.5; -1 for none.
    """

    annotations: Annotations
    detections: np.ndarray
    matches: Matches
    kinds: np.ndarray
    targets: np.ndarray
    confused_with: np.ndarray

    def kind(self, number: int) -> str:
        """What a detection is: "" if right, "ignored", or the name of its error."""
        if self.matches.ignored[number]:
            return "ignored"
        return KINDS[self.kinds[number]] if self.kinds[number] >= 0 else ""

    @cached_property
    def missed(self) -> np.ndarray:
        """(A,) bool, the objects that were missed."""
        missed = ~self.matches.found & ~self.annotations.crowd
        missed[self.targets[self.targets >= 0]] = False
        return missed

    def ap50(self, kind: str | None = None) -> float:
        """AP50 as it is, or with all errors of a kind put right. -1 where there are no objects.

        A classification error gets the class, a localisation error the place of its object. If that object was found
        already, or a surer error of the same kind finds it now, the error goes; so do the errors of other kinds.
        Missed objects are no longer asked for.
        """
        counted = ~self.matches.ignored
        classes = self.detections[self.matches.rows, 6].astype(int)
        correct = self.matches.ground_truth >= 0
        asked, slots = ~self.annotations.crowd, self.annotations.slots()
        if kind == "missed":
            asked = asked & ~self.missed
        elif kind is not None:
            own = self.kinds == KINDS.index(kind)
            counted = counted & ~own
            mended = self._mended(np.flatnonzero(own & (self.targets >= 0)))
            counted[mended], correct[mended] = True, True
            classes[mended] = slots[self.targets[mended]]
        scores = self.detections[self.matches.rows, 5]
        curves = []
        for slot in np.unique(slots):
            own, positives = counted & (classes == slot), asked & (slots == slot)
            if positives.any():
                curves.append(_precision(scores[own], correct[own], int(positives.sum())))
        return float(np.mean(np.stack(curves, 1))) if curves else -1.0

    def _mended(self, numbers: np.ndarray) -> np.ndarray:
        """Of errors with a target: the surest for every object that was not found."""
        numbers = numbers[~self.matches.found[self.targets[numbers]]]
        numbers = numbers[np.argsort(-self.detections[self.matches.rows[numbers], 5], kind="stable")]
        return numbers[np.unique(self.targets[numbers], return_index=True)[1]]

    def costs(self, score: float) -> list[ErrorCost]:
        """The six types with what they cost, and how many errors have at least a score."""
        before, sure = self.ap50(), self.detections[self.matches.rows, 5] >= score
        found = [
            ErrorCost(kind, self.ap50(kind) - before, int((own := self.kinds == code).sum()), int((own & sure).sum()))
            for code, kind in enumerate(KINDS)
        ]
        return [*found, ErrorCost("missed", self.ap50("missed") - before, int(self.missed.sum()), None)]


def find_errors(annotations: Annotations, detections: np.ndarray, matches: Matches) -> TideErrors:
    """Tells what kind of error every false positive is.

    Args:
        annotations: the ground truth.
        detections: (D, 7) rows of `CocoEvaluator.detections`.
        matches: at IoU 0.5.
    """
    count = len(matches.rows)
    kinds, targets, confused = (np.full(count, -1) for _ in range(3))
    wrong = np.flatnonzero((matches.ground_truth < 0) & ~matches.ignored)
    images = detections[matches.rows[wrong], 0]
    order = np.argsort(images, kind="stable")
    wrong, images = wrong[order], images[order]
    for index in range(len(annotations)):
        numbers = wrong[slice(*np.searchsorted(images, (index, index + 1)))]
        if len(numbers):
            found = detections[matches.rows[numbers]]
            kinds[numbers], targets[numbers], confused[numbers] = _judged(annotations, index, found)
    return TideErrors(annotations, detections, matches, kinds, targets, confused)


def _judged(annotations: Annotations, index: int, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`kinds`, `targets` and `confused_with` of the false positives of one image, (n, 7) rows of detections."""
    objects = annotations.objects(index)
    single = np.flatnonzero(~annotations.crowd[objects]) + objects.start
    if not len(single):
        nothing = np.full(len(found), -1)
        return np.full(len(found), KINDS.index("background")), nothing, nothing
    overlap = mask.iou(found[:, 1:5], annotations.boxes[single], np.zeros(len(single), dtype=np.uint8))
    same = found[:, 6:7] == annotations.slots(single)
    with_own, with_others = overlap * same, overlap * ~same
    own, others = with_own.max(1), with_others.max(1)
    rules = {
        "localisation": (own >= BACKGROUND) & (own < FOREGROUND),
        "classification": others >= FOREGROUND,
        "duplicate": own >= FOREGROUND,
        "background": np.maximum(own, others) < BACKGROUND,
    }
    kinds = np.select(list(rules.values()), [KINDS.index(kind) for kind in rules], KINDS.index("both"))
    confused = np.where(others >= FOREGROUND, single[with_others.argmax(1)], -1)
    targets = np.where(kinds == KINDS.index("localisation"), single[with_own.argmax(1)], -1)
    targets = np.where(kinds == KINDS.index("classification"), confused, targets)
    return kinds, targets, confused


def _precision(scores: np.ndarray, correct: np.ndarray, positives: int) -> np.ndarray:
    """(101,) precision over recall, to the last digit as COCOeval computes it."""
    order = np.argsort(-scores, kind="mergesort")
    right, wrong = np.cumsum(correct[order], dtype=float), np.cumsum(~correct[order], dtype=float)
    precision = np.maximum.accumulate((right / (wrong + right + np.spacing(1)))[::-1])[::-1]
    places = np.searchsorted(right / positives, RECALLS, side="left")
    return np.append(precision, 0.0)[places]
