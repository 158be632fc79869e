"""Losses that grade boxes by overlap or compare distributions of edges, and the pairing that sites have in common."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import box_iou

import models.criteria.criterion
from models.criteria.criterion import Criterion, Supervision
from models.criteria.distributions import Distillation, FineGrainedLocalization, between_bins
from models.criteria.hungarian_matcher import HungarianMatcher, Paired, Pairs, Targets
from models.criteria.losses import BoxGIoU, BoxL1, MatchabilityLoss, VarifocalLoss
from models.criteria.union import UnionOfMatchings
from models.layers.edge_distribution import bin_values, expected_distances, moved_edges
from models.structures import Detections, DetectorOutput, EdgeDetections, QueryGroup
from util.tensors.box_ops import cxcywh_to_xyxy

K, BINS, SCALE, REACH = 5, 33, 4.0, 0.5


def detections(N, B, Q, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    initial = (torch.rand(B, Q, 4, generator=generator) * 0.3 + 0.3).expand(N, -1, -1, -1)
    edges = torch.randn(N, B, Q, 4, BINS, generator=generator) * spread
    boxes = moved_edges(initial, expected_distances(edges, SCALE, REACH), SCALE)
    return EdgeDetections(torch.randn(N, B, Q, K, generator=generator), boxes, edges, initial)


def objects(*counts, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(0, K, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.3,
        }
        for count in counts
    ]


def matched(predicted, *counts, seed=1):
    targets = Targets.of(objects(*counts, seed=seed))
    (pairs,) = HungarianMatcher().match([(predicted, targets)])
    return Paired(predicted, targets, pairs, torch.tensor(3.0))


def compare(loss, paired):
    return loss(paired.predicted, paired.targets, paired.pairs, paired.num_boxes)


def pairs_of(paired, layer):
    """(image, query, target) of every pair of a layer, plain numbers, and its IoU."""
    targets = paired.targets
    for image, query, target in paired.pairs.host[:, layer].T.tolist():
        boxes = cxcywh_to_xyxy(torch.stack([paired.predicted.boxes[layer, image, query], targets.boxes[target]]))
        yield image, query, target, box_iou(boxes[:1], boxes[1:]).double().item()


# ------------------------------------------------------------------------------------------------- losses of scores


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
@pytest.mark.parametrize("name", ["varifocal", "matchability"])
def test_scores_are_graded_by_overlap_as_a_loop_over_entries_says(name, counts):
    loss = {"varifocal": VarifocalLoss(1.0), "matchability": MatchabilityLoss(1.0)}[name]
    paired = matched(detections(2, 2, 6), *counts)
    logits = paired.predicted.logits.requires_grad_()
    twin = logits.detach().double().requires_grad_()
    for layer in range(2):
        wanted, weight = torch.zeros(2, 6, K).double(), twin[layer].detach().sigmoid()
        weight = 0.75 * weight**2 if name == "varifocal" else weight**1.5
        for image, query, target, iou in pairs_of(paired, layer):
            entry = image, query, paired.targets.labels[target]
            wanted[entry] = iou if name == "varifocal" else iou**1.5
            weight[entry] = iou if name == "varifocal" else 1.0
        expected = F.binary_cross_entropy_with_logits(twin[layer], wanted, weight, reduction="sum") / 3
        torch.testing.assert_close(compare(loss, paired)[layer].double(), expected, rtol=1e-5, atol=1e-6)
        compare(loss, paired)[layer].backward()
        expected.backward()
    torch.testing.assert_close(logits.grad.double(), twin.grad, rtol=1e-4, atol=1e-6)


def test_a_box_turned_inside_out_covers_nothing():
    boxes = torch.tensor([[[[0.5, 0.5, -0.2, -0.2], [0.5, 0.5, 0.2, 0.2]]]])
    predicted = Detections(torch.zeros(1, 1, 2, K), boxes)
    targets = Targets.of([{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}])
    pairs = Pairs.of(np.array([0, 0]), np.array([[0, 1]]), np.array([[0, 0]]), "cpu")
    giou = BoxGIoU(1.0)(predicted, targets, pairs, torch.tensor(1.0))
    assert giou.item() == pytest.approx(1.0 + 0.0)  # IoU 0 within the hull of its own size, and IoU 1
    assert BoxL1(1.0)(predicted, targets, pairs, torch.tensor(1.0)).item() == pytest.approx(0.8)
    (matching,) = HungarianMatcher().match([(predicted, targets)])
    assert matching.query.tolist() == [[1]]


# ------------------------------------------------------------------------------------------------- losses of edges


@pytest.mark.parametrize("scale", [4.0, 8.0])
def test_a_distance_lies_between_its_bins(scale):
    values = bin_values(BINS, scale, REACH, "cpu")
    below, share = between_bins(values, BINS, scale, REACH)
    assert below.tolist() == [*range(BINS - 1), BINS - 2]
    assert share.tolist() == [*[0.0] * (BINS - 1), 1.0]
    middles = (values[1:] + values[:-1]) / 2
    below, share = between_bins(middles, BINS, scale, REACH)
    assert below.tolist() == list(range(BINS - 1))
    torch.testing.assert_close(share, torch.full_like(share, 0.5))
    outside = torch.tensor([-1e9, values[0] - 0.1, values[-1] + 0.1, 1e9])
    below, share = between_bins(outside, BINS, scale, REACH)
    assert below.tolist() == [0, 0, BINS - 2, BINS - 2]
    assert share.tolist() == [0, 0, 1, 1]


@given(st.floats(-1.5, 1.5))
def test_the_mean_of_two_bins_is_the_distance(distance):
    below, share = between_bins(torch.tensor(distance), BINS, SCALE, REACH)
    values = bin_values(BINS, SCALE, REACH, "cpu")
    assert (values[below] * (1 - share) + values[below + 1] * share).item() == pytest.approx(distance, abs=1e-5)


def test_localization_is_a_loop_over_edges():
    paired = matched(detections(2, 2, 6), 3, 1)
    values = bin_values(BINS, SCALE, REACH, "cpu").double().tolist()
    for layer, found in enumerate(compare(FineGrainedLocalization(0.15, SCALE, REACH), paired).tolist()):
        total = 0.0
        for image, query, target, iou in pairs_of(paired, layer):
            cx, cy, w, h = paired.predicted.initial[layer, image, query].double().tolist()
            x0, y0, x1, y1 = cxcywh_to_xyxy(paired.targets.boxes[target]).double().tolist()
            wanted = [(cx - x0) / w, (cy - y0) / h, (x1 - cx) / w, (y1 - cy) / h]
            surprise = -paired.predicted.edges[layer, image, query].double().log_softmax(-1)
            for edge, distance in enumerate(SCALE * part - SCALE / 2 for part in wanted):
                k = min(max(sum(value <= distance for value in values) - 1, 0), BINS - 2)
                right = min(max((distance - values[k]) / (values[k + 1] - values[k]), 0), 1)
                total += iou * ((1 - right) * surprise[edge, k] + right * surprise[edge, k + 1]).item()
        assert found == pytest.approx(total / 3, rel=1e-4)


def test_a_target_is_reached_by_its_own_distribution():
    """A distribution that is all in two bins, at the target's distance, costs its entropy, and moves the box there."""
    target = torch.tensor([[0.52, 0.47, 0.33, 0.41]])
    initial = torch.tensor([0.5, 0.5, 0.3, 0.4])[None, None, None]
    predicted = EdgeDetections(torch.zeros(1, 1, 1, K), target[None, None], torch.zeros(1, 1, 1, 4, BINS), initial)
    targets = Targets.of([{"labels": torch.tensor([0]), "boxes": target}])
    pairs = Pairs.of(np.array([0]), np.array([[0]]), np.array([[0]]), "cpu")
    predicted.edges.requires_grad_()
    (gradient,) = torch.autograd.grad(
        FineGrainedLocalization(1.0, SCALE, REACH)(predicted, targets, pairs, torch.tensor(1.0)), predicted.edges
    )
    wanted = 1 / BINS - gradient  # of a cross entropy with uniform predictions
    boxes = moved_edges(initial, wanted @ bin_values(BINS, SCALE, REACH, "cpu"), SCALE)
    torch.testing.assert_close(boxes[0, 0], target, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counts", [(3, 1), (0, 0)])
def test_distillation_is_a_loop_over_layers(counts):
    paired = matched(detections(3, 2, 6), *counts)
    predicted, T = paired.predicted, 5.0
    values = Distillation(1.5, T)({"matching": paired})["matching"]
    assert len(values) == 2
    teacher = (predicted.edges[-1].double() / T).softmax(-1)
    for layer, found in enumerate(values.tolist()):
        learned = (predicted.edges[layer].double() / T).log_softmax(-1)
        divergence = F.kl_div(learned, teacher, reduction="none").sum(-1) * T**2  # (B, Q, 4)
        weight, is_paired = predicted.logits[-1].double().sigmoid().amax(-1), torch.zeros(2, 6, dtype=torch.bool)
        for image, query, _, iou in pairs_of(paired, layer):
            weight[image, query], is_paired[image, query] = iou, True
        divergence = divergence * weight[..., None]
        roots = [(part.sum() * 4).sqrt() for part in (is_paired, ~is_paired)]
        means = [divergence[part].mean() if part.any() else 0.0 for part in (is_paired, ~is_paired)]
        expected = sum(root * mean for root, mean in zip(roots, means, strict=True)) / sum(roots)
        assert found == pytest.approx(expected.item(), rel=1e-5)


def test_distillation_of_what_is_equal_is_zero_and_the_teacher_learns_nothing():
    layers = detections(3, 2, 6)
    alike = EdgeDetections(*(part[-1:].expand(3, *[-1] * (part.dim() - 1)) for part in vars(layers).values()))
    assert Distillation(1.0)({"matching": matched(alike, 3, 1)})["matching"].tolist() == [0.0, 0.0]
    layers.edges.requires_grad_()
    Distillation(1.0)({"matching": matched(layers, 3, 1)})["matching"].sum().backward()
    assert layers.edges.grad[:2].abs().amin((0, 1, 3, 4)).gt(0).all()
    assert layers.edges.grad[2].eq(0).all()


def test_other_sites_are_balanced_as_the_first():
    matching, denoising = matched(detections(3, 2, 6), 3, 1), matched(detections(3, 2, 4, seed=2), 3, 1)
    loss = Distillation(1.0)
    found = loss({"denoising": denoising, "matching": matching})["denoising"]
    ((mean, others),) = [loss._means(denoising)]
    torch.testing.assert_close(found, (mean * 4**0.5 + others * 8**0.5) / (4**0.5 + 8**0.5))
    with pytest.raises(KeyError, match="balanced by the pairs of 'matching'"):
        loss({"denoising": denoising})


def test_edges_are_asked_for_by_name():
    paired = matched(detections(2, 1, 4), 2)
    plain = Detections(paired.predicted.logits, paired.predicted.boxes)
    with pytest.raises(TypeError, match="need boxes with distributions of edges"):
        FineGrainedLocalization(1.0, SCALE)(plain, paired.targets, paired.pairs, paired.num_boxes)


# ------------------------------------------------------------------------------------------------- the union


def pairs_from(layers, starts):
    """Pairs of layers that each hold ([queries], [targets]) per image."""
    image = np.concatenate([[i] * len(queries) for i, (queries, _) in enumerate(layers[0])]).astype(int)
    query = np.stack([np.concatenate([queries for queries, _ in layer]) for layer in layers])
    target = np.stack([np.concatenate([np.add(t, starts[i]) for i, (_, t) in enumerate(layer)]) for layer in layers])
    return Pairs.of(image, query, target, "cpu")


def test_the_union_is_the_recorded_one():
    """Matchings and union of D-FINE's code, dfine_hgnetv2_s_spread: four layers, the initial boxes, the proposals."""
    layers = [
        [([91, 92, 100], [2, 1, 0]), ([50, 72, 92, 100], [0, 3, 2, 1])],
        [([90, 100, 101], [2, 0, 1]), ([93, 100, 136, 245], [3, 1, 2, 0])],
        [([97, 100, 101], [2, 0, 1]), ([93, 100, 101, 176], [3, 1, 2, 0])],
        [([97, 100, 101], [2, 0, 1]), ([100, 136, 176, 245], [1, 2, 0, 3])],
        [([51, 119, 268], [2, 0, 1]), ([69, 182, 214, 279], [3, 0, 1, 2])],
    ]
    recorded = [
        ([100, 101, 97, 51, 90, 91, 92, 119, 268], [0, 1, 2, 2, 2, 2, 1, 0, 1]),
        ([100, 93, 136, 176, 50, 69, 72, 92, 101, 182, 214, 245, 279], [1, 3, 2, 0, 0, 3, 3, 2, 2, 0, 1, 0, 2]),
    ]
    matchings = [pairs_from(layers[:3], (0, 3)), pairs_from(layers[3:4], (0, 3)), pairs_from(layers[4:], (0, 3))]
    union = UnionOfMatchings(())(matchings, "cpu")
    for image, (queries, targets) in enumerate(recorded):
        own = union.image == image
        found = dict(zip(union.query[0, own].tolist(), (union.target[0, own] - 3 * image).tolist(), strict=True))
        assert found == dict(zip(queries, targets, strict=True))


@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=40)
def test_a_query_keeps_the_target_that_most_layers_gave_it(first, second, queries, seed):
    targets = Targets.of(objects(first, second, seed=seed))
    sites = [(detections(N, 2, queries, seed + N), targets) for N in (3, 1)]
    matchings = HungarianMatcher().match(sites)
    union = UnionOfMatchings(())(matchings, "cpu")
    count = Counter()
    for pairs in matchings:
        for query, target in zip(pairs.query.tolist(), pairs.target.tolist(), strict=True):
            count.update(zip(pairs.image.tolist(), query, target, strict=True))
    kept = {}
    for image, query, target in sorted(count, key=lambda pair: (-count[pair], pair)):
        kept.setdefault((image, query), target)
    found = zip(union.image.tolist(), union.query[0].tolist(), strict=True)
    assert dict(zip(found, union.target[0].tolist(), strict=True)) == kept
    assert len(union) == len(kept)


# ------------------------------------------------------------------------------------------------- the criterion


SOME = ("vfl", "bbox", "giou")


def criterion(**changes):
    parts = {
        "losses": {
            "vfl": VarifocalLoss(1.0),
            "bbox": BoxL1(5.0),
            "giou": BoxGIoU(2.0),
            "fgl": FineGrainedLocalization(0.15, SCALE, REACH),
        },
        "supervise": {
            "matching": Supervision("loss_{loss}{aux}"),
            "initial": Supervision("loss_{loss}_pre", losses=SOME),
            "proposals": Supervision("loss_{loss}_enc_{index}", losses=SOME),
            "denoising": Supervision("loss_{loss}_dn_{index}", known=True),
            "initial_denoising": Supervision("loss_{loss}_dn_pre", known=True, groups="denoising", losses=SOME),
        },
        "joint": {"ddf": Distillation(1.5)},
        "union": UnionOfMatchings(("bbox", "giou", "fgl", "ddf")),
    }
    return Criterion(HungarianMatcher(), **(parts | changes))


def output(N=3, Q=6, spread=1.0):
    """Two groups of four noised queries, then the matching ones."""
    groups = (*[QueryGroup("denoising", 4, True)] * 2, QueryGroup("matching", Q))
    seen = {"initial": Q, "proposals": Q, "initial_denoising": 8}
    first = {site: detections(1, 2, size, seed) for seed, (site, size) in enumerate(seen.items())}
    first = {site: Detections(found.logits, found.boxes) for site, found in first.items()}
    return DetectorOutput(detections(N, 2, 8 + Q, 5, spread), groups, first)


def test_every_site_has_its_losses_under_the_papers_names():
    losses, _ = criterion()(output(), objects(2, 1))
    everywhere = ("", "_aux_0", "_aux_1", "_pre", "_enc_0", "_dn_0", "_dn_1", "_dn_2", "_dn_pre")
    names = {f"loss_{name}{suffix}" for name in SOME for suffix in everywhere}
    names |= {f"loss_fgl{suffix}" for suffix in ("", "_aux_0", "_aux_1", "_dn_0", "_dn_1", "_dn_2")}
    names |= {f"loss_ddf{suffix}" for suffix in ("_aux_0", "_aux_1", "_dn_0", "_dn_1")}
    assert set(losses) == names
    assert all(value.isfinite() for value in losses.values())


def test_the_union_is_compared_where_sites_are_matched():
    found, targets = output(), objects(2, 1)
    sites, wanted = found.sites(), Targets.of(targets)
    matchings = dict(
        zip(
            ("matching", "initial", "proposals"),
            HungarianMatcher().match([(sites[site], wanted) for site in ("matching", "initial", "proposals")]),
            strict=True,
        )
    )
    union = UnionOfMatchings(())(list(matchings.values()), "cpu")
    losses, _ = criterion()(found, targets)
    own = compare(VarifocalLoss(1.0), Paired(sites["initial"], wanted, matchings["initial"], torch.tensor(3.0)))
    assert losses["loss_vfl_pre"] == own
    number = torch.tensor(float(len(union)))
    pooled = compare(BoxL1(1.0), Paired(sites["proposals"], wanted, union, number))
    assert losses["loss_bbox_enc_0"] == pooled * 5
    without, _ = criterion(union=None)(found, targets)
    assert without["loss_bbox_enc_0"] != losses["loss_bbox_enc_0"]
    assert all(losses[name] == without[name] for name in losses if "_dn" in name and "ddf" not in name)


def test_pooled_pairs_are_counted_over_processes_and_are_at_least_one(monkeypatch):
    targets = objects(1, 0)
    alone, _ = criterion().eval()(output(), targets)
    monkeypatch.setattr(models.criteria.criterion, "mean_over_processes", lambda number: number / 2)
    together, _ = criterion().train()(output(), targets)
    assert together["loss_vfl"] == alone["loss_vfl"]  # of one object, half a one is not fewer
    pairs = HungarianMatcher().match(
        [(output().sites()[site], Targets.of(targets)) for site in ("matching", "initial", "proposals")]
    )
    number = len(UnionOfMatchings(())(pairs, "cpu"))
    assert number > 1
    torch.testing.assert_close(together["loss_bbox"], alone["loss_bbox"] * number / max(number / 2, 1))


def test_no_objects_leave_finite_losses_and_all_gradients():
    found = output()
    for part in (found.decoder.logits, found.decoder.edges):
        part.requires_grad_()
    losses, _ = criterion()(found, objects(0, 0))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert found.decoder.logits.grad.isfinite().all()
    assert found.decoder.edges.grad.isfinite().all()
    assert losses["loss_fgl"] == losses["loss_bbox"] == 0 != losses["loss_ddf_aux_0"]


@pytest.mark.parametrize("part", ["logits", "edges", "boxes"])
def test_numbers_that_are_not_finite_reach_the_loss(part):
    """The papers' code makes zeros of them; here the step is skipped, and says why."""
    found = output()
    getattr(found.decoder, part)[1, 0, 8:] = float("nan")
    losses, _ = criterion()(found, objects(2, 1))
    assert not sum(losses.values()).isfinite()


def test_half_precision_is_compared_in_float32():
    found = output(spread=8.0)
    full, _ = criterion()(found, objects(2, 1))
    half = EdgeDetections(
        *(getattr(found.decoder, name) for name in ("logits", "boxes")),
        found.decoder.edges.half(),
        found.decoder.initial,
    )
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = criterion()(DetectorOutput(half, found.groups, found.seen), objects(2, 1))
    assert all(value.dtype == torch.float32 for value in losses.values())
    torch.testing.assert_close(losses["loss_ddf_aux_0"], full["loss_ddf_aux_0"], rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"supervise": {"matching": Supervision(losses=("vlf",))}}, r"supervise\.matching\.losses: .*'vlf'.*vfl"),
        ({"union": UnionOfMatchings(("boxes",))}, r"union\.losses: .*'boxes'"),
        ({"supervise": {"matching": Supervision(), "many": Supervision(repeat=6)}}, r"union: 'many' wants"),
    ],
)
def test_a_criterion_that_cannot_be_is_refused_at_once(changes, said):
    with pytest.raises(ValueError, match=said):
        criterion(**changes)


def test_sites_that_cannot_be_pooled_or_told_apart_are_named():
    found = output()
    few = DetectorOutput(found.decoder, found.groups, found.seen | {"initial": found.seen["initial"][:, :, :5]})
    with pytest.raises(ValueError, match=r"different numbers of queries: .*'initial': 5"):
        criterion()(few, objects(2, 1))
    rules = criterion().supervise | {"initial": Supervision("loss_{loss}_aux_1", losses=SOME)}
    with pytest.raises(
        ValueError, match=r"supervise\.initial\.name: another site or layer has a loss 'loss_vfl_aux_1'"
    ):
        criterion(supervise=rules)(found, objects(2, 1))
