"""Matching and losses: properties, edge cases, and two processes against one."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

import models.criteria.criterion
from models.criteria.criterion import Criterion, Supervision
from models.criteria.hungarian_matcher import HungarianMatcher, SoftmaxHungarianMatcher, Targets, known_pairs
from models.criteria.losses import BoxGIoU, BoxL1, FocalLoss, SoftmaxCrossEntropy
from models.structures import Detections, DetectorOutput, QueryGroup
from util.tensors.box_ops import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh

K = 5


def detections(N, B, Q, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(N, B, Q, 4, generator=generator) * 0.4 + 0.3
    return Detections(torch.randn(N, B, Q, K, generator=generator), boxes)


def objects(*counts, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(0, K, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.3,
        }
        for count in counts
    ]


def criterion(**supervise):
    rules = {"matching": Supervision()} | supervise
    losses = {"ce": FocalLoss(2.0), "bbox": BoxL1(5.0), "giou": BoxGIoU(2.0)}
    return Criterion(HungarianMatcher(), losses, rules)


def output(predicted, *groups, **seen):
    groups = groups or (QueryGroup("matching", predicted.boxes.shape[2]),)
    return DetectorOutput(predicted, groups, seen)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=20)
def test_paired_rows_and_their_gradients_are_those_of_indexing(first, second, queries, seed):
    targets, predicted = Targets.of(objects(first, second, seed=seed)), detections(2, 2, queries, seed)
    (pairs,) = HungarianMatcher().match([(predicted, targets)])
    for values in (predicted.logits, predicted.boxes, predicted.boxes[..., 0]):
        found, wanted = values.clone().requires_grad_(), values.clone().requires_grad_()
        rows = pairs.of_predictions(found)
        indexed = wanted[torch.arange(2)[:, None], pairs.image, pairs.query]
        assert rows.equal(indexed)
        for answer in (rows, indexed):
            (answer * answer.detach()).sum().backward()
        assert found.grad.equal(wanted.grad)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=40)
def test_the_assignment_is_the_cheapest(first, second, queries, seed):
    matcher, targets = HungarianMatcher(), Targets.of(objects(first, second, seed=seed))
    predicted = detections(2, 2, queries, seed)
    (pairs,) = matcher.match([(predicted, targets)])
    assert pairs.query.shape == pairs.target.shape == (2, min(first, queries) + min(second, queries))
    if not first + second:
        return
    cost = matcher.cost(predicted, targets)
    start = 0
    for image, count in enumerate(targets.counts):
        own = (pairs.image == image).nonzero()[:, 0]
        for layer in range(2):
            rows, columns = pairs.query[layer, own], pairs.target[layer, own] - start
            paid = cost[layer, image, rows, columns].sum()
            n = min(count, queries)
            cheapest = min(
                sum(cost[layer, image, q, t] for q, t in zip(qs, ts, strict=True))
                for qs in itertools.permutations(range(queries), n)
                for ts in itertools.combinations(range(count), n)
            )
            torch.testing.assert_close(paid, torch.as_tensor(cheapest, dtype=torch.float32))
            assert len(set(rows.tolist())) == len(rows)
        start += count


def test_images_and_layers_match_alone_as_together():
    matcher, predicted, targets = HungarianMatcher(), detections(3, 2, 6), objects(3, 2)
    (together,) = matcher.match([(predicted, Targets.of(targets))])
    for layer, image in itertools.product(range(3), range(2)):
        (alone,) = matcher.match(
            [(predicted[layer : layer + 1, image : image + 1], Targets.of(targets[image : image + 1]))]
        )
        own = together.image == image
        assert alone.query[0].tolist() == together.query[layer, own].tolist()


def test_losses_are_those_of_the_papers():
    predicted, targets = detections(1, 2, 6), Targets.of(objects(3, 2))
    (pairs,) = HungarianMatcher().match([(predicted, targets)])
    n = torch.tensor(5.0)
    wanted = torch.zeros(1, 2, 6, K)
    wanted[0, pairs.image, pairs.query[0], targets.labels[pairs.target[0]]] = 1
    focal = sigmoid_focal_loss(predicted.logits, wanted, alpha=0.25, gamma=2, reduction="sum") / n
    torch.testing.assert_close(FocalLoss(1.0)(predicted, targets, pairs, n)[0], focal)
    boxes, ground_truth = predicted.boxes[0, pairs.image, pairs.query[0]], targets.boxes[pairs.target[0]]
    torch.testing.assert_close(
        BoxL1(1.0)(predicted, targets, pairs, n)[0], F.l1_loss(boxes, ground_truth, reduction="sum") / n
    )
    iou = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(ground_truth)).diagonal()
    torch.testing.assert_close(BoxGIoU(1.0)(predicted, targets, pairs, n)[0], (1 - iou).sum() / n)


def test_softmax_costs_are_those_of_detr():
    predicted, targets = detections(2, 2, 6), Targets.of(objects(3, 2))
    predicted = Detections(torch.randn(2, 2, 6, K + 1), predicted.boxes)
    matcher = SoftmaxHungarianMatcher(ce=1.0, bbox=0.0, giou=0.0)
    cost = matcher.cost(predicted, targets)
    torch.testing.assert_close(cost[1, 1, :, 0], -predicted.logits[1, 1].softmax(-1)[:, targets.labels[3]])
    (pairs,) = matcher.match([(predicted, targets)])
    losses = SoftmaxCrossEntropy(1.0, no_object=0.1)(predicted, targets, pairs, torch.tensor(5.0))
    for layer in range(2):
        labels = torch.full((2, 6), K)
        labels[pairs.image, pairs.query[layer]] = targets.labels[pairs.target[layer]]
        weight = torch.tensor([1.0] * K + [0.1])
        expected = F.cross_entropy(predicted.logits[layer].flatten(0, 1), labels.flatten(), weight)
        torch.testing.assert_close(losses[layer], expected)


@given(st.lists(st.integers(1, 99).map(lambda n: n / 100), min_size=8, max_size=8))
def test_boxes_there_and_back_and_iou_bounds(numbers):
    a, b = torch.tensor(numbers).view(2, 4)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(a)), a)
    iou = generalized_iou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))
    assert -1 <= iou <= 1 + 1e-6
    torch.testing.assert_close(iou, generalized_iou(cxcywh_to_xyxy(b), cxcywh_to_xyxy(a)))
    torch.testing.assert_close(
        generalized_iou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(a)), torch.tensor(1.0), atol=1e-4, rtol=0
    )


def test_overlap_of_boxes_without_area_is_finite_with_eps():
    point = torch.tensor([0.3, 0.4, 0.3, 0.4])
    assert generalized_iou(point, point, eps=1e-6) == 0


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (9, 1)])
def test_images_without_objects_or_with_too_many(counts):
    predicted = detections(2, 2, 6)
    predicted.logits.requires_grad_()
    losses, metrics = criterion()(output(predicted), objects(*counts))
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    assert predicted.logits.grad.abs().sum() > 0
    if not sum(counts):
        assert metrics["class_error"] == 100
    assert all(metric.isfinite() for metric in metrics.values())


def test_numbers_that_are_not_finite_reach_the_loss():
    predicted = detections(1, 2, 6)
    predicted.boxes[0, 0, 2] = float("nan")
    predicted.logits[0, 1, 1] = float("inf")
    losses, _ = criterion()(output(predicted), objects(2, 2))
    assert not sum(losses.values()).isfinite()


def test_names_of_losses():
    layers, groups = detections(3, 1, 10), (QueryGroup("denoising", 4, True), QueryGroup("matching", 6))
    c = criterion(
        denoising=Supervision("loss_{loss}_dn{layer}", known=True),
        proposals=Supervision("loss_{loss}_enc", labels="foreground"),
    )
    losses, _ = c(output(layers, *groups, proposals=detections(1, 1, 20)), objects(2))
    assert set(losses) == {
        f"loss_{name}{suffix}"
        for name in ("ce", "bbox", "giou")
        for suffix in ("", "_0", "_1", "_dn", "_dn_0", "_dn_1", "_enc")
    }
    with pytest.raises(KeyError, match=r"wants 'proposals' supervised.*known here: matching"):
        criterion()(output(layers, *groups[1:], proposals=layers), objects(2))


def test_foreground_labels_and_repeats():
    targets = Targets.of(objects(2, 1))
    assert Supervision(labels="foreground").wanted(targets).labels.tolist() == [0, 0, 0]
    repeated = Supervision(repeat=2).wanted(targets)
    assert repeated.counts == (4, 2)
    assert repeated.labels.tolist() == targets.labels[[0, 1, 0, 1, 2, 2]].tolist()


def test_denoising_pairs_are_known():
    groups = [QueryGroup("denoising", 4, True)] * 2  # two objects at most: two positives and two negatives a group
    pairs = known_pairs(detections(1, 2, 8), Targets.of(objects(2, 1)), groups)
    assert pairs.image.tolist() == [0, 0, 1] * 2
    assert pairs.query[0].tolist() == [0, 1, 0, 4, 5, 4]
    assert pairs.target[0].tolist() == [0, 1, 2] * 2


def test_half_an_object_counts_as_one_in_every_group(monkeypatch):
    """One object in two processes: the mean is below 1, by which no loss may be multiplied."""
    monkeypatch.setattr(models.criteria.criterion, "mean_over_processes", lambda number: number / 2)
    groups = [QueryGroup("denoising", 2, True)] * 3 + [QueryGroup("matching", 6)]
    c = criterion(denoising=Supervision("loss_{loss}_dn{layer}", known=True))
    together, _ = c.train()(output(detections(1, 1, 12), *groups), objects(1))
    alone, _ = c.eval()(output(detections(1, 1, 12), *groups), objects(1))
    assert together == alone


def test_half_precision_outputs_are_compared_in_float32():
    predicted = detections(1, 1, 6)
    half = Detections(predicted.logits.bfloat16(), predicted.boxes)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = criterion()(output(half), objects(3))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
