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
        own = detections[(detections[:, 0] == found.image_ids[index]) & (detections[:, 5] >= score)]
        detected = [_box(dataset, row[1:5], int(row[6]), f" {row[5]:.2f}") for row in own[np.argsort(own[:, 5])]]
        objects = found.objects(index)
        pairs = zip(found.boxes[objects], found.category_ids[objects], strict=True)
        rows.append((image, detected, [_box(dataset, box, category, "") for box, category in pairs]))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, path)


def _box(dataset: DetectionDataset, xywh: np.ndarray, category: int, suffix: str) -> Box:
    categories = dataset.annotations.categories
    slot = categories.slots[category]
    x, y, w, h = (float(number) for number in xywh)
    return Box((x, y, x + w, y + h), slot, categories.names[slot] + suffix)
