"""Geometry of token pyramids, groups of queries, and batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from models.layers.position import SinePosition
from models.structures import Detections, DetectorOutput, Pyramid, Queries, QueryGroup, padding_mask
from util.tensors.image_batch import ImageBatch


def pyramid(shapes, extents):
    """A pyramid of zeros; extents per image and level as (h, w)."""
    tokens = torch.zeros(len(extents), sum(h * w for h, w in shapes), 4)
    pads = [
        padding_mask(extent, shape, "cpu") for extent, shape in zip(zip(*extents, strict=True), shapes, strict=True)
    ]
    padding = torch.cat([pad.flatten(1) for pad in pads], 1)
    return Pyramid(tokens, tokens, padding, shapes, extents)


@given(st.integers(1, 90), st.integers(0, 90), st.integers(1, 40))
def test_extents_follow_nearest_neighbour_resizing(size, extra, cells):
    full = size + extra
    batch = ImageBatch(torch.zeros(1, 3, full, full), padding_mask(((size, full),), (full, full), "cpu"))
    assert batch.sizes == ((size, full),)
    resized = F.interpolate(batch.padding[:, None].float(), size=(cells, cells))[0, 0].bool()
    extents = batch.extents(cells, cells)
    assert torch.equal(padding_mask(extents, (cells, cells), "cpu")[0], resized)


def test_batches_pad_to_the_right_and_at_the_bottom():
    images = [torch.full((3, 4, 6), 1.0), torch.full((3, 5, 2), 2.0)]
    batch = ImageBatch.of(images)
    assert batch.images.shape == (2, 3, 5, 6)
    assert batch.images[0, :, 4:].eq(0).all()
    assert torch.equal(batch.padding[1], torch.arange(6).expand(5, 6) >= 2)
    with pytest.raises(ValueError, match="list of"):
        ImageBatch.of([])
    with pytest.raises(ValueError, match="list of"):
        ImageBatch.of([torch.zeros(4, 6)])


def test_centres_are_pixel_centres_of_the_unpadded_part():
    p = pyramid(((2, 4),), (((2, 4),), ((1, 2),)))
    whole, half = p.centers()
    torch.testing.assert_close(whole[0], torch.tensor([0.125, 0.25]))
    torch.testing.assert_close(whole[5], torch.tensor([0.375, 0.75]))
    torch.testing.assert_close(half[1], torch.tensor([0.75, 0.5]))
    # On the padded map, both come to the same place.
    torch.testing.assert_close(p.on_levels(p.centers())[0, :, 0], p.on_levels(p.centers())[1, :, 0])


def test_anchors():
    p = pyramid(((60, 60), (3, 3)), (((60, 60), (3, 3)), ((30, 30), (2, 2))))
    logits, usable = p.anchors()
    boxes = logits.sigmoid()
    assert boxes[~usable].eq(1).all()
    torch.testing.assert_close(boxes[0, 61, 2:], torch.tensor([0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 3604, 2:], torch.tensor([0.1, 0.1]))
    # With 60 cells, the outermost centre lies at 0.5 / 60 < 0.01: unusable. With 30 it is usable.
    assert not usable[0, 0]
    assert usable[1, 0]
    inner = usable[0, :3600].view(60, 60)
    assert inner[1:-1, 1:-1].all()
    assert inner.sum() == 58 * 58  # on all four sides
    assert not usable[1, 30]  # padding


def test_geometry_of_a_shape_seen_before_is_not_computed_again():
    shapes, extents = ((6, 4), (3, 2)), (((6, 4), (3, 2)), ((3, 4), (2, 2)))
    position = SinePosition(8)
    geometry = (
        lambda: pyramid(shapes, extents).centers_on_levels(),
        lambda: pyramid(shapes, extents).anchors()[0],
        lambda: position(((6, 4), (3, 4)), (6, 4), torch.device("cpu")),
    )
    computed = [compute() for compute in geometry]
    with torch.no_grad():
        first = [compute() for compute in geometry]
        with torch.profiler.profile() as profile:
            again = [compute() for compute in geometry]
    assert not {"aten::sin", "aten::log", "aten::div"} & {event.name for event in profile.events()}
    for a, b, c in zip(computed, first, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_geometry_of_an_inference_is_not_kept_for_a_training():
    shapes, extents, position = ((5, 7),), (((5, 7),), ((4, 7),)), SinePosition(8)
    geometry = (
        lambda: pyramid(shapes, extents).centers_on_levels(),
        lambda: pyramid(shapes, extents).anchors()[0],
        lambda: position(((5, 7), (4, 7)), (5, 7), torch.device("cpu")),
    )
    with torch.inference_mode():
        inferred = [compute() for compute in geometry]
    for compute, kept in zip(geometry, inferred, strict=True):
        answer = compute()
        assert torch.equal(answer, kept)
        (answer * torch.ones((), requires_grad=True)).sum().backward()  # refuses tensors of inference mode


def test_coarsest_levels_are_the_last_tokens():
    p = pyramid(((4, 4), (2, 2), (1, 1)), (((4, 4), (2, 2), (1, 1)),))
    assert [p.coarsest(n).start for n in (0, 1, 2, 3)] == [21, 20, 16, 0]


def test_private_groups_are_seen_by_their_own_members_only():
    groups = (QueryGroup("denoising", 2, True), QueryGroup("denoising", 2, True), QueryGroup("matching", 3))
    queries = Queries(torch.zeros(1, 7, 4), None, None, groups)
    blocked = queries.attention_mask()
    assert not blocked[:, 4:].any()  # everyone sees the matching queries
    assert blocked[4:, :4].all()  # which see no denoising query
    assert blocked[:2, 2:4].all()
    assert blocked[2:4, :2].all()
    assert not blocked[:2, :2].any()
    assert Queries(torch.zeros(1, 3, 4), None, None, groups[2:]).attention_mask() is None


def test_sites_split_the_decoder_and_keep_what_was_seen():
    layers = Detections(torch.randn(2, 1, 7, 5), torch.rand(2, 1, 7, 4))
    groups = (QueryGroup("denoising", 2, True), QueryGroup("denoising", 2, True), QueryGroup("matching", 3))
    proposals = Detections(torch.randn(1, 1, 9, 5), torch.rand(1, 1, 9, 4))
    output = DetectorOutput.of(layers, groups, {"proposals": proposals}, {"samplings": [1]})
    sites = output.sites()
    assert list(sites) == ["denoising", "matching", "proposals"]
    assert sites["denoising"].logits.shape == (2, 1, 4, 5)
    assert output.logits.equal(layers.logits[-1, :, 4:])
    assert output.aux == {"samplings": [1]}
