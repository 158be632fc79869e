"""COCO average precision of detections, gathered from all processes."""

import contextlib
import importlib.util
import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.annotations import Annotations
from util.processes.distributed import broadcast_object, gather_objects, is_main

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers, in the order in which COCOeval gives them. -1 where there is nothing to find."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        numbers: COCO's twelve numbers by name.
        classes: {category name: (AP, AP50)}; -1 where a category has no object.
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
        width = max(len(name) for name in self.classes)
        lines += [f"{'class':<{width}}     AP   AP50"]
        lines += [f"{name:<{width}} {ap:6.3f} {ap50:6.3f}" for name, (ap, ap50) in self.classes.items()]
        return "\n".join(lines)


class CocoEvaluator:
    """Collects detections and scores them.

    Args:
        annotations: of the split; all its images count, those without a detection too.
    """

    def __init__(self, annotations: Annotations):
        self.annotations = annotations
        self.categories = np.array([-1 if key is None else key for key in annotations.categories.ids])
        self.rows = []

    def update(self, results: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]):
        """Takes a batch of what the post-processing returned, and the targets with their `image_id`."""
        if not results:
            return
        columns = ("boxes", "scores", "labels")
        found = [torch.column_stack([result[name].double() for name in columns]) for result in results]
        tables = torch.cat(found).cpu().split([len(table) for table in found])  # one copy to the host
        for table, target in zip(tables, targets, strict=True):
            boxes, scores, labels = np.split(table.numpy(), (4, 5), 1)
            rows = np.empty((len(table), 7))
            rows[:, 0] = int(target["image_id"])
            rows[:, 1:3] = boxes[:, :2]
            rows[:, 3:5] = boxes[:, 2:] - boxes[:, :2]
            rows[:, 5] = scores[:, 0]
            rows[:, 6] = self.categories[labels[:, 0].astype(np.int64)]
            self.rows.append(rows[rows[:, 6] >= 0])

    def detections(self) -> np.ndarray:
        """(D, 7) from all processes, by image: image id, x, y, width, height, score, category id."""
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
        precision, names, classes = run.eval["precision"], dict(self.annotations.categories.used), {}
        for place, (_, name) in enumerate(sorted(names.items())):
            curves = precision[:, :, place, 0, -1]
            known = curves.size and curves[0, 0] > -1
            classes[name] = (_digits(curves.mean()), _digits(curves[0].mean())) if known else (-1.0, -1.0)
        numbers = dict(zip(NUMBERS, map(_digits, run.stats[:12]), strict=True))
        return Evaluation(numbers, classes, len(self.annotations))


def coco_pair(COCO: type, annotations: Annotations, detections: np.ndarray) -> tuple:
    """The ground truth and the detections (D, 7) as objects of a COCO class, either implementation's."""
    ground_truth = COCO()
    ground_truth.dataset = ground_truth_as_coco(annotations)
    ground_truth.createIndex()
    if len(detections):
        return ground_truth, ground_truth.loadRes(detections_as_coco(detections))
    found = COCO()  # loadRes cannot load none
    found.dataset = {**ground_truth.dataset, "annotations": []}
    found.createIndex()
    return ground_truth, found


def ground_truth_as_coco(annotations: Annotations) -> dict:
    """The ground truth as the COCO interface wants it. Ids start at 1: it takes 0 for 'not matched'."""
    images = np.repeat(annotations.image_ids, np.diff(annotations.first))
    columns = zip(
        images, annotations.boxes, annotations.category_ids, annotations.areas, annotations.crowd, strict=True
    )
    return {
        "info": {},
        "images": [{"id": int(key)} for key in annotations.image_ids],
        "categories": [{"id": key, "name": name} for key, name in annotations.categories.used],
        "annotations": [
            {
                "id": number,
                "image_id": int(image),
                "bbox": box.tolist(),
                "category_id": int(category),
                "area": float(area),
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


def detections_as_coco(detections: np.ndarray) -> list[dict]:
    """(D, 7) rows of `CocoEvaluator.detections` as COCO's results format."""
    return [
        {"image_id": int(row[0]), "category_id": int(row[6]), "bbox": row[1:5].tolist(), "score": float(row[5])}
        for row in detections
    ]


def coco_api() -> tuple[type, type]:
    """COCO and COCOeval: faster-coco-eval's where it is installed, the same numbers sooner, else pycocotools'."""
    if importlib.util.find_spec("faster_coco_eval"):
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval
