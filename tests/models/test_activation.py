"""SiLU in place of ReLU where a config asks for it, as DEIM does, and nowhere else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import build_criterion, build_detector
from models.layers.basic import MLP
from models.layers.dropout import Dropout
from models.layers.linear import Linear, feed_forward, linear_silu
from models.layers.transformer import DeformableDecoderLayer, GatedDecoderLayer
from tests.tiny import ROOT, shrunk
from util.config import ConfigError, load_config


@pytest.mark.parametrize("grad", [False, True])
def test_silu_stands_where_relu_stood(grad):
    torch.manual_seed(0)
    mlp, norm, x = MLP(8, 16, 16, 4, activation="silu"), nn.LayerNorm(8), torch.randn(5, 7, 8)
    first, second = Linear(8, 32), Linear(32, 8)
    with torch.set_grad_enabled(grad):
        hidden = x
        for layer in mlp.layers[:-1]:
            hidden = F.silu(F.linear(hidden, layer.weight, layer.bias))
        torch.testing.assert_close(mlp(x), mlp.layers[-1](hidden))
        torch.testing.assert_close(linear_silu(first, x), F.silu(first(x)))
        expected = norm(x + second(F.silu(first(x))))
        torch.testing.assert_close(feed_forward(x, first, second, norm, Dropout(0.0), "silu"), expected)
        other = feed_forward(x, first, second, norm, Dropout(0.0))
        torch.testing.assert_close(other, norm(x + second(F.relu(first(x)))))


def test_gradients_of_silu():
    mlp, x = MLP(4, 6, 2, activation="silu").double(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))


@pytest.mark.parametrize(
    ("stem", "activation"),
    [
        ("d_fine/deim_hgnetv2_s", "silu"),
        ("d_fine/dfine_hgnetv2_s", "relu"),
        ("rt_detr/deim_rtdetrv2_r18vd", "silu"),
        ("rt_detr/rtdetrv2_r18vd", "relu"),
    ],
)
def test_one_word_reaches_the_decoder_and_all_small_networks(stem, activation):
    detector = build_detector(shrunk(ROOT / f"config/{stem}.py"))
    kinds = MLP | DeformableDecoderLayer | GatedDecoderLayer
    found = [module for module in detector.modules() if isinstance(module, kinds)]
    assert len(found) > 6
    assert {module.activation for module in found} == {activation}


def test_an_activation_that_is_none():
    with pytest.raises(ConfigError, match="activation='swish' is none of relu, silu"):
        build_detector(shrunk(ROOT / "config/d_fine/deim_hgnetv2_s.py", **{"model.activation": "swish"}))


@pytest.mark.parametrize("stem", ["d_fine/deim_hgnetv2_l", "rt_detr/deim_rtdetrv2_r50vd"])
def test_the_loss_of_the_base_is_left_out(stem):
    criterion = build_criterion(load_config(ROOT / f"config/{stem}.py"))
    assert "vfl" not in criterion.losses
    assert criterion.losses["mal"].gamma == 1.5
    listed = [rule.losses for rule in criterion.supervise.values() if rule.losses]
    assert all("mal" in losses and "vfl" not in losses for losses in listed)


@pytest.mark.parametrize("size", "nsmlx")
def test_nothing_of_hgnet_is_frozen(size):
    detector = build_detector(shrunk(ROOT / f"config/d_fine/deim_hgnetv2_{size}.py"))
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in detector.backbone.modules())


def test_rates_of_s_are_the_published_ones():
    optimizer = load_config(ROOT / "config/d_fine/deim_hgnetv2_s.py").optimizer
    assert optimizer.lr == 4e-4
    assert optimizer.lr * optimizer.scale["backbone"] == pytest.approx(2e-4)
