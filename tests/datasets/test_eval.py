"""COCO scores: known answers, every image once, and the two implementations of COCO's evaluation."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import torch

import datasets.coco_eval
from datasets.annotations import read_annotations
from datasets.categories import Categories
from datasets.coco_eval import NUMBERS, CocoEvaluator, detections_as_coco
from datasets.shapes import make_shapes


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=1, val=12)
    return read_annotations(root / "annotations/instances_val2017.json")


def ground_truth(annotations, shift=0.0, score=0.9):
    """Detections at the true boxes, moved by a share of their size."""
    results, targets = [], []
    for index in range(len(annotations)):
        rows = annotations.objects(index)
        boxes = torch.from_numpy(annotations.boxes[rows]).clone()
        boxes[:, 0] += shift * boxes[:, 2]
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.from_numpy(annotations.category_ids[rows] - 1)
        results.append({"boxes": boxes, "labels": labels, "scores": torch.full((len(boxes),), score)})
        targets.append({"image_id": torch.tensor(int(annotations.image_ids[index]))})
    return results, targets


def scored(annotations, results, targets):
    evaluator = CocoEvaluator(annotations)
    evaluator.update(results, targets)
    return evaluator.evaluate(evaluator.detections())


def test_perfect_detections(annotations):
    scores = scored(annotations, *ground_truth(annotations))
    assert scores.numbers["AP"] == pytest.approx(1.0)
    assert scores.numbers["AR100"] == pytest.approx(1.0)
    assert all(ap == pytest.approx(1.0) for ap, _ in scores.classes.values() if ap >= 0)
    assert scores.images == 12
    assert "AP50" in scores.table()


def test_moved_detections_count_at_low_thresholds_only(annotations):
    scores = scored(annotations, *ground_truth(annotations, shift=0.25))  # IoU 0.6
    assert scores.numbers["AP50"] == pytest.approx(1.0)
    assert scores.numbers["AP75"] == pytest.approx(0.0)
    assert scores.numbers["AP"] == pytest.approx(0.3, abs=0.02)


def test_no_detections(annotations):
    scores = scored(annotations, [], [])
    assert scores.numbers["AP"] == 0
    assert set(scores.numbers) == set(NUMBERS)
    assert len(scores.classes) == 5


def with_objects(annotations, kept):
    """The annotations with some of their objects alone."""
    counts = [int(kept[annotations.objects(index)].sum()) for index in range(len(annotations))]
    first = np.concatenate([[0], np.cumsum(counts)]).astype(annotations.first.dtype)
    columns = {name: getattr(annotations, name)[kept] for name in ("boxes", "category_ids", "areas", "crowd")}
    return dataclasses.replace(annotations, first=first, **columns)


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def implementation(request, monkeypatch):
    """Either implementation of COCO's evaluation."""
    if not importlib.util.find_spec(request.param):
        pytest.skip(f"{request.param} is not installed")
    if request.param == "pycocotools":
        monkeypatch.setattr(datasets.coco_eval.importlib.util, "find_spec", lambda name: None)
    return request.param


@pytest.mark.parametrize("detected", [True, False])
def test_where_nothing_is_to_be_found_there_is_no_number(annotations, implementation, detected):
    results, targets = ground_truth(annotations) if detected else ([], [])
    small = annotations.areas < 32**2
    assert small.any()
    assert not small.all()
    none = scored(with_objects(annotations, np.zeros_like(small)), results, targets)
    assert set(none.numbers.values()) == {-1.0}
    assert set(none.classes.values()) == {(-1.0, -1.0)}
    assert "-1.000" in none.table(none.numbers)
    numbers = scored(with_objects(annotations, ~small), results, targets).numbers
    absent = {"s"} | ({"l"} if (annotations.areas < 96**2).all() else set())
    assert {name for name, value in numbers.items() if value == -1} == {
        f"{n}{size}" for size in absent for n in ("AP", "AR")
    }
    assert (numbers["AP"] > 0) == detected


def test_categories_come_back_as_ids(annotations):
    results, targets = ground_truth(annotations)
    evaluator = CocoEvaluator(annotations)
    evaluator.update(results, targets)
    rows = detections_as_coco(annotations, evaluator.detections())
    assert {row["category_id"] for row in rows} == set(annotations.category_ids.tolist())
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == len(annotations.boxes)


def test_detections_of_no_category_are_left_out(annotations):
    """COCO's 91 slots have gaps, in which a classifier may find something all the same."""
    listed = annotations.categories
    gap = dataclasses.replace(annotations, categories=Categories((None, *listed.ids), ("", *listed.names)))
    results, targets = ground_truth(annotations)
    expected = CocoEvaluator(annotations)
    expected.update(results, targets)
    found = CocoEvaluator(gap)
    found.update([{**result, "labels": result["labels"] + 1} for result in results], targets)
    found.update([{**result, "labels": torch.zeros_like(result["labels"])} for result in results], targets)
    rows, other = found.detections(), expected.detections()
    assert detections_as_coco(gap, rows) == detections_as_coco(annotations, other)
    assert (rows[:, 6] == other[:, 6] + 1).all()


@pytest.mark.skipif(not importlib.util.find_spec("faster_coco_eval"), reason="faster-coco-eval is not installed")
def test_both_implementations_agree_to_the_last_digit(annotations, monkeypatch):
    results, targets = ground_truth(annotations)
    generator = torch.Generator().manual_seed(0)
    for result in results:
        n = len(result["boxes"])
        result["boxes"] += torch.randn(n, 4, generator=generator) * 4
        result["scores"] = torch.rand(n, generator=generator)
        result["labels"] = torch.where(torch.rand(n, generator=generator) < 0.2, 0, result["labels"])
    fast = scored(annotations, results, targets)
    monkeypatch.setattr(datasets.coco_eval.importlib.util, "find_spec", lambda name: None)
    plain = scored(annotations, results, targets)
    assert datasets.coco_eval.coco_api()[0].__module__.startswith("pycocotools")
    assert fast == plain


def test_crowds_are_neither_missed_nor_wrong(annotations):
    changed = annotations.crowd.copy()
    changed[:5] = True
    crowded = type(annotations)(**{**vars(annotations), "crowd": changed})
    results, targets = ground_truth(annotations)
    assert scored(crowded, results, targets).numbers["AP"] == pytest.approx(1.0)
    nothing_there = [{key: value[:0] for key, value in results[0].items()}] + results[1:]
    if np.all(changed[crowded.objects(0)]):
        assert scored(crowded, nothing_there, targets).numbers["AP"] == pytest.approx(1.0)
