"""What the detections of an evaluation are worth, and what is wrong with them: the numbers behind tools/report.py."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.annotations import Annotations
from datasets.coco_eval import NUMBERS, coco_pair
from datasets.tide import ErrorCost, Matches, TideErrors, find_errors
from datasets.values import whole_number

SIZES = ("small", "medium", "large")
"""COCO's: areas up to 32 x 32, up to 96 x 96, and above."""


@dataclass(frozen=True)
class ClassScores:
    """One class. -1 where there is nothing to find.

    Attributes:
        name: of the class.
        objects: how many there are, crowds left out.
        ap, ap50, ap75, ar: COCO's average precision and recall.
        by_size: AP of small, medium and large objects.
        curves: {label: (101,) precision at recall 0, 0.01, ... 1}.
    """

    name: str
    objects: int
    ap: float
    ap50: float
    ap75: float
    ar: float
    by_size: tuple[float, float, float]
    curves: dict[str, np.ndarray]


@dataclass(frozen=True)
class ImageScores:
    """One image, at the score of the analysis.

    Attributes:
        index: in the annotations.
        correct, wrong, missed: detections that found an object, that did not, and objects that none found.
        detections: (n, ) rows of the table of detections, surest first.
        kinds: (n, ) what each is: "" for a correct one, the name of the error, "ignored" in a crowd.
        objects_found: (T,) which of the image's objects were found; crowds count as found.
    """

    index: int
    correct: int
    wrong: int
    missed: int
    detections: np.ndarray
    kinds: tuple[str, ...]
    objects_found: np.ndarray

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where nothing was to be found and nothing was."""
        total = 2 * self.correct + self.wrong + self.missed
        return 2 * self.correct / total if total else 1.0


@dataclass(frozen=True)
class Analysis:
    """All numbers of a report.

    Attributes:
        numbers: COCO's twelve, as pycocotools computes them.
        classes: by slot.
        curves: {label: (101,)}, means over the classes.
        errors: the AP50 that each type of error costs.
        confusion: (K + 1, K + 1) counts at `score`: rows what is there, columns what was detected, the last nothing.
        images: by image.
        score: detections below it do not count in `confusion` and `images`.
    """

    numbers: dict[str, float]
    classes: list[ClassScores]
    curves: dict[str, np.ndarray]
    errors: list[ErrorCost]
    confusion: np.ndarray
    images: list[ImageScores]
    score: float

    def extremes(self, count: int) -> tuple[list[ImageScores], list[ImageScores]]:
        """The best and the worst images, at most half of all each; of equals those with more to see."""
        count = min(count, len(self.images) // 2)
        worst = sorted(self.images, key=lambda p: (p.f1, -p.wrong - p.missed))[:count]
        best = sorted(self.images, key=lambda p: (-p.f1, -p.correct))[:count]
        return best, worst


def read_results(path: Path, annotations: Annotations) -> np.ndarray:
    """Detections in COCO's results format as (D, 7) rows of `CocoEvaluator.detections`.

    Raises:
        ValueError: no such list, or detections on images or of classes that the annotations do not know.
    """
    try:
        entries = json.loads(path.read_bytes())
        numbers = np.array([(*e["bbox"], e["score"]) for e in entries], dtype=np.float64).reshape(-1, 5)
        ids = [(whole_number(e["image_id"]), whole_number(e["category_id"])) for e in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a list of COCO results: {type(error).__name__}: {error}") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"{path}: holds numbers that are not finite")
    images, slots = {key: row for row, key in enumerate(annotations.image_ids.tolist())}, annotations.categories.slots
    for place, known, what in ((0, images, "image"), (1, slots, "class")):
        strange = next((row[place] for row in ids if row[place] not in known), None)
        if strange is not None:
            remedy = "they are of other data: evaluate again, or name the data with --coco_path"
            raise ValueError(f"{path}: {what} {strange} is not in {annotations.file}; {remedy}")
    places = np.array([(images[image], slots[category]) for image, category in ids], np.float64).reshape(-1, 2)
    table = np.concatenate([places[:, :1], numbers, places[:, 1:]], 1)
    return table[np.argsort(table[:, 0], kind="stable")]


def analyse_detections(annotations: Annotations, detections: np.ndarray, score: float = 0.3) -> Analysis:
    """Scores detections with pycocotools and finds out what is wrong with them.

    Args:
        annotations: of the split.
        detections: (D, 7) rows of `CocoEvaluator.detections`.
        score: see Analysis.
    """
    run = run_coco_eval(annotations, detections)
    matches = coco_matches(run, len(annotations.boxes))
    errors = find_errors(annotations, detections, matches)
    precision = run.eval["precision"][..., 0, -1]
    return Analysis(
        numbers=dict(zip(NUMBERS, map(float, run.stats[:12]), strict=True)),
        classes=_class_scores(run, annotations),
        curves=_curves(precision[:, :, (precision > -1).any((0, 1))].mean(2)) if (precision > -1).any() else {},
        errors=errors.costs(score),
        confusion=_confusion(annotations, detections, errors, score),
        images=_image_scores(annotations, detections, errors, score),
        score=score,
    )


def run_coco_eval(annotations: Annotations, detections: np.ndarray) -> COCOeval:
    """pycocotools' evaluation, with all that it found out on the way."""
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(*coco_pair(COCO, annotations, detections), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def coco_matches(run: COCOeval, objects: int) -> Matches:
    """COCO's own assignment at IoU 0.5 and any size, of `objects` in all."""
    images, areas = len(run.params.imgIds), len(run.params.areaRng)
    rows, ground_truth, ignored = [], [], []
    found = np.zeros(objects, dtype=bool)
    for place in range(len(run.params.catIds)):
        for one in run.evalImgs[place * areas * images : (place * areas + 1) * images]:
            if one is None:
                continue
            rows += [key - 1 for key in one["dtIds"]]  # ids of detections and objects begin at 1
            ground_truth += [int(key) - 1 for key in one["dtMatches"][0]]
            ignored += one["dtIgnore"][0].tolist()
            found[[key - 1 for key, by in zip(one["gtIds"], one["gtMatches"][0], strict=True) if by]] = True
    return Matches(np.array(rows, int), np.array(ground_truth, int), np.array(ignored, bool), found)


def _mean(values: np.ndarray) -> float:
    """As COCOeval takes means: -1 is no value, and of no values."""
    known = values[values > -1]
    return float(np.mean(known)) if known.size else -1.0


def _curves(precision: np.ndarray) -> dict[str, np.ndarray]:
    """(10, 101) precision by IoU and recall -> curves by label."""
    return {"IoU 0.50": precision[0], "IoU 0.75": precision[5], "mean of IoU 0.50 to 0.95": precision.mean(0)}


def _class_scores(run: COCOeval, annotations: Annotations) -> list[ClassScores]:
    scores, labels, slots = [], annotations.categories.labels, annotations.slots()
    for place, number in enumerate(run.params.catIds):  # slots from 1
        precision = run.eval["precision"][:, :, place, :, -1]
        everywhere = precision[:, :, 0]
        scores.append(
            ClassScores(
                name=labels[number - 1],
                objects=int(((slots == number - 1) & ~annotations.crowd).sum()),
                ap=_mean(everywhere),
                ap50=_mean(everywhere[0]),
                ap75=_mean(everywhere[5]),
                ar=_mean(run.eval["recall"][:, place, 0, -1]),
                by_size=tuple(_mean(precision[:, :, size]) for size in (1, 2, 3)),
                curves=_curves(everywhere) if (everywhere > -1).all() else {},
            )
        )
    return scores


def _confusion(annotations: Annotations, detections: np.ndarray, errors: TideErrors, score: float) -> np.ndarray:
    """Counts at a score. First what COCO matches; what then overlaps an object of another class was taken for it."""
    places = {slot: place for place, slot in enumerate(sorted(annotations.categories.slots.values()))}
    own = [places[slot] for slot in annotations.slots().tolist()]
    matches, nothing = errors.matches, len(places)
    table = np.zeros((nothing + 1, nothing + 1), dtype=int)
    taken = annotations.crowd.copy()
    sure = detections[matches.rows, 5] >= score
    correct = sure & ~matches.ignored & (matches.ground_truth >= 0)
    for target in matches.ground_truth[correct]:
        table[own[target], own[target]] += 1
    taken[matches.ground_truth[correct]] = True
    rest = np.flatnonzero(sure & ~matches.ignored & (matches.ground_truth < 0))
    for number in rest[np.argsort(-detections[matches.rows[rest], 5], kind="stable")]:
        target, detected = errors.confused_with[number], places[int(detections[matches.rows[number], 6])]
        if target >= 0 and not taken[target]:
            taken[target] = True
            table[own[target], detected] += 1
        else:
            table[nothing, detected] += 1
    for target in np.flatnonzero(~taken):
        table[own[target], nothing] += 1
    return table


def _image_scores(
    annotations: Annotations, detections: np.ndarray, errors: TideErrors, score: float
) -> list[ImageScores]:
    matches = errors.matches
    chosen = np.flatnonzero(detections[matches.rows, 5] >= score)
    chosen = chosen[np.argsort(-detections[matches.rows[chosen], 5], kind="stable")]
    found = annotations.crowd.copy()
    found[matches.ground_truth[chosen[~matches.ignored[chosen] & (matches.ground_truth[chosen] >= 0)]]] = True
    own = [[] for _ in range(len(annotations))]
    for number in chosen:
        own[int(detections[matches.rows[number], 0])].append(number)
    images = []
    for index, mine in enumerate(own):
        numbers = np.array(mine, dtype=int)
        kinds = tuple(errors.kind(number) for number in numbers)
        objects = found[annotations.objects(index)]
        correct, ignored = kinds.count(""), kinds.count("ignored")
        wrong, missed = len(kinds) - correct - ignored, int((~objects).sum())
        images.append(ImageScores(index, correct, wrong, missed, matches.rows[numbers], kinds, objects))
    return images
