"""Detections on images without annotations, as a COCO file and as drawings."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.categories import Categories
from datasets.image_files import InputImage
from datasets.images import OutputNames
from util.files.writing import whole_file, write_text
from util.reporting.plots import Box, draw_boxes


@dataclass(frozen=True)
class Found:
    """What was found on an image, from the surest to the least sure.

    Attributes:
        boxes: (n, 4) x0, y0, x1, y1 in pixels.
        scores: (n,).
        slots: (n,) of the classifier.
    """

    boxes: np.ndarray
    scores: np.ndarray
    slots: np.ndarray


def draw_found(image: Image.Image, found: Found, categories: Categories) -> Image.Image:
    """A copy of an image with boxes, classes and scores on it; the surest on top."""
    rows = zip(found.boxes.tolist(), found.scores, found.slots, strict=True)
    boxes = [Box(tuple(box), int(slot), f"{categories.labels[slot]} {score:.2f}") for box, score, slot in rows]
    return draw_boxes(image, boxes[::-1])


class Predictions:
    """Gathers detections and writes them below a folder: predictions.json, and drawn images and videos in drawn/.

    Args:
        categories: of the classifier.
        folder: is made.
        drawn: whether to draw.
    """

    def __init__(self, categories: Categories, folder: Path, drawn: bool = True):
        self.categories, self.folder, self.drawn = categories, folder, folder / "drawn" if drawn else None
        self.images, self.annotations, self.names = [], [], OutputNames(folder / "drawn")
        self.video = self.video_of = None
        (self.drawn or folder).mkdir(parents=True, exist_ok=True)

    def add(self, source: InputImage, found: Found):
        """Takes one source."""
        image = {"id": len(self.images) + 1, "file_name": source.name}
        self.images.append(image | {"width": source.image.width, "height": source.image.height})
        for (x0, y0, x1, y1), score, slot in zip(found.boxes.tolist(), found.scores.tolist(), found.slots, strict=True):
            entry = {"id": len(self.annotations) + 1, "image_id": image["id"]}
            entry["category_id"] = self.categories.ids[slot]
            entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0, "score": score}
            self.annotations.append(entry)
        if self.drawn:
            self._draw(source, draw_found(source.image, found, self.categories))

    def _draw(self, source: InputImage, drawing: Image.Image):
        if source.frame is None:
            with whole_file(Path(f"{self.names.place(source.path, source.root)}.jpg")) as part:
                drawing.save(part, quality=92)
            return
        import cv2

        if self.video_of != source.path:
            self._end_video()
            name, code = f"{self.names.place(source.path, source.root)}.mp4", cv2.VideoWriter_fourcc(*"mp4v")
            self.video, self.video_of = cv2.VideoWriter(name, code, source.rate, drawing.size), source.path
        self.video.write(np.ascontiguousarray(np.asarray(drawing)[:, :, ::-1]))

    def _end_video(self):
        if self.video is not None:
            self.video.release()
            self.video = None

    def save(self) -> Path:
        """Writes the JSON: a COCO annotation file whose objects have a score, so that it can be opened as one."""
        self._end_video()
        categories = [{"id": key, "name": name} for key, name in self.categories.used]
        content = {"images": self.images, "categories": categories, "annotations": self.annotations}
        path = self.folder / "predictions.json"
        write_text(path, json.dumps(content))
        return path
