"""The criterion: one loop over all places where detections are supervised."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.criteria.hungarian_matcher import HungarianMatcher, Paired, Targets, known_pairs
from models.criteria.losses import cardinality_error, class_error
from models.criteria.union import UnionOfMatchings
from models.structures import Detections, DetectorOutput
from util.config import nearest_name
from util.processes.distributed import mean_over_processes


@dataclass(frozen=True)
class Supervision:
    """How the detections of one site are supervised.

    Attributes:
        name: the log name of a loss in layer i, where {loss} stands for ce, bbox, ..., {layer} for "_i", or for
            nothing in the last layer, {aux} for "_aux_i" or nothing likewise, and {index} for i in every layer.
        labels: "classes", or "foreground": every object counts as class 0 (Deformable DETR's first stage).
        repeat: every object is wanted so many times (H-DETR's one-to-many branch).
        known: pairs are known, not matched (denoising).
        groups: whose queries the detections are of, where pairs are known; by default the groups of the site's name.
        losses: short names of those that the site has; all by default.
        weight: of the whole site in the total.
    """

    name: str = "loss_{loss}{layer}"
    labels: str = "classes"
    repeat: int = 1
    known: bool = False
    groups: str | None = None
    losses: tuple[str, ...] | None = None
    weight: float = 1.0

    def key(self, loss: str, layer: int, num_layers: int) -> str:
        """The log name of one loss."""
        last = layer == num_layers - 1
        return self.name.format(
            loss=loss, layer="" if last else f"_{layer}", aux="" if last else f"_aux_{layer}", index=layer
        )

    def has(self, loss: str) -> bool:
        """Whether the site is compared by a loss of this short name."""
        return self.losses is None or loss in self.losses

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
        joint: losses that read several sites at once, by short name: {site: Paired} of all sites that have them ->
            {site: values of its first layers}; each has a `weight`.
        union: makes one pairing out of those of all matched sites, for its `losses` to compare there.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        losses: dict[str, Callable],
        supervise: dict[str, Supervision],
        terms: dict[str, Callable] | None = None,
        metrics: dict[str, Callable] | None = None,
        joint: dict[str, Callable] | None = None,
        union: UnionOfMatchings | None = None,
    ):
        super().__init__()
        self.matcher, self.losses, self.supervise = matcher, losses, supervise
        self.terms, self.metrics, self.joint, self.union = terms or {}, metrics or {}, joint or {}, union
        self.pooling = union.losses if union else ()
        self._check()

    def _check(self):
        names = {"union": self.pooling} | {f"supervise.{s}": rule.losses or () for s, rule in self.supervise.items()}
        for where, chosen in names.items():
            for name in chosen:
                if name not in self.losses and name not in self.joint:
                    known = nearest_name(name, (*self.losses, *self.joint))
                    raise ValueError(f"criterion.{where}.losses: no loss is called '{name}'; {known}")
        repeated = [site for site, rule in self.supervise.items() if rule.repeat > 1 and not rule.known]
        if self.union and repeated:
            raise ValueError(f"criterion.union: '{repeated[0]}' wants objects repeated, which no other site can answer")

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
        own = self._paired(output, sites, objects)
        pooled = self._pooled(own, self.union) if self.union else own
        of_loss = {name: pooled if name in self.pooling else own for name in (*self.losses, *self.joint)}

        losses: dict[str, Tensor] = {}
        for site in sites:
            for name, loss in self.losses.items():
                if self.supervise[site].has(name):
                    given = of_loss[name][site]
                    values = loss(given.predicted, given.targets, given.pairs, given.num_boxes)
                    self._add(losses, site, name, values, loss.weight, given)
        for name, loss in self.joint.items():
            having = {site: of_loss[name][site] for site in sites if self.supervise[site].has(name)}
            for site, values in loss(having).items():
                self._add(losses, site, name, values, loss.weight, having[site])
        losses |= {name: term(output, objects) * term.weight for name, term in self.terms.items()}
        with torch.no_grad():
            answers = sites["matching"]
            metrics = {
                "class_error": class_error(answers, objects, own["matching"].pairs, output.answered),
                "cardinality_error": cardinality_error(answers, objects, output.answered),
            }
            for metric in self.metrics.values():
                metrics |= metric(output, objects)
        return losses, metrics

    def _add(self, losses: dict[str, Tensor], site: str, name: str, values: Tensor, weight: float, given: Paired):
        """Puts weighted values of a site's first layers to the others, under their log names."""
        rule, N = self.supervise[site], len(given.predicted.boxes)
        weighted = values * (weight * rule.weight)
        for layer, value in enumerate(weighted):
            key = rule.key(name, layer, N)
            if key in losses:
                raise ValueError(f"criterion.supervise.{site}.name: another site or layer has a loss '{key}', too")
            losses[key] = value

    def _number(self, count: int, device) -> Tensor:
        """How many boxes or pairs; in training the mean over processes."""
        number = torch.full((), float(count), device=device)
        if self.training:  # in evaluation, processes may have different numbers of batches
            number = mean_over_processes(number)
        return number

    def _paired(self, output: DetectorOutput, sites: dict[str, Detections], objects: Targets) -> dict[str, Paired]:
        """Every site and its own pairs; all that must be matched are matched together."""
        rules = {site: self.supervise[site] for site in sites}
        wanted = {site: rule.wanted(objects) for site, rule in rules.items()}
        matched = [site for site, rule in rules.items() if not rule.known]
        pairs = dict(zip(matched, self.matcher.match([(sites[s], wanted[s]) for s in matched]), strict=True))
        num_boxes = self._number(len(objects.labels), objects.boxes.device)
        found = {}
        for site, rule in rules.items():
            groups = [group for group in output.groups if group.name == (rule.groups or site)]
            if rule.known:
                pairs[site] = known_pairs(sites[site], wanted[site], groups)
            share = (num_boxes * rule.repeat).clamp(min=1) * (len(groups) if rule.known else 1)
            found[site] = Paired(sites[site], wanted[site], pairs[site], share)
        return found

    def _pooled(self, own: dict[str, Paired], union: UnionOfMatchings) -> dict[str, Paired]:
        """The same with one pairing for all matched sites."""
        matched = {site: paired for site, paired in own.items() if not self.supervise[site].known}
        sizes = {site: paired.predicted.boxes.shape[2] for site, paired in matched.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"criterion.union: sites have different numbers of queries: {sizes}")
        device = own["matching"].targets.boxes.device
        pairs = union([paired.pairs for paired in matched.values()], device)
        number = self._number(len(pairs), device).clamp(min=1)
        return own | {
            site: replace(paired, pairs=pairs.in_layers(len(paired.predicted.boxes)), num_boxes=number)
            for site, paired in matched.items()
        }
