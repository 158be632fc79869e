"""Losses of boxes whose edges are distributions (D-FINE, sections 4.1 and 4.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.criteria.hungarian_matcher import Paired, Pairs, Targets
from models.criteria.losses import paired_iou
from models.layers.edge_distribution import bin_values, distances_to
from models.registry import PARTS
from models.structures import Detections, EdgeDetections
from util.tensors.box_ops import covered_corners


@PARTS.register
class FineGrainedLocalization:
    """Cross entropy of paired edges' distributions against the two bins that the target's edge lies between.

    D-FINE's FGL (section 4.1). The nearer bin weighs more; beyond the outermost bins these are wanted. An edge counts
    as much as its layer's box overlaps the target; all four are summed, and divided by the number of pairs.

    Args:
        weight: its share in the total.
        scale, reach: of the distributions' bins, as the decoder has them.
    """

    def __init__(self, weight: float, scale: float, reach: float = 0.5):
        self.weight, self.scale, self.reach = weight, scale, reach

    def __call__(self, predicted: Detections, targets: Targets, pairs: Pairs, num_boxes: Tensor) -> Tensor:
        """(N, B, Q, 4, bins) edges -> (N,)."""
        found = _with_edges(predicted)
        corners = covered_corners(targets.boxes[pairs.target])
        distances = distances_to(pairs.of_predictions(found.initial.float()), corners, self.scale)  # (N, P, 4)
        bins, far = between_bins(distances, found.edges.shape[-1], self.scale, self.reach)
        surprise = -pairs.of_predictions(found.edges.float()).log_softmax(-1)
        near, next_one = surprise.gather(-1, torch.stack([bins, bins + 1], -1)).unbind(-1)
        missed = ((1 - far) * near + far * next_one).sum(-1)  # (N, P)
        return (missed * paired_iou(predicted, targets, pairs)).sum(1) / num_boxes


@torch.no_grad()
def between_bins(distances: Tensor, num_bins: int, scale: float, reach: float) -> tuple[Tensor, Tensor]:
    """The bin (...) below every distance, and where it lies (...) between that bin, 0, and the next, 1."""
    values = bin_values(num_bins, scale, reach, distances.device)
    below = (torch.bucketize(distances, values, right=True) - 1).clamp(0, num_bins - 2)
    start = values[below]
    return below, ((distances - start) / (values[below + 1] - start)).clamp(0, 1)


@PARTS.register
class Distillation:
    """Kullback-Leibler divergence of every layer's distributions from those of the last (D-FINE's DDF, section 4.2).

    A query that is paired counts as much as its box overlaps the target, any other as much as the last layer is sure of
    its best class. The means over either kind are averaged in proportion to the square roots of how many there are at
    the site `balance`. No gradient reaches the last layer.

    Args:
        weight: its share in the total.
        temperature: by which logits are divided.
        balance: the site whose pairs are counted.
    """

    def __init__(self, weight: float, temperature: float = 5.0, balance: str = "matching"):
        self.weight, self.temperature, self.balance = weight, temperature, balance

    def __call__(self, sites: Mapping[str, Paired]) -> dict[str, Tensor]:
        """(N, B, Q, 4, bins) edges of some sites -> (N - 1,) for each: for all layers but the last."""
        if self.balance not in sites:
            raise KeyError(f"ddf is balanced by the pairs of '{self.balance}', which must have it among its losses")
        paired, others = (number**0.5 for number in _how_many(sites[self.balance]))
        answers = {}
        for site, found in sites.items():
            mean, mean_of_others = self._means(found)
            answers[site] = (mean * paired + mean_of_others * others) / (paired + others)
        return answers

    def _means(self, site: Paired) -> tuple[Tensor, Tensor]:
        """Means over the edges of paired queries and of all others, (N - 1,) each; 0 where there are none."""
        found = _with_edges(site.predicted)
        students = found[:-1]
        N, num_paired, num_others = len(students.boxes), *_how_many(site)
        pairs = site.pairs.of_first(N)
        teaching = (found.edges[-1].detach().float() / self.temperature).log_softmax(-1)
        learned = (students.edges.float() / self.temperature).log_softmax(-1)
        divergence = (teaching.exp() * (teaching - learned)).sum((-2, -1)) * self.temperature**2 / 4  # (N, B, Q)

        overlap = paired_iou(students, site.targets, pairs)
        of_paired = (pairs.of_predictions(divergence) * overlap).sum(1) / max(num_paired, 1)
        sure = found.logits[-1].detach().float().amax(-1).sigmoid()
        layer = torch.arange(N, device=sure.device)[:, None]
        sure = sure.expand(N, -1, -1).index_put((layer, pairs.image, pairs.query), sure.new_zeros(()))
        return of_paired, (divergence * sure).flatten(1).sum(1) / max(num_others, 1)


def _how_many(site: Paired) -> tuple[int, int]:
    """Queries of a layer that are paired, and that are not; plain numbers."""
    _, B, Q = site.predicted.boxes.shape[:3]
    return len(site.pairs), B * Q - len(site.pairs)


def _with_edges(predicted: Detections) -> EdgeDetections:
    if not isinstance(predicted, EdgeDetections):
        raise TypeError(
            "fgl and ddf need boxes with distributions of edges; name a site's losses without them (losses)"
        )
    return predicted
