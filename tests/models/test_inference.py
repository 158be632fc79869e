"""What inference takes in fewer passes is what a model in evaluation mode answers that rounds as PyTorch does."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from models import build_detector
from tests.golden import make_image
from tests.tiny import shrunk

CONFIG = Path(__file__).parents[2] / "config"
SQUARE, UNLIKE = ((96, 96), (96, 96)), ((96, 131), (75, 60))
CASES = [(name, sizes) for name in ("rt_detr/rtdetr_r18vd", "rt_detr/rtdetr_r50vd", "d_fine/dfine_hgnetv2_s",
                                    "d_fine/dfine_hgnetv2_m") for sizes in (SQUARE, UNLIKE)]  # fmt: skip


def detector_of(name):
    """One whose norms and activations do something, and whose tokens are chosen as in its first forward."""
    torch.manual_seed(0)
    detector = build_detector(shrunk(CONFIG / f"{name}.py")).eval()
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, (_BatchNorm, FrozenBatchNorm2d)):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.7, 1.4)
                module.bias.normal_(std=0.1)
        for module in (*detector.decoder.modules(), *detector.queries.modules()):
            if isinstance(module, nn.Linear):
                module.weight.add_(torch.randn_like(module.weight), alpha=0.05)  # some start at zero
    base = getattr(detector.queries, "base", detector.queries)
    choose, first = base.choose, []

    def as_at_first(scores, size):
        first.append(choose(scores, size))
        return first[0]  # of equal scores rounding chooses

    base.choose = as_at_first
    return detector


@pytest.mark.parametrize(("name", "sizes"), CASES, ids=str)
def test_inference_answers_as_with_gradients(name, sizes):
    detector, images = detector_of(name), [make_image(h, w, float(i)) for i, (h, w) in enumerate(sizes)]
    expected = detector(images)
    with torch.no_grad():
        found = detector(images)
        again = detector(images)
    assert expected.logits.std() > 0.01
    torch.testing.assert_close(found.logits, expected.logits.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected.boxes.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.logits, again.logits)
    for ours, wanted in zip(found.aux["samplings"], expected.aux["samplings"], strict=False):
        assert (ours.locations - wanted.locations).norm() <= 1e-4 * wanted.locations.norm()
        torch.testing.assert_close(ours.weights, wanted.weights.detach(), rtol=1e-4, atol=1e-5)
