"""Pairs of predictions and targets."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.registry import PARTS
from models.structures import Detections, QueryGroup
from util.tensors.box_ops import covered_corners, generalized_iou
from util.tensors.device import constant_tensor

IMPOSSIBLE = 1e9
"""Cost of a pair whose prediction is not finite: the loss will show it, the matching must survive it."""


@dataclass(frozen=True)
class Targets:
    """The objects of a batch, one after the other.

    Attributes:
        labels: (T,) int64.
        boxes: (T, 4) as cx, cy, w, h in (0, 1).
        counts: objects per image.
    """

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, targets: list[dict]) -> "Targets":
        """From a list of dicts with `labels` and `boxes`."""
        labels = torch.cat([target["labels"] for target in targets])
        boxes = torch.cat([target["boxes"] for target in targets]).float()
        return cls(labels, boxes, tuple(len(target["labels"]) for target in targets))

    def repeated(self, times: int) -> "Targets":
        """Every image's objects `times` times, as whole blocks (H-DETR, section 3.2)."""
        if times == 1:
            return self
        labels = [part.repeat(times) for part in self.labels.split(self.counts)]
        boxes = [part.repeat(times, 1) for part in self.boxes.split(self.counts)]
        return Targets(torch.cat(labels), torch.cat(boxes), tuple(count * times for count in self.counts))


@dataclass(frozen=True)
class Pairs:
    """Which prediction answers which target, for N layers that pair equally many.

    Attributes:
        image: (P,), the same for every layer.
        query, target: (N, P), rows of the layer's predictions and of the batch's targets.
        host: (3, N, P), image, query and target once more, where nobody waits for the device.
    """

    image: Tensor
    query: Tensor
    target: Tensor
    host: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, query: np.ndarray, target: np.ndarray, device) -> "Pairs":
        """From (P,), (N, P) and (N, P) on the host."""
        N = len(query)
        stacked = constant_tensor(np.concatenate([image[None], query, target]), device)
        host = np.stack([np.broadcast_to(image, query.shape), query, target])
        images, queries, targets = stacked.split([1, N, N])
        return cls(images[0], queries, targets, host)

    def __len__(self) -> int:
        """P."""
        return len(self.image)

    def in_layers(self, N: int) -> "Pairs":
        """Those of one layer in N of them."""
        host = np.broadcast_to(self.host, (3, N, len(self)))
        return replace(self, query=self.query.expand(N, -1), target=self.target.expand(N, -1), host=host)

    def of_first(self, N: int) -> "Pairs":
        """Those of the first N layers."""
        return replace(self, query=self.query[:N], target=self.target[:N], host=self.host[:, :N])

    def of_predictions(self, values: Tensor) -> Tensor:
        """(N, B, Q, ...) -> (N, P, ...): the rows of the paired predictions."""
        rows = torch.add(self.query, self.image, alpha=values.shape[2])  # (N, P), of all images' predictions
        rows = rows.view(*rows.shape, *[1] * (values.dim() - 3))
        # Not values[...], whose gradient sorts rows before it adds them.
        return torch.take_along_dim(values.flatten(1, 2), rows, 1)


@dataclass(frozen=True)
class Paired:
    """The detections of one site, what they should find, and the scalar by which their losses are divided."""

    predicted: Detections
    targets: Targets
    pairs: Pairs
    num_boxes: Tensor


@PARTS.register
class HungarianMatcher:
    """The cheapest one-to-one assignment of targets to predictions (DETR, equation 1).

    Args:
        ce, bbox, giou: weights of the three costs: class (focal here, as in Deformable DETR), L1, negative generalized
            IoU.
        eps: of the generalized IoU; DINO takes 1e-6.
    """

    alpha = 0.25
    gamma = 2.0

    def __init__(self, ce: float = 2.0, bbox: float = 5.0, giou: float = 2.0, eps: float = 0.0):
        self.ce, self.bbox, self.giou, self.eps = ce, bbox, giou, eps

    @torch.no_grad()
    def cost(self, detections: Detections, targets: Targets) -> Tensor:
        """(N, B, Q, T'): what every prediction costs for every target of its image; T' is the most in one image."""
        N, _, Q = detections.boxes.shape[:3]
        counts, rows = np.array(targets.counts), np.arange(max(targets.counts))
        index = (counts.cumsum() - counts)[:, None] + rows  # (B, T'); surplus unused
        index = constant_tensor(index.clip(max=len(targets.labels) - 1), targets.labels.device)
        labels, boxes = targets.labels[index], targets.boxes[index]
        predicted = detections.boxes.float()[..., None, :]
        wanted = boxes[:, None]
        cost = self.bbox * (predicted - wanted).abs().sum(-1)
        cost = cost + self.ce * self.class_cost(detections.logits.float(), labels[None, :, None].expand(N, -1, Q, -1))
        return cost - self.giou * generalized_iou(covered_corners(predicted), covered_corners(wanted), self.eps)

    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What the focal loss would fall by if a label's target were 1 instead of 0.

        (N, B, Q, K) and (N, B, Q, T') -> (N, B, Q, T').
        """
        p = logits.gather(-1, labels).sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return positive - negative

    def match(self, sites: list[tuple[Detections, Targets]]) -> list[Pairs]:
        """Pairs for several sites at once: one copy to the host for all layers of all of them."""
        costs = [self.cost(*site) if sum(site[1].counts) else None for site in sites]
        flat = [cost.flatten() for cost in costs if cost is not None]
        host = torch.nan_to_num(torch.cat(flat), IMPOSSIBLE, IMPOSSIBLE, -IMPOSSIBLE).cpu().numpy() if flat else None
        pairs, start = [], 0
        for (detections, targets), cost in zip(sites, costs, strict=True):
            stop = start if cost is None else start + cost.numel()
            matrix = None if cost is None else host[start:stop].reshape(cost.shape)
            pairs.append(_assign(matrix, targets.counts, detections))
            start = stop
        return pairs


@PARTS.register
class SoftmaxHungarianMatcher(HungarianMatcher):
    """The same where classes exclude each other: the first cost is the class's negative probability (DETR, 3.1)."""

    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, B, Q, K) and (N, B, Q, T') -> (N, B, Q, T')."""
        return -logits.softmax(-1).gather(-1, labels)


def _assign(cost: np.ndarray | None, counts: tuple[int, ...], detections: Detections) -> Pairs:
    """Solves the assignment of every layer and image."""
    N, _, Q = detections.boxes.shape[:3]
    images, queries, targets = [np.zeros(0, np.int64)], [np.zeros((N, 0), np.int64)], [np.zeros((N, 0), np.int64)]
    first = 0
    for image, count in enumerate(counts):
        if not count:
            continue
        solved = [linear_sum_assignment(cost[layer, image, :, :count]) for layer in range(N)]
        queries.append(np.stack([rows for rows, _ in solved]))
        targets.append(np.stack([columns for _, columns in solved]) + first)
        images.append(np.full(min(count, Q), image))
        first += count
    rows = np.concatenate(images), np.concatenate(queries, 1), np.concatenate(targets, 1)
    return Pairs.of(*rows, detections.boxes.device)


def known_pairs(detections: Detections, targets: Targets, groups: list[QueryGroup]) -> Pairs:
    """Denoising needs no matching: in every group, the query in place j is a noised copy of object j (DINO, 3.3)."""
    counts = np.array(targets.counts)
    target = np.arange(len(targets.labels))
    place = target - np.repeat(counts.cumsum() - counts, counts)  # of an object within its image
    starts = np.arange(len(groups)) * groups[0].size
    rows = (np.repeat(np.arange(len(counts)), counts), starts[:, None] + place, target)
    image, query, target = (np.broadcast_to(row, (len(groups), len(target))).ravel() for row in rows)
    return Pairs.of(image, query[None], target[None], detections.boxes.device).in_layers(len(detections.boxes))
