"""From a detector's output to boxes in pixels."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from models.registry import PARTS
from models.structures import DetectorOutput, gather_tokens
from util.tensors.box_ops import cxcywh_to_xyxy
from util.tensors.device import to_device


def in_pixels(boxes: Tensor, sizes: Tensor) -> Tensor:
    """(B, Q, 4) as cx, cy, w, h in (0, 1), and (B, 2) heights and widths -> (B, Q, 4) as x0, y0, x1, y1 in pixels."""
    height, width = to_device(sizes, boxes.device).unbind(1)
    return cxcywh_to_xyxy(boxes.float()) * torch.stack([width, height, width, height], 1)[:, None]


@PARTS.register
class SigmoidTopK:
    """The best (query, class) pairs of each image; one query may answer with several classes.

    Args:
        num_select: detections per image.
        nms_iou: detections of one class whose IoU with a better one is above this are dropped; None keeps all, as DETRs
            do, and so do 0 and less, which turn NMS off in DINO's code.

    Raises:
        ValueError: an IoU above 1.
    """

    def __init__(self, num_select: int = 100, nms_iou: float | None = None):
        if nms_iou is not None and nms_iou > 1:
            raise ValueError(f"nms_iou={nms_iou}: no IoU is above 1")
        self.num_select, self.nms_iou = num_select, nms_iou if nms_iou is not None and nms_iou > 0 else None

    @torch.no_grad()
    def __call__(self, output: DetectorOutput, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Detections of every image.

        Args:
            output: from a detector.
            sizes: (B, 2), height and width of each image before any resizing.

        Returns:
            per image `scores` (n,) from high to low, `labels` (n,), `boxes` (n, 4) as x0, y0, x1, y1 in pixels.
        """
        scores = output.logits.float().sigmoid().flatten(1)
        scores, index = scores.topk(min(self.num_select, scores.shape[1]), dim=1)
        labels = index % output.logits.shape[-1]
        query = index // output.logits.shape[-1]
        boxes = in_pixels(gather_tokens(output.boxes, query), sizes)
        results = [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, labels, boxes, strict=True)]
        return results if self.nms_iou is None else [self._suppressed(result) for result in results]

    def _suppressed(self, result: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = batched_nms(result["boxes"], result["scores"], result["labels"], self.nms_iou)
        return {name: values[kept] for name, values in result.items()}


@PARTS.register
class SoftmaxBest:
    """One detection for every query: its best class, "no object" (the last one) left aside."""

    @torch.no_grad()
    def __call__(self, output: DetectorOutput, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Detections of every image; arguments and result as in SigmoidTopK."""
        scores, labels = output.logits.float().softmax(-1)[..., :-1].max(-1)
        scores, order = scores.sort(dim=1, descending=True)
        labels = labels.gather(1, order)
        boxes = in_pixels(gather_tokens(output.boxes, order), sizes)
        return [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, labels, boxes, strict=True)]
