"""A convolution, its norm and its activation: folded without gradients, and apart as PyTorch has them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.layers.conv_norm import NORMS, ConvNorm, conv_norm, is_folded
from models.layers.convolution import has_kernels, joined
from models.ops.linear import INSTRUCTIONS

SHAPES = {
    "1x1": {"kernel": 1},
    "3x3": {"kernel": 3},
    "strided": {"kernel": 3, "stride": 2},
    "by_channel": {"kernel": 5, "groups": 32},
    "2x2": {"kernel": 2, "padding": 0},
}


def layer_of_random_norm(norm: str = "batch", **options) -> ConvNorm:
    torch.manual_seed(0)
    layer = ConvNorm(32, 32, norm=NORMS[norm], **options).to(memory_format=torch.channels_last).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        if hasattr(layer.norm, name):
            nn.init.uniform_(getattr(layer.norm, name), 0.5, 1.5)
    return layer


def apart(layer: ConvNorm, x, residual=None):
    """What the modules compute one after the other."""
    y = layer.norm(layer.conv(x))
    y = y if residual is None else y + residual
    return {None: lambda y: y, "relu": F.relu, "silu": F.silu}[layer.activation](y)


def assert_near(ours, theirs):
    """Winograd's convolutions round coarser than others."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("norm", ["frozen", "batch", "sync", "group"])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_gradients_all_is_one_convolution(shape, norm, activation):
    layer = layer_of_random_norm(norm, activation=activation, **SHAPES[shape])
    x = torch.randn(2, 32, 24, 33).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert is_folded(layer.conv, layer.norm, x) == (norm != "group")
        assert_near(layer(x), apart(layer, x))
        residual = torch.randn_like(apart(layer, x))
        before = residual.clone()
        assert_near(layer(x, residual), apart(layer, x, residual))
    assert torch.equal(residual, before)
    assert torch.equal(layer(x), apart(layer, x)), "a module that is looked at rounds as PyTorch does"
    assert torch.equal(layer(x, residual), apart(layer, x, residual))


def maps_of(*shapes, dtype=torch.float32):
    torch.manual_seed(1)
    return [torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last) for shape in shapes]


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("small", [(2, 24, 12, 17), (2, 24, 1, 1), (2, 24, 7, 5)], ids=str)
def test_maps_side_by_side_are_as_if_joined(small, activation):
    """Enlarged, as they are, and parts of wider ones; whether or not kernels take them apart."""
    layer = layer_of_random_norm(kernel=1, activation=activation)
    layer.conv = nn.Conv2d(24 + 8 + 40, 32, 1, bias=False)
    wide, few, many = maps_of(small, (2, 16, 24, 33), (2, 40, 24, 33))
    maps = wide, few.chunk(2, 1)[1], many
    with torch.no_grad():
        assert_near(layer(maps), apart(layer, joined(maps)))
        assert_near(layer(maps[1:2] * 9), apart(layer, joined(maps[1:2] * 9)))
        wrong = maps_of((2, 24, 12, 17), (2, 8, 6, 6), (2, 40, 24, 33))  # two sizes beside the last
        assert not layer.takes(wrong)
        assert_near(layer(wrong), apart(layer, joined(wrong)))
    assert torch.equal(layer(maps), apart(layer, joined(maps)))
    with torch.no_grad():
        assert layer.takes(maps) == has_kernels(layer.conv, maps[0])
        narrow = layer_of_random_norm(kernel=3, activation=activation)
        assert not narrow.takes([few, few])
        assert_near(narrow([few, few]), apart(narrow, joined([few, few])))


@pytest.mark.skipif(torch.bfloat16 not in INSTRUCTIONS, reason="no products of bfloat16 here")
def test_bfloat16_maps_side_by_side():
    layer = layer_of_random_norm(kernel=1, activation="silu")
    layer.conv = nn.Conv2d(23 + 9, 32, 1, bias=False)  # pairs of channels reach from one map into the next
    maps = maps_of((1, 23, 6, 8), (1, 9, 12, 16), dtype=torch.bfloat16)
    with torch.no_grad():
        exact = apart(layer, joined([x.float() for x in maps]))
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = layer(maps), apart(layer, joined(maps))
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


@pytest.mark.parametrize("scale", [0.7, -0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_affine_after_a_relu_goes_along(shape, scale):
    layer = layer_of_random_norm(activation="relu", **SHAPES[shape])
    affine = torch.tensor([scale]), torch.tensor([0.3])
    (x,) = maps_of((1, 32, 24, 33))
    expected = affine[0] * apart(layer, x) + affine[1]
    with torch.no_grad():
        assert_near(conv_norm(layer.conv, layer.norm, x, "relu", affine=affine), expected)
    assert torch.equal(conv_norm(layer.conv, layer.norm, x, "relu", affine=affine), expected)
    layer, x = layer_of_random_norm("frozen", activation="relu", **SHAPES[shape]).train(), x.requires_grad_()
    found = conv_norm(layer.conv, layer.norm, x, "relu", affine=affine)
    wanted = affine[0] * apart(layer, x) + affine[1]
    assert_near(torch.autograd.grad(found.square().sum(), x)[0], torch.autograd.grad(wanted.square().sum(), x)[0])


def test_batch_norms_learn_and_count():
    """Trained, they use the batch's statistics and keep running ones; every weight and the maps have gradients."""
    layer, x = layer_of_random_norm(kernel=3, activation="silu").train(), torch.randn(2, 32, 9, 9, requires_grad=True)
    twin = layer_of_random_norm(kernel=3, activation="silu").train()
    for one, computed in ((layer, layer(x)), (twin, apart(twin, x))):
        computed.square().sum().backward()
        assert one.norm.num_batches_tracked == 1
    assert_near(layer.norm.running_var, twin.norm.running_var)
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        assert_near(ours.grad, theirs.grad)


def test_what_is_no_norm_of_constants_is_called():
    x = torch.randn(2, 32, 9, 9)
    with torch.no_grad():
        for norm in (nn.BatchNorm2d(32, affine=False), nn.BatchNorm2d(32, track_running_stats=False), nn.Identity()):
            assert not is_folded(nn.Conv2d(32, 32, 1, bias=False), norm.eval(), x)
        assert not is_folded(nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32).train(), x)
        assert not is_folded(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32).eval(), x), "its bias would be forgotten"
        reflecting = nn.Conv2d(32, 32, 3, padding=1, bias=False, padding_mode="reflect")
        norm = nn.BatchNorm2d(32).eval()
        assert torch.equal(conv_norm(reflecting, norm, x), norm(reflecting(x)))


def test_hooks_are_called():
    layer, seen = layer_of_random_norm(kernel=1, activation="relu"), []
    for module in layer.children():
        module.register_forward_hook(lambda module, *_: seen.append(module))
    with torch.no_grad():
        layer(torch.randn(1, 32, 4, 4))
    assert seen == [layer.conv, layer.norm]


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation='gelu' is none of"):
        ConvNorm(3, 8, 3, activation="gelu")
