"""What --deterministic asks of a GPU, as far as a CPU can tell."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from models import build_criterion, build_detector
from tests.golden import make_image, objects
from tests.tiny import shrunk

ROOT = Path(__file__).parents[3]
REFUSED = (
    "_embedding_bag", "adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward", "cumsum",
    "ctc_loss_backward", "fractional_max_pool2d_backward", "histc", "kthvalue", "max_unpool2d", "median", "nll_loss2d",
    "put", "reflection_pad2d_backward", "replication_pad2d_backward",
)  # fmt: skip
"""Operators of floating-point numbers that have no deterministic CUDA kernel in some of the versions of PyTorch that
requirements.txt allows (torch.use_deterministic_algorithms). Not here: bilinear interpolation, which takes another way
by itself, and the sampling of grids, where on GPUs our own operator stands."""
CONFIGS = (
    "detr/detr_r50", "pnp_detr/pnp_detr_r50_ratio033", "conditional_detr/conditional_detr_r50",
    "deformable_detr/deformable_detr_swint_two_stage", "sparse_detr/sparse_detr_r50_rho_0.1",
    "lite_detr/lite_dino_r50_h3l1_2p1x3_kda", "h_detr/h_deformable_detr_r50",
)  # fmt: skip


class Operators(TorchDispatchMode):
    """Remembers which operators answered floating-point numbers."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in tree_iter(answer)):
            self.names.add(function.overloadpacket.__name__.rstrip("_"))
        return answer


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.partition("/")[0])
def test_a_training_step_holds_no_operator_that_deterministic_mode_refuses(config):
    cfg = shrunk(ROOT / f"config/{config}.py")
    detector, criterion, targets = build_detector(cfg).train(), build_criterion(cfg).train(), objects(2, 5)
    with Operators() as operators:
        losses, _ = criterion(detector([make_image(64, 96), make_image(96, 64)], targets), targets)
        sum(losses.values()).backward()
    assert {"convolution_backward", "sum"} <= operators.names
    assert operators.names.isdisjoint(REFUSED)
