"""Queries that are noised copies of objects: how many, and what batches without objects leave."""

import pytest
import torch
from torch import nn

from models.layers.basic import inverse_sigmoid
from models.queries.contrastive_denoising import WithDenoising
from models.queries.padded_denoising import WithFoldedDenoising, WithPaddedDenoising


def maker(dn_number):
    return WithDenoising(nn.Identity, d_model=4, num_classes=5, dn_number=dn_number)


def objects(*counts):
    return [{"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.full((n, 4), 0.5)} for n in counts]


@pytest.mark.parametrize(
    ("dn_number", "counts", "groups"),
    [(100, (3, 1), 33), (50, (3, 1), 16), (49, (3, 1), 98), (100, (0, 150), 1), (2, (0, 0), 1)],
)
def test_as_many_groups_as_fit(dn_number, counts, groups):
    """100 queries and more are shared out; fewer than 100 were once meant as so many groups."""
    content, boxes, made = maker(dn_number).noised(objects(*counts))
    assert len(made) == groups
    assert content.shape == (2, 2 * max(counts) * groups, 4)
    assert boxes.shape == (2, 2 * max(counts) * groups, 4)


def test_labels_have_a_gradient_without_objects():
    """Process groups wait for one of every weight."""
    queries = maker(100)
    content, _, _ = queries.noised(objects(0, 0))
    content.sum().backward()
    assert queries.label_embed.weight.grad.eq(0).all()


def padded(kind=WithPaddedDenoising, **options):
    return kind(nn.Identity, d_model=4, num_classes=5, **options)


@pytest.mark.parametrize(
    ("dn_number", "counts", "groups"),
    [(100, (3, 1), 33), (100, (51, 0), 1), (100, (50, 1), 2), (100, (150, 2), 1), (100, (0, 0), 1)],
)
def test_padded_groups_as_many_as_fit(dn_number, counts, groups):
    content, boxes, made = padded(dn_number=dn_number).noised(objects(*counts))
    longest = max(1, *counts)
    assert [(group.name, group.size, group.private) for group in made] == [("denoising", 2 * longest, True)] * groups
    assert content.shape == boxes.shape == (2, 2 * longest * groups, 4)
    assert boxes.isfinite().all()


def test_empty_slots_have_the_last_row_and_a_corner_and_others_none_of_it():
    torch.manual_seed(0)
    queries = padded(dn_number=6, label_noise_ratio=1.0)
    assert queries.label_embed.weight[-1].eq(0).all()
    with torch.no_grad():
        queries.label_embed.weight[-1] = 7.0
    content, boxes, _ = queries.noised(objects(3, 1, 0))
    empty = torch.ones(3, 4, 3, dtype=torch.bool)  # two groups of positives and negatives
    empty[0], empty[1, :, 0] = False, False
    assert content.eq(7).all(-1).equal(empty.flatten(1))
    logits = inverse_sigmoid(boxes, 1e-5)[empty.flatten(1)]
    torch.testing.assert_close(logits, torch.full_like(logits, -11.512925), rtol=0, atol=1e-4)
    assert boxes[~empty.flatten(1)][:, :2].gt(1e-3).all()


def test_padded_labels_have_a_gradient_without_objects():
    """Process groups wait for one of every weight; that of the last row is always 0."""
    for counts in ((0, 0), (2, 1)):
        queries = padded()
        queries.noised(objects(*counts))[0].sum().backward()
        assert queries.label_embed.weight.grad[-1].eq(0).all()
        assert queries.label_embed.weight.grad.ne(0).any() == any(counts)


def test_noise_stays_within_its_bounds_and_folding_keeps_sizes():
    """Corners of positives move by less than half the box, those of negatives by half to a whole one."""
    objects_of = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.1]])}]
    made = {}
    for kind in (WithPaddedDenoising, WithFoldedDenoising):
        torch.manual_seed(0)
        _, boxes, _ = padded(kind).noised(objects_of)
        made[kind] = boxes.view(100, 2, 4)
    plain, folded = made.values()
    size = torch.tensor([0.2, 0.1])
    corners = torch.cat([plain[:, 0, :2] - plain[:, 0, 2:] / 2, plain[:, 0, :2] + plain[:, 0, 2:] / 2], -1)
    moved = (corners - torch.tensor([0.4, 0.45, 0.6, 0.55])).abs() / size.repeat(2)
    assert moved.lt(0.5 + 1e-4).all()
    assert plain[:, 0].equal(folded[:, 0])
    inside_out = plain[:, 1, 2:] < 2e-5
    assert inside_out.any()
    assert folded[:, 1, 2:].gt(1e-4)[inside_out].float().mean() > 0.9
    assert plain[:, 1, 2:][~inside_out].equal(folded[:, 1, 2:][~inside_out])
