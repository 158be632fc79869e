"""The criterion: one loop over all places where detections are supervised."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.criteria.hungarian_matcher import HungarianMatcher, Pairs, Targets, known_pairs
from models.criteria.losses import cardinality_error, class_error
from models.structures import DetectorOutput
from util.config import nearest_name
from util.processes.distributed import mean_over_processes


@dataclass(frozen=True)
class Supervision:
    """How the detections of one site are supervised.

    Attributes:
        name: the log name of a loss in layer i, where {loss} stands for ce, bbox, ..., {layer} for "_i", or for
            nothing in the last layer, and {index} for i in every layer.
        labels: "classes", or "foreground": every object counts as class 0 (Deformable DETR's first stage).
        repeat: every object is wanted so many times (H-DETR's one-to-many branch).
        known: pairs are known, not matched (denoising).
        weight: of the whole site in the total.
    """

    name: str = "loss_{loss}{layer}"
    labels: str = "classes"
    repeat: int = 1
    known: bool = False
    weight: float = 1.0

    def key(self, loss: str, layer: int, num_layers: int) -> str:
        """The log name of one loss."""
        return self.name.format(loss=loss, layer="" if layer == num_layers - 1 else f"_{layer}", index=layer)

    def wanted(self, targets: Targets) -> Targets:
        """What this site should find."""
        if self.labels == "foreground":
            targets = Targets(torch.zeros_like(targets.labels), targets.boxes, targets.counts)
        return targets.repeated(self.repeat)


class Criterion(nn.Module):
    """Total loss of a detector's output.

    Args:
        matcher: pairs predictions and targets.
        losses: by short name (ce, bbox, giou); each has a `weight`.
        supervise: by site; every site of an output must be here.
        terms: losses that need more than detections, by log name: (output, targets) -> scalar; each has a `weight`.
        metrics: further numbers for the log: (output, targets) -> {log name: scalar}.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        losses: dict[str, Callable],
        supervise: dict[str, Supervision],
        terms: dict[str, Callable] | None = None,
        metrics: dict[str, Callable] | None = None,
    ):
        super().__init__()
        self.matcher, self.losses, self.supervise = matcher, losses, supervise
        self.terms, self.metrics = terms or {}, metrics or {}

    def forward(self, output: DetectorOutput, targets: list[dict]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compares an output with what should have been found. Computes in float32 under autocast too.

        Args:
            output: from a detector, with gradients enabled or given targets.
            targets: per image `labels` (T,) and `boxes` (T, 4) as cx, cy, w, h in (0, 1), on the output's device.

        Returns:
            losses: weighted, under their official log names; the loss to minimise is sum(losses.values()).
            metrics: for the log alone: class_error, cardinality_error, and those of the config.
        """
        with torch.autocast(output.decoder.boxes.device.type, enabled=False):
            return self._compare(output, Targets.of(targets))

    def _compare(self, output: DetectorOutput, objects: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        sites = output.sites()
        for site in sites:
            if site not in self.supervise:
                known = nearest_name(site, self.supervise)
                raise KeyError(f"the detector wants '{site}' supervised, which criterion.supervise lacks; {known}")
        wanted = {site: self.supervise[site].wanted(objects) for site in sites}
        pairs = self._pairs(output, sites, wanted)
        num_boxes = torch.full((), float(len(objects.labels)), device=objects.boxes.device)
        if self.training:  # in evaluation, processes may have different numbers of batches
            num_boxes = mean_over_processes(num_boxes)

        losses = {}
        for site, predicted in sites.items():
            rule = self.supervise[site]
            groups = sum(group.name == site for group in output.groups) if rule.known else 1
            share = (num_boxes * rule.repeat).clamp(min=1) * groups
            for name, loss in self.losses.items():
                values = loss(predicted, wanted[site], pairs[site], share) * (loss.weight * rule.weight)
                losses |= {rule.key(name, i, len(values)): value for i, value in enumerate(values)}
        losses |= {name: term(output, objects) * term.weight for name, term in self.terms.items()}
        with torch.no_grad():
            metrics = {
                "class_error": class_error(sites["matching"], objects, pairs["matching"]),
                "cardinality_error": cardinality_error(sites["matching"], objects),
            }
            for metric in self.metrics.values():
                metrics |= metric(output, objects)
        return losses, metrics

    def _pairs(self, output: DetectorOutput, sites: dict, wanted: dict[str, Targets]) -> dict[str, Pairs]:
        """Pairs of every site; all that must be matched are matched together."""
        known = [site for site in sites if self.supervise[site].known]
        matched = [site for site in sites if site not in known]
        pairs = dict(zip(matched, self.matcher.match([(sites[s], wanted[s]) for s in matched]), strict=True))
        for site in known:
            groups = [group for group in output.groups if group.name == site]
            pairs[site] = known_pairs(sites[site], wanted[site], groups)
        return pairs
