"""Tokens and queries that are chosen: Sparse DETR's encoder and attention map, H-DETR's two groups."""

import math

import pytest
import torch

from models import build_criterion, build_detector
from models.criteria.token_selection import TokenCorrelation, attention_target, decoder_attention_map
from models.structures import Sampling, TokenSelection
from tests.golden import ROOT, make_image, objects
from tests.tiny import shrunk
from util.tensors.image_batch import ImageBatch

SPARSE = ROOT / "config/sparse_detr/sparse_detr_r50_rho_0.1.py"
HYBRID = ROOT / "config/h_detr/h_deformable_detr_r50.py"


def spread(detector):
    """Fresh heads answer alike everywhere; these do not."""
    for parameter in detector.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return detector


def small(path, **options):
    torch.manual_seed(0)
    return spread(build_detector(shrunk(path, **{"model.backbone.depth": 18, **options})))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_the_encoder_changes_the_tokens_that_each_image_keeps(ratio):
    detector = small(SPARSE, rho=ratio).eval()
    batch = ImageBatch.of([make_image(64, 96), make_image(40, 70, 1.0)])
    with torch.no_grad():
        pyramid = detector.neck(detector.backbone(batch.images), batch)
        memory, seen = detector.encoder(pyramid)
    selection = seen["selection"]
    valid = (~pyramid.padding).sum(1).tolist()
    assert selection.counts == tuple(min(int(n * ratio) + 1, pyramid.padding.shape[1]) for n in valid)
    changed = (memory.tokens != pyramid.tokens).any(-1)
    for i, count in enumerate(selection.counts):
        assert set(changed[i].nonzero()[:, 0].tolist()) == set(selection.chosen[i, :count].tolist())
    assert "encoder" not in seen  # auxiliary heads are for training
    lowest = selection.scores.min()
    assert selection.scores[pyramid.padding].eq(lowest).all()


def test_encoder_and_first_stage_score_with_one_projection():
    detector = small(SPARSE)
    assert detector.encoder.features is detector.queries.features
    other = small(SPARSE)
    other.load_state_dict(detector.state_dict())
    assert other.encoder.features is other.queries.features


@pytest.mark.parametrize("path", [SPARSE, HYBRID], ids=lambda path: path.stem)
def test_under_autocast_losses_are_float32(path):
    cfg = shrunk(path, **{"model.backbone.depth": 18})
    detector = build_detector(cfg).train()
    targets = objects(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        output = detector([make_image(64, 96), make_image(40, 70)], targets)
        losses, metrics = build_criterion(cfg)(output, targets)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(metric.isfinite() for metric in metrics.values())
    sum(losses.values()).backward()


SHAPES = ((3, 4), (2, 2))


def looking(seed=0, spread=1.4):
    """Two layers, two images, three queries, two heads, two points, in and beside the maps."""
    generator = torch.Generator().manual_seed(seed)
    locations = (torch.rand(2, 2, 3, 2, 2, 2, 2, generator=generator) - 0.5) * spread + 0.5
    weights = torch.rand(2, 2, 3, 2, 2, 2, generator=generator)
    return [Sampling(*layer) for layer in zip(locations, weights, strict=True)]


def test_the_attention_map_shares_each_weight_among_four_tokens():
    samplings = looking()
    expected = torch.zeros(2, 16)
    for sampling in samplings:
        for index in torch.cartesian_prod(*(torch.arange(n) for n in sampling.weights.shape)).tolist():
            b, _, _, level, _ = index
            height, width = SHAPES[level]
            x, y = (sampling.locations[tuple(index)] * torch.tensor([width, height])).tolist()
            for column in (math.floor(x), math.floor(x) + 1):
                for row in (math.floor(y), math.floor(y) + 1):
                    if 0 <= column < width and 0 <= row < height:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        token = (0, 12)[level] + row * width + column
                        expected[b, token] += share * sampling.weights[tuple(index)]
    torch.testing.assert_close(decoder_attention_map(samplings, SHAPES), expected)


def test_locations_that_are_not_finite_are_lost():
    samplings = looking()
    samplings[0].locations[0, 0, 0, 0, 0] = float("nan")
    samplings[0].locations[0, 0, 0, 0, 1] = float("inf")
    assert decoder_attention_map(samplings, SHAPES).isfinite().all()


def test_the_target_is_what_the_decoder_looks_at_most():
    padding = torch.zeros(2, 16, dtype=torch.bool)
    padding[1, 5:] = True
    selection = TokenSelection(torch.zeros(2, 16), torch.arange(4).expand(2, -1), (4, 2), SHAPES, padding)
    attention = torch.arange(16.0).expand(2, -1)
    target = attention_target(attention, selection)
    assert target[0].nonzero()[:, 0].tolist() == [12, 13, 14, 15]
    assert target[1].nonzero()[:, 0].tolist() == [3, 4]


def test_the_target_is_no_padding_where_the_decoder_does_not_look():
    padding = torch.zeros(1, 16, dtype=torch.bool)
    padding[0, :12] = True
    chosen = torch.arange(12, 16)[None]
    selection = TokenSelection(torch.zeros(1, 16), chosen, (4,), SHAPES, padding)
    assert torch.equal(attention_target(torch.zeros(1, 16), selection), (~padding).float())


def test_correlation_is_a_share_of_the_attention():
    samplings = looking(spread=0.5)
    every = torch.arange(16).expand(2, -1)
    padding = torch.zeros(2, 16, dtype=torch.bool)

    class Output:
        aux = {"samplings": samplings, "selection": TokenSelection(every, every, (16, 16), SHAPES, padding)}

    values = TokenCorrelation()(Output, None)
    assert list(values) == [f"corr_mask_attn_map_dec_{name}" for name in ("all", 0, 1)]
    assert all(value.item() == pytest.approx(1.0) for value in values.values())


def test_key_aware_attention_has_no_attention_map():
    with pytest.raises(ValueError, match="key-aware"):
        decoder_attention_map([Sampling(looking()[0].locations, None)], SHAPES)


def test_one_to_many_queries_are_there_in_training_and_unseen_by_the_others():
    detector = small(HYBRID)
    images = [make_image(64, 96), make_image(40, 70, 1.0)]
    training = detector.train()(images, objects(2, 5))
    answering = detector.eval()(images)
    assert [(group.name, group.size) for group in training.groups] == [("matching", 12), ("one2many", 12)]
    assert [(group.name, group.size) for group in answering.groups] == [("matching", 12)]
    torch.testing.assert_close(training.logits, answering.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(training.boxes, answering.boxes, rtol=0, atol=1e-5)
    assert not torch.equal(training.sites()["one2many"].logits, training.sites()["matching"].logits)


@pytest.mark.parametrize(
    "option",
    [
        {"model.queries.num_one2many": 0},
        {"model.queries.init.type": "FromBox"},
        {"model.decoder.refine": "iterative"},
    ],
)
def test_the_three_schemes_of_h_detr_can_be_switched_off(option):
    cfg = shrunk(HYBRID, **{"model.backbone.depth": 18, **option})
    targets = objects(2, 5)
    losses, _ = build_criterion(cfg)(build_detector(cfg).train()([make_image(64, 96)] * 2, targets), targets)
    assert any("one2many" in name for name in losses) == ("model.queries.num_one2many" not in option)
    assert sum(losses.values()).isfinite()


def test_a_small_image_has_fewer_tokens_than_queries():
    cfg = shrunk(HYBRID, **{"model.backbone.depth": 18, "model.queries.num_queries": 20})
    targets = objects(2, 5)
    output = build_detector(cfg).train()([make_image(32, 32)] * 2, targets)  # 16 + 4 + 1 + 1 tokens
    assert [group.size for group in output.groups] == [20, 2]
    losses, _ = build_criterion(cfg)(output, targets)
    assert sum(losses.values()).isfinite()
