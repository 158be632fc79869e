"""Queries that are noised copies of objects: how many, and what batches without objects leave."""

import pytest
import torch
from torch import nn

from models.queries.contrastive_denoising import WithDenoising


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
