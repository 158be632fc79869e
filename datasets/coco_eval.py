"""COCO average precision of detections, gathered from all processes."""

import contextlib
import importlib.util
import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.annotations import Annotations
from datasets.categories import one_line
from util.processes.distributed import broadcast_object, gather_objects, is_main

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers, in the order in which COCOeval gives them. -1 where there is nothing to find."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        numbers: COCO's twelve numbers by name.
        classes: {category: (AP, AP50)}, by `Categories.labels`; -1 where a category has no object.
        images: how many were evaluated.
    """

    numbers: dict[str, float]
    classes: dict[str, tuple[float, float]]
    images: int

    def table(self, best: dict[str, float] | None = None) -> str:
        """The numbers and classes as text for people.

        Args:
            best: what the best evaluation so far found, to show the change since.
        """
        lines = [_row("", [f"{name:>6}" for name in NUMBERS])]
        lines.append(_row("now", [f"{value:6.3f}" for value in self.numbers.values()]))
        if best is not None:
            lines.append(_row("best", [f"{best[name]:6.3f}" for name in NUMBERS]))
            lines.append(_row("change", [_change(best[name], value) for name, value in self.numbers.items()]))
        there = {name: scores for name, scores in self.classes.items() if scores[0] >= 0}
        absent = len(self.classes) - len(there)
        if there:
            width = max(len(one_line(name)) for name in (*there, "class"))
            lines += [f"{'class':<{width}}     AP   AP50"]
            lines += [f"{one_line(name):<{width}} {ap:6.3f} {ap50:6.3f}" for name, (ap, ap50) in there.items()]
        if absent:
            lines.append(f"{absent} of {len(self.classes)} classes have no object here, and no row")
        return "\n".join(lines)


class CocoEvaluator:
    """Collects detections and scores them.

    Args:
        annotations: of the split; all its images count, those without a detection too.
    """

    def __init__(self, annotations: Annotations):
        self.annotations = annotations
        self.known = np.array([key is not None for key in annotations.categories.ids])
        self.images = {key: row for row, key in enumerate(annotations.image_ids.tolist())}
        self.rows = []

    def update(self, results: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]):
        """Takes a batch of what the post-processing returned, and the targets with their `image_id`."""
        if not results:
            return
        columns = ("boxes", "scores", "labels")
        found = [torch.column_stack([result[name].double() for name in columns]) for result in results]
        tables = torch.cat(found).cpu().split([len(table) for table in found])  # one copy to the host
        for table, target in zip(tables, targets, strict=True):
            boxes, scores, slots = np.split(table.numpy(), (4, 5), 1)
            image = np.full_like(scores, self.images[int(target["image_id"])])
            rows = np.concatenate([image, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, slots], 1)
            self.rows.append(rows[self.known[slots[:, 0].astype(np.int64)]])

    def detections(self) -> np.ndarray:
        """(D, 7) from all processes, in the order of the images: place of the image in the annotations, x, y, width,
        height, score, slot. Places and slots, since ids of 64 bits are no floating-point numbers."""
        rows = np.concatenate([np.empty((0, 7)), *(part for parts in gather_objects(self.rows) for part in parts)])
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def evaluate(self, detections: np.ndarray) -> Evaluation:
        """Scores the detections of all processes; the main process computes, all receive."""
        return broadcast_object(self._score(detections) if is_main() else None)

    def _score(self, detections: np.ndarray) -> Evaluation:
        COCO, COCOeval = coco_api()
        with contextlib.redirect_stdout(io.StringIO()):
            ground_truth, found = coco_pair(COCO, self.annotations, detections)
            run = COCOeval(ground_truth, found, "bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
        precision, labels, classes = run.eval["precision"], self.annotations.categories.labels, {}
        for place, key in enumerate(run.params.catIds):
            curves = precision[:, :, place, 0, -1]
            known = curves.size and curves[0, 0] > -1
            scores = (_digits(curves.mean()), _digits(curves[0].mean())) if known else (-1.0, -1.0)
            classes[labels[int(key) - 1]] = scores
        numbers = dict(zip(NUMBERS, map(_digits, run.stats[:12]), strict=True))
        return Evaluation(numbers, classes, len(self.annotations))


def coco_pair(COCO: type, annotations: Annotations, detections: np.ndarray) -> tuple:
    """The ground truth and the detections (D, 7) as objects of a COCO class, either implementation's.

    Their images and categories have numbers of ours, from 1: pycocotools computes with ids in floating-point numbers.
    Images are numbered in the order of their ids, in which COCO's evaluation takes detections of one score, and
    categories by slot.
    """
    numbers = np.empty(len(annotations), dtype=np.int64)
    numbers[np.argsort(annotations.image_ids, kind="stable")] = np.arange(1, len(annotations) + 1)
    ground_truth = COCO()
    ground_truth.dataset = _ground_truth(annotations, numbers)
    ground_truth.createIndex()
    if len(detections):
        columns = zip(numbers[detections[:, 0].astype(int)].tolist(), detections[:, 1:], strict=True)
        return ground_truth, ground_truth.loadRes([_result(image, int(row[5]) + 1, row) for image, row in columns])
    found = COCO()  # loadRes cannot load none
    found.dataset = {**ground_truth.dataset, "annotations": []}
    found.createIndex()
    return ground_truth, found


def _ground_truth(annotations: Annotations, numbers: np.ndarray) -> dict:
    """The ground truth as the COCO interface wants it. Ids start at 1: it takes 0 for 'not matched'."""
    columns = zip(
        np.repeat(numbers, np.diff(annotations.first)).tolist(),
        annotations.boxes.tolist(),
        (annotations.slots() + 1).tolist(),
        annotations.areas.tolist(),
        annotations.crowd.tolist(),
        strict=True,
    )
    slots = sorted(annotations.categories.slots.values())
    return {
        "info": {},
        "images": [{"id": number} for number in numbers.tolist()],
        "categories": [{"id": slot + 1, "name": annotations.categories.names[slot]} for slot in slots],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "bbox": box,
                "category_id": category,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image, box, category, area, crowd) in enumerate(columns, 1)
        ],
    }


def _row(heading: str, cells: list[str]) -> str:
    return " ".join([f"{heading:<6}", *cells])


def _change(before: float, now: float) -> str:
    if before == now:
        return f"{'=':>6}"
    return f"{now - before:+6.3f}" if min(before, now) >= 0 else f"{'-':>6}"  # -1 is no number to subtract


def _digits(number: float) -> float:
    """Ten digits: the two implementations of COCO's evaluation differ in the sixteenth."""
    return round(float(number), 10)


def detections_as_coco(annotations: Annotations, detections: np.ndarray) -> list[dict]:
    """(D, 7) rows of `CocoEvaluator.detections` as COCO's results format, under the ids of the annotation file."""
    images, ids = annotations.image_ids.tolist(), annotations.categories.ids
    return [_result(images[int(row[0])], ids[int(row[6])], row[1:]) for row in detections]


def _result(image_id: int, category_id: int, row: np.ndarray) -> dict:
    """A detection, x, y, width, height, score, as COCO's results list it."""
    return {"image_id": image_id, "category_id": category_id, "bbox": row[:4].tolist(), "score": float(row[4])}


def coco_api() -> tuple[type, type]:
    """COCO and COCOeval: faster-coco-eval's where it is installed, the same numbers sooner, else pycocotools'."""
    if importlib.util.find_spec("faster_coco_eval"):
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval
