"""Detections beside the ground truth, as one image."""

from pathlib import Path

import numpy as np

from datasets.coco import CorruptImageError, DetectionDataset
from util.reporting.plots import Box, contact_sheet


def draw_detections(dataset: DetectionDataset, detections: np.ndarray, path: Path, images: int, score: float = 0.3):
    """Writes a contact sheet of images spread over the data set.

    Args:
        dataset: where images and ground truth come from.
        detections: (D, 7) rows of CocoEvaluator.detections.
        path: of the PNG; its folder is made.
        images: how many at most.
        score: detections below it are left out.
    """
    found = dataset.annotations
    rows = []
    for index in np.linspace(0, len(found) - 1, min(images, len(found))).astype(int):
        try:
            image = dataset.load_image(index)
        except CorruptImageError:
            continue  # the evaluation has said so
        own = detections[(detections[:, 0] == index) & (detections[:, 5] >= score)]
        names = found.categories.labels
        detected = [
            _box(row[1:5], int(row[6]), f"{names[int(row[6])]} {row[5]:.2f}") for row in own[np.argsort(own[:, 5])]
        ]
        objects = found.objects(index)
        pairs = zip(found.boxes[objects], found.slots(objects).tolist(), strict=True)
        rows.append((image, detected, [_box(box, slot, names[slot]) for box, slot in pairs]))
    contact_sheet(rows, path)


def _box(xywh: np.ndarray, slot: int, label: str) -> Box:
    x, y, w, h = (float(number) for number in xywh)
    return Box((x, y, x + w, y + h), slot, label)
