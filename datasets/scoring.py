"""What a model is worth on a split: its detections scored, written and drawn."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from datasets.annotations import Annotations
from datasets.coco import DetectionDataset
from datasets.coco_eval import CocoEvaluator, detections_as_coco
from datasets.preview import draw_detections
from util.files.writing import UnwritableError, write_text
from util.processes.distributed import broadcast_buffers, run_in_main_process

log = logging.getLogger(__name__)


class Scorer:
    """Scores models on a split, by COCO's measure.

    Args:
        dataset: the split.
        detect: (model, evaluator, title) -> means of losses; engine.evaluate with all that else it needs.
        folder: of results.json and vis/.
        drawn_images: how many are drawn, where that is asked for.
        write_results: whether results.json is written.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        detect: Callable[..., dict[str, float]],
        folder: Path,
        drawn_images: int = 12,
        write_results: bool = False,
    ):
        self.dataset, self.detect, self.folder = dataset, detect, folder
        self.drawn_images, self.write_results = drawn_images, write_results

    def __call__(self, model: nn.Module, name: str, best: dict | None = None, draw: bool = False) -> dict:
        """Says what came out beside the best numbers so far, and returns the numbers for the log.

        Args:
            name: of the weights, "regular" or "ema".
            best: numbers of the best epoch so far, if there is one.
            draw: whether vis/detections.png is drawn.

        Raises:
            UnwritableError: in all processes; the disk is full, say.
        """
        broadcast_buffers(model)
        evaluator = CocoEvaluator(self.dataset.annotations)
        means = self.detect(model, evaluator=evaluator, title=f"eval {name}")
        detections = evaluator.detections()
        scores = evaluator.evaluate(detections)
        log.info("%s %s\n%s", self.dataset.annotations.file, name, scores.table(best))
        run_in_main_process(partial(self._keep, detections, draw), UnwritableError)
        return {**means, **scores.numbers, "coco_eval_bbox": list(scores.numbers.values()), "classes": scores.classes}

    def _keep(self, detections, draw: bool):
        if self.write_results:
            write_results(self.dataset.annotations, detections, self.folder)
        if draw:
            draw_detections(self.dataset, detections, self.folder / "vis" / "detections.png", self.drawn_images)
            log.info("images: %s", self.folder / "vis")


def write_results(annotations: Annotations, detections: np.ndarray, folder: Path):
    """Writes detections, (D, 7) rows of CocoEvaluator.detections, as results.json in COCO's results format."""
    path = folder / "results.json"
    write_text(path, json.dumps(detections_as_coco(annotations, detections)))
    log.info("%s: %d detections", path, len(detections))
