"""What must hold for any input: merging of configs, arithmetic of boxes, transforms, matching, samplers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_area, box_convert, generalized_box_iou

from datasets.samplers import EvalSampler, TrainSampler
from datasets.transforms import Sample, TrainTransform
from models.criteria.hungarian_matcher import HungarianMatcher, Targets
from models.structures import Detections
from util.config import ConfigError, dump_config, load_config, merge_configs, parse_value
from util.tensors.box_ops import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh

# ------------------------------------------------------------------------------------------------------------ configs

leaf = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("ab'\\ é", max_size=3)
plain = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["a", "b", "c", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)
sections = st.recursive(  # upper-case keys hold sections, lower-case keys values, as in files that belong together
    st.dictionaries(st.sampled_from("ab"), leaf, max_size=2),
    lambda inner: st.tuples(inner, st.dictionaries(st.sampled_from("AB"), inner, max_size=2)).map(
        lambda pair: pair[0] | pair[1]
    ),
    max_leaves=5,
)
trees = st.dictionaries(st.sampled_from("abc"), plain, max_size=3)


@given(trees, trees)
def test_merging_twice_is_merging_once(base, child):
    merged = merge_configs(base, child)
    assert merge_configs(merged, child) == merged
    assert merge_configs(merged, {}) == merge_configs({}, merged) == merged
    assert list(merged) == [*base, *(key for key in child if key not in base)]


@given(sections, sections, sections)
def test_bases_may_be_merged_in_any_grouping(a, b, c):
    assert merge_configs(merge_configs(a, b), c) == merge_configs(a, merge_configs(b, c))


@given(sections, sections, st.sampled_from(["X", "Y"]))
def test_another_type_replaces_and_the_same_one_merges(base, child, kind):
    base, child = {"type": "X", **base}, {"type": kind, **child}
    merged = merge_configs({"part": base}, {"part": child})["part"]
    assert merged == (merge_configs(base, child) if kind == "X" else child)
    assert set(merged) == (set(base) | set(child) if kind == "X" else set(child))


@given(st.dictionaries(st.sampled_from(["x", "y"]), plain, max_size=2))
def test_what_is_written_is_read_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("config") / "c.py"
    path.write_text("\n".join(f"{name} = {value!r}" for name, value in values.items()).replace("inf", "1e999"))
    cfg = load_config(path)
    assert cfg.to_dict() == values
    path.write_text(dump_config(cfg).replace("inf", "1e999"))
    assert load_config(path).to_dict() == values


@given(plain)
def test_a_literal_is_read_as_itself(value):
    text = repr(value).replace("inf", "1e999")
    assert parse_value(text) == value


@given(st.text(max_size=12))
def test_any_text_is_a_plain_value_or_an_error(text):
    try:
        value = parse_value(text)
    except ConfigError:
        return
    assert isinstance(value, str | int | float | bool | None | list | tuple | dict | set | bytes | complex)


@given(st.text("abcdefgh_", min_size=1, max_size=8))
def test_an_unknown_key_raises_and_changes_nothing(tmp_path_factory, name):
    path = tmp_path_factory.getbasetemp() / "known.py"
    path.write_text("model = dict(d_model=1, parts=dict(first=2))\n")
    known = {"model", "model.d_model", "model.parts", "model.parts.first"}
    for option in (name, f"model.{name}", f"model.parts.{name}", f"model.d_model.{name}"):
        if option not in known:
            with pytest.raises(ConfigError, match=r"known.py.*(did you mean|known here|holds no)"):
                load_config(path, {option: 3})


# -------------------------------------------------------------------------------------------------------------- boxes

corners = st.lists(st.tuples(*[st.integers(0, 64)] * 2, *[st.integers(1, 64)] * 2), min_size=1, max_size=6).map(
    lambda rows: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float64)
)


@given(corners, corners, st.integers(-9, 9), st.integers(1, 5))
def test_boxes_convert_and_overlap_as_the_definition_says(a, b, shift, scale):
    assert torch.equal(cxcywh_to_xyxy(xyxy_to_cxcywh(a)), a)
    torch.testing.assert_close(xyxy_to_cxcywh(a), box_convert(a, "xyxy", "cxcywh"))
    torch.testing.assert_close(xyxy_to_cxcywh(a)[:, 2:].prod(-1), box_area(a))
    iou = generalized_iou(a[:, None], b)
    torch.testing.assert_close(iou, generalized_box_iou(a, b))
    assert ((iou > -1) & (iou <= 1)).all()
    torch.testing.assert_close(generalized_iou(b[:, None], a), iou.T)
    torch.testing.assert_close(generalized_iou(a, a), torch.ones(len(a), dtype=a.dtype))
    torch.testing.assert_close(generalized_iou(a[:, None] * scale + shift, b * scale + shift), iou)


def sample_of(boxes, width=130, height=130):
    return Sample(Image.new("RGB", (width, height)), boxes.numpy().astype(np.float32), np.arange(len(boxes)))


def areas(sample):
    return (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(1)


@given(corners, st.integers(40, 200), st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(20, 70)] * 2))
@settings(max_examples=50)
def test_boxes_stay_inside_and_keep_their_order(boxes, scale, window):
    sample = sample_of(boxes)
    for flip in (Sample.hflip, Sample.vflip):
        np.testing.assert_allclose(areas(flip(sample)), areas(sample))
        np.testing.assert_array_equal(flip(flip(sample)).boxes, sample.boxes)
    np.testing.assert_array_equal(sample.hflip().vflip().boxes, sample.vflip().hflip().boxes)
    resized = sample.resize(scale, None)
    np.testing.assert_allclose(areas(resized), areas(sample) * (scale / 130) ** 2, rtol=1e-4)
    left, top, width, height = window
    cropped = sample.crop(left, top, width, height)
    assert cropped.image.size == (width, height)
    assert ((cropped.boxes >= 0) & (cropped.boxes <= np.float32([width, height] * 2))).all()
    assert (areas(cropped) > 0).all()
    assert (areas(cropped) <= areas(sample)[cropped.labels]).all()  # labels are the boxes' places
    assert (np.diff(cropped.labels) > 0).all()
    expected = sample.boxes[cropped.labels].clip([left, top] * 2, [left + width, top + height] * 2) - [left, top] * 2
    np.testing.assert_array_equal(cropped.boxes, expected)
    gone = np.setdiff1d(sample.labels, cropped.labels)
    low = np.maximum(sample.boxes[gone, :2], [left, top])
    high = np.minimum(sample.boxes[gone, 2:], [left + width, top + height])
    assert ((high - low).min(1, initial=np.inf) <= 0).all()


@given(corners, st.integers(0, 2**32))
@settings(max_examples=30)
def test_augmented_targets_are_normalised_and_consistent(boxes, seed):
    transform = TrainTransform((40, 50), 70, {"scales": (44,), "min_size": 24, "max_size": 40}, 0.5, 0.5)
    image, target = transform(sample_of(boxes), np.random.default_rng(seed)).tensors()
    assert image.shape[1:] == tuple(target["size"])
    assert min(image.shape[1:]) in (40, 50) or max(image.shape[1:]) <= 71
    assert len(target["labels"]) == len(target["boxes"]) <= len(boxes)
    low, high = cxcywh_to_xyxy(target["boxes"]).split(2, -1)
    assert (low >= -1e-5).all()
    assert (high <= 1 + 1e-5).all()
    assert (high > low).all()


# ----------------------------------------------------------------------------------------------------------- matching


def problem(queries, objects, seed, classes=4):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(1, 1, queries, 4, generator=generator) * 0.4 + 0.3
    logits = torch.randn(1, 1, queries, classes, generator=generator)
    labels = torch.randint(0, classes, (objects,), generator=generator)
    return logits, boxes, labels, torch.rand(objects, 4, generator=generator) * 0.4 + 0.3


def match(logits, boxes, labels, wanted):
    matcher, targets = HungarianMatcher(), Targets.of([{"labels": labels, "boxes": wanted}])
    (pairs,) = matcher.match([(Detections(logits, boxes), targets)])
    return matcher.cost(Detections(logits, boxes), targets)[0, 0], dict(
        zip(*map(torch.Tensor.tolist, (pairs.target[0], pairs.query[0])), strict=True)
    )


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_matching_follows_its_inputs_order_and_is_the_cheapest(queries, objects, seed, random):
    logits, boxes, labels, wanted = problem(queries, objects, seed)
    cost, pairs = match(logits, boxes, labels, wanted)
    assert len(pairs) == len(set(pairs.values())) == min(queries, objects)
    paid = sum(cost[query, target] for target, query in pairs.items())
    for chosen in itertools.permutations(range(max(queries, objects)), min(queries, objects)):
        rows = (
            zip(chosen, range(objects), strict=True) if objects <= queries else zip(range(queries), chosen, strict=True)
        )
        assert paid <= sum(cost[query, target] for query, target in rows) + 1e-5
    order, places = list(range(queries)), list(range(objects))
    random.shuffle(order)
    random.shuffle(places)
    _, shuffled = match(logits[:, :, order], boxes[:, :, order], labels[places], wanted[places])
    assert {places[target]: order[query] for target, query in shuffled.items()} == pairs


# ----------------------------------------------------------------------------------------------------------- samplers


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 5), st.integers(0, 5))
def test_samplers_are_pure_and_share_out_everything(length, world, epoch, seed):
    def drawn(world, **more):
        parts = []
        for rank in range(world):
            sampler = TrainSampler(length, rank, world, **more)
            sampler.epoch = epoch
            parts.append([index for index, _ in sampler])
            assert len(sampler) == len(parts[-1])
        return parts

    (order,) = drawn(1, seed=seed)
    assert sorted(order) == list(range(length))
    parts = drawn(world, seed=seed)
    assert drawn(world, seed=seed) == parts
    assert {len(part) for part in parts} == {-(-length // world)}
    flat = [index for part in parts for index in part]
    assert flat == (order * 2)[: len(flat)] if length * 2 >= len(flat) else set(flat) == set(order)
    torch.rand(1)  # another state of the process changes nothing
    assert drawn(world, seed=seed) == parts
    seen = [list(EvalSampler(length, rank, world)) for rank in range(world)]
    assert sorted(index for part in seen for index in part) == list(range(length))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
