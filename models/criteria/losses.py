"""What a difference between predictions and targets costs. Every loss answers for all layers of a site at once."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.criteria.hungarian_matcher import Pairs, Targets
from models.registry import PARTS
from models.structures import Detections
from util.tensors.box_ops import covered_corners, generalized_iou, intersection_over_union
from util.tensors.device import constant_tensor


@PARTS.register
class FocalLoss:
    """Sigmoid focal loss of all logits against the paired targets' labels, everything unpaired being background.

    Focal Loss for Dense Object Detection, equation 5; summed over queries and classes, divided by the number of boxes.

    Args:
        weight: its share in the total.
        alpha, gamma: balance of positives, and how much easy examples are spared.
    """

    def __init__(self, weight: float, alpha: float = 0.25, gamma: float = 2.0):
        self.weight, self.alpha, self.gamma = weight, alpha, gamma

    def __call__(self, predicted: Detections, targets: Targets, pairs: Pairs, num_boxes: Tensor) -> Tensor:
        """(N, B, Q, K) logits -> (N,)."""
        logits = predicted.logits.float()
        negative = (1 - self.alpha) * logits.sigmoid() ** self.gamma * F.softplus(logits)
        labels = targets.labels[pairs.target]
        hit = pairs.of_predictions(logits).gather(-1, labels[..., None])[..., 0]  # (N, P): logits whose target is 1
        correction = self.alpha * (-hit).sigmoid() ** self.gamma * F.softplus(-hit)
        correction = correction - (1 - self.alpha) * hit.sigmoid() ** self.gamma * F.softplus(hit)
        return (negative.flatten(1).sum(1) + correction.sum(1)) / num_boxes


@PARTS.register
class VarifocalLoss:
    """Binary cross entropy of all logits, where the score of a paired prediction should be the IoU of its box.

    VarifocalNet, equation 2, as RT-DETR has it: that IoU is the weight of its entry, too; every other entry should be
    0 and weighs alpha * p^gamma, p being its score, without gradient. Summed, divided by the number of boxes.

    Args:
        weight: its share in the total.
        alpha, gamma: balance of what should be 0, and how much easy examples are spared.
    """

    def __init__(self, weight: float, alpha: float = 0.75, gamma: float = 2.0):
        self.weight, self.alpha, self.gamma = weight, alpha, gamma

    def __call__(self, predicted: Detections, targets: Targets, pairs: Pairs, num_boxes: Tensor) -> Tensor:
        """(N, B, Q, K) logits -> (N,)."""
        quality = paired_iou(predicted, targets, pairs)
        return _graded(predicted, targets, pairs, quality, quality, self.alpha, self.gamma) / num_boxes


@PARTS.register
class MatchabilityLoss:
    """The same with wanted scores of IoU^gamma, for which poor boxes count as much as good ones (DEIM).

    Args:
        weight: its share in the total.
        gamma: of the wanted score, and of the weight p^gamma of what should be 0.
    """

    def __init__(self, weight: float, gamma: float = 1.5):
        self.weight, self.gamma = weight, gamma

    def __call__(self, predicted: Detections, targets: Targets, pairs: Pairs, num_boxes: Tensor) -> Tensor:
        """(N, B, Q, K) logits -> (N,)."""
        wanted = paired_iou(predicted, targets, pairs) ** self.gamma
        return _graded(predicted, targets, pairs, wanted, torch.ones_like(wanted), 1.0, self.gamma) / num_boxes


def _graded(
    predicted: Detections, targets: Targets, pairs: Pairs, wanted: Tensor, weight: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Sums (N,) of binary cross entropies, of (N, P) `wanted` scores with (N, P) `weight`, and of 0 elsewhere."""
    logits = predicted.logits.float()
    labels = targets.labels[pairs.target]
    hit = pairs.of_predictions(logits).gather(-1, labels[..., None])[..., 0]  # (N, P)
    nothing = alpha * logits.detach().sigmoid() ** gamma * F.softplus(logits)
    correction = weight * (F.softplus(hit) - wanted * hit)
    correction = correction - alpha * hit.detach().sigmoid() ** gamma * F.softplus(hit)
    return nothing.flatten(1).sum(1) + correction.sum(1)


@torch.no_grad()
def paired_iou(predicted: Detections, targets: Targets, pairs: Pairs) -> Tensor:
    """(N, P): the IoU of every paired box with its target, without gradient."""
    boxes = covered_corners(pairs.of_predictions(predicted.boxes.float()))
    return intersection_over_union(boxes, covered_corners(targets.boxes[pairs.target]))


@PARTS.register
class SoftmaxCrossEntropy:
    """Cross entropy of all predictions, the unpaired ones being "no object", which is the last class (DETR, 3.1).

    The mean over predictions and images, weighted by the wanted class; the number of boxes plays no part.

    Args:
        weight: its share in the total.
        no_object: weight of a prediction that should find nothing.
    """

    def __init__(self, weight: float, no_object: float = 0.1):
        self.weight, self.no_object = weight, no_object

    def __call__(self, predicted: Detections, targets: Targets, pairs: Pairs, num_boxes: Tensor) -> Tensor:
        """(N, B, Q, K) logits -> (N,)."""
        logits = predicted.logits.float()
        N, nothing = len(logits), logits.shape[-1] - 1
        layer = torch.arange(N, device=logits.device)[:, None]
        labels = torch.full(logits.shape[:-1], nothing, device=logits.device)
        labels = labels.index_put((layer, pairs.image, pairs.query), targets.labels[pairs.target])
        surprise = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(N, -1)
        weights = torch.where(labels == nothing, self.no_object, 1.0).view(N, -1)
        return (surprise * weights).sum(1) / weights.sum(1)


@PARTS.register
class BoxL1:
    """Sum of absolute differences of cx, cy, w, h over the pairs, divided by the number of boxes (DETR, A.2)."""

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, predicted: Detections, targets: Targets, pairs: Pairs, num_boxes: Tensor) -> Tensor:
        """(N, B, Q, 4) boxes -> (N,)."""
        difference = pairs.of_predictions(predicted.boxes.float()) - targets.boxes[pairs.target]
        return difference.abs().flatten(1).sum(1) / num_boxes


@PARTS.register
class BoxGIoU:
    """Sum of 1 - generalized IoU over the pairs, divided by the number of boxes (DETR, A.2).

    Args:
        weight: its share in the total.
        eps: of the generalized IoU; DINO takes 1e-6.
    """

    def __init__(self, weight: float, eps: float = 0.0):
        self.weight, self.eps = weight, eps

    def __call__(self, predicted: Detections, targets: Targets, pairs: Pairs, num_boxes: Tensor) -> Tensor:
        """(N, B, Q, 4) boxes -> (N,)."""
        boxes = covered_corners(pairs.of_predictions(predicted.boxes.float()))
        iou = generalized_iou(boxes, covered_corners(targets.boxes[pairs.target]), self.eps)
        return (1 - iou).sum(1) / num_boxes


def class_error(predicted: Detections, targets: Targets, pairs: Pairs, layer: int = -1) -> Tensor:
    """Percentage of paired predictions of a layer whose best class is wrong; 100 where there are none."""
    best = pairs.of_predictions(predicted.logits)[layer].argmax(-1)
    right = (best == targets.labels[pairs.target[layer]]).float()
    return 100 - 100 * right.mean() if len(right) else predicted.logits.new_full((), 100.0)


def cardinality_error(predicted: Detections, targets: Targets, layer: int = -1) -> Tensor:
    """Mean absolute difference between an image's objects and its predictions whose best class is not the last one.

    DETR's diagnostic, kept for its curves: it means what it says only where the last class is "no object".
    """
    logits = predicted.logits[layer]
    counted = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1).float()
    return F.l1_loss(counted, constant_tensor(targets.counts, counted.device, torch.float32))
