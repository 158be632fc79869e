"""Images for a web page: what is there beside what was detected."""

import base64
import io
from collections import Counter
from collections.abc import Iterable

import numpy as np
from PIL import Image

from datasets.analysis import ImageScores
from datasets.coco import CorruptImageError, DetectionDataset
from util.reporting.plots import Box, draw_boxes

SHORT_KINDS = {"classification": "cls", "localisation": "loc", "both": "both", "duplicate": "dupe", "background": "bkg"}
LONGEST = 560
"""Pixels of a shown image's longer side."""
RIGHT, WRONG = 5, 0
"""Colours of util.reporting.plots.COLOURS."""


def image_card(dataset: DetectionDataset, detections: np.ndarray, scores: ImageScores) -> dict | None:
    """An image twice, with its ground truth and with its detections; None if it cannot be read."""
    try:
        image = dataset.load_image(scores.index)
    except CorruptImageError:
        return None
    found, names = dataset.annotations, dataset.annotations.categories.labels
    factor = min(1.0, LONGEST / max(image.size))
    small = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)

    def box(xywh: np.ndarray, good: bool, text: str) -> Box:
        x, y, w, h = (float(number) * factor for number in xywh)
        return Box((x, y, x + w, y + h), RIGHT if good else WRONG, text)

    rows = found.objects(scores.index)
    ground_truth = list(zip(found.boxes[rows], found.slots(rows), scores.objects_found, strict=True))
    seen = list(zip(detections[scores.detections], scores.kinds, strict=True))
    ground_truth_boxes = [box(b, good, names[c] if good else f"missed {names[c]}") for b, c, good in ground_truth]
    seen_boxes = [
        box(
            row[1:5],
            kind in ("", "ignored"),
            f"{names[int(row[6])]} {row[5]:.2f} {SHORT_KINDS.get(kind, kind)}".strip(),
        )
        for row, kind in reversed(seen)
    ]
    kinds = Counter(kind for kind in scores.kinds if kind)
    return {
        "name": found.name(scores.index).encode("utf-8", "replace").decode(),
        "scores": scores,
        "ground_truth": data_uri(draw_boxes(small, ground_truth_boxes)),
        "ground_truth_alt": f"Ground truth: {counted(names[c] for _, c, _ in ground_truth)}; {scores.missed} missed",
        "found": data_uri(draw_boxes(small, seen_boxes)),
        "found_alt": f"Detections: {counted(names[int(row[6])] for row, _ in seen)}; {scores.wrong} wrong",
        "kinds": ", ".join(f"{times} {kind}" for kind, times in kinds.most_common()),
        "size": small.size,
    }


def counted(names: Iterable[str]) -> str:
    """'3 cat, 1 dog', or 'nothing'."""
    return ", ".join(f"{times} {name}" for name, times in Counter(names).most_common()) or "nothing"


def data_uri(image: Image.Image) -> str:
    """An image as part of a page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
