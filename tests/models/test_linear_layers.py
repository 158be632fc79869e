"""Layers that go through the extension's products in one step are still the modules that they are made of."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.layers.attention import MultiheadAttention, attend
from models.layers.convolution import convolve, has_kernels
from models.layers.deformable_attention import MSDeformAttn
from models.layers.dense import DenseDecoderLayer
from models.layers.linear import Linear, Projecting
from models.layers.transformer import DeformableEncoderLayer
from models.structures import Pyramid, Sampling, TokenSet

SHAPES = ((6, 4), (3, 2))
WIDTH = 16


def inputs():
    torch.manual_seed(1)
    count = sum(h * w for h, w in SHAPES)
    tokens, pos = torch.randn(2, count, WIDTH), torch.randn(2, count, WIDTH)
    pyramid = Pyramid(tokens, pos, torch.zeros(2, count, dtype=torch.bool), SHAPES, (SHAPES, SHAPES))
    return tokens, pos, pyramid.centers_on_levels(), pyramid


def encoder_layer(attention=lambda: MSDeformAttn(WIDTH, 2, len(SHAPES), 2)):
    torch.manual_seed(0)
    layer = DeformableEncoderLayer(WIDTH, attention, 32).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def test_without_gradients_a_layer_answers_as_with_them():
    layer = encoder_layer()
    with torch.no_grad():
        ours = layer(*inputs())
    torch.testing.assert_close(ours, layer(*inputs()).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, _ in encoder_layer().named_modules() if name])
def test_hooks_of_every_module_are_called(name):
    layer, calls = encoder_layer(), []
    layer.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        layer(*inputs())
    assert len(calls) == (3 if name == "dropout" else 1)


def test_a_hook_may_change_what_a_linear_layer_says():
    layer = encoder_layer()
    layer.linear1.register_forward_hook(lambda module, given, answer: answer * 0)
    with torch.no_grad():
        tokens = layer.attend(*inputs())
        expected = layer.norm2(tokens + layer.linear2.bias)
        torch.testing.assert_close(layer.feed_forward(tokens, inputs()[-1]), expected)


@pytest.mark.parametrize("name", ["linear1", "linear2", "norm1", "self_attn"])
def test_somebody_elses_forward_is_called(name):
    layer, calls = encoder_layer(), []
    module = layer.get_submodule(name)
    usual = module.forward
    module.forward = lambda *given: calls.append(1) or usual(*given)
    with torch.no_grad():
        layer(*inputs())
    assert calls == [1]


@pytest.mark.parametrize("name", ["linear1", "linear2", "norm1", "self_attn.output_proj", "self_attn"])
def test_a_module_put_in_a_layers_place_is_called(name):
    layer, calls = encoder_layer(), []

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *given):
            calls.append(1)
            return self.inner(*given)

    parent, _, last = name.rpartition(".")
    setattr(layer.get_submodule(parent), last, Wrapped(layer.get_submodule(name)))
    with torch.no_grad():
        layer(*inputs())
    assert calls == [1]


def test_an_attention_derived_from_ours_is_called():
    class Negated(MSDeformAttn):
        def forward(self, *given):
            answer, sampling = super().forward(*given)
            return -answer, sampling

    with torch.no_grad():
        negated, plain = encoder_layer(lambda: Negated(WIDTH, 2, len(SHAPES), 2)), encoder_layer()
        plain.self_attn.output_proj.weight.neg_()
        plain.self_attn.output_proj.bias.neg_()
        torch.testing.assert_close(negated(*inputs()), plain(*inputs()))


def test_dropout_and_training_are_left_to_the_modules():
    layer = encoder_layer().train()
    with torch.no_grad():
        given = inputs()
        assert not torch.equal(layer(*given), layer(*given))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_attention_equals_pytorchs(padded, masked, together):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    ours = MultiheadAttention(WIDTH, 4)
    assert torch.equal(drawn, torch.rand(1)), "as many random numbers are drawn"
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    query, value = torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)
    key = query if together else torch.randn(2, 5, WIDTH)
    named = {"key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])} if padded else {}
    named |= {"attn_mask": torch.eye(5, dtype=torch.bool)} if masked else {}
    expected, weights = theirs(query, key, value, **named)
    torch.testing.assert_close(ours(query, key, value, **named)[0], expected)
    torch.testing.assert_close(ours(query, key, value, need_weights=True, **named), (expected, weights))
    with torch.no_grad():
        torch.testing.assert_close(ours(query, key, value, **named)[0], expected.detach())


def test_a_decoder_layer_answers_alike_with_hooks_and_without():
    torch.manual_seed(0)
    layer = DenseDecoderLayer(WIDTH, 2, 32).eval()
    memory = TokenSet(torch.randn(2, 9, WIDTH), torch.randn(2, 9, WIDTH), torch.zeros(2, 9, dtype=torch.bool))
    content, pos = torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        fused = layer(content, pos, memory, None)
        for module in layer.modules():
            module.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(fused, layer(content, pos, memory, None), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", [2, 4])
def test_a_sampling_that_nobody_asked_for_is_the_same(sides):
    torch.manual_seed(0)
    shapes, width = ((6, 8), (3, 4)), 32
    attention = MSDeformAttn(width, 4, 2)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(attention.attention_weights.weight, std=0.3)
    tokens = torch.randn(2, 60, width)
    memory = Pyramid(tokens, tokens, torch.zeros(2, 60, dtype=torch.bool), shapes, (shapes, shapes))
    query, reference = torch.randn(2, 7, width), torch.rand(2, 7, 2, sides)
    answer, sampling = attention(query, reference, memory)
    with torch.no_grad():
        alike, deferred = attention(query, reference, memory)
    torch.testing.assert_close(alike, answer.detach(), rtol=1e-4, atol=1e-5)
    assert type(sampling) is Sampling
    assert isinstance(deferred, Sampling)
    assert type(deferred.computed) is type(sampling.computed) is Sampling, "which can be copied field by field"
    torch.testing.assert_close(deferred.locations, sampling.locations.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deferred.weights, sampling.weights.detach(), rtol=1e-4, atol=1e-5)


CONVOLUTIONS = [(1, (2, 8, 5, 3)), (3, (2, 16, 9, 13)), (3, (1, 96, 50, 31)), (3, (2, 512, 18, 19))]
"""Sides of the kernel, and maps; the last ones' weights are too many to be packed at once."""


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(("size", "shape"), CONVOLUTIONS, ids=str)
def test_convolutions_equal_pytorchs(size, shape, activation, shortcut):
    torch.manual_seed(0)
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    channels, near = max(64, shape[1]), 1e-4 if shape[1] > 100 else 5e-5
    convolution = nn.Conv2d(shape[1], channels, size, padding=size // 2)
    with torch.no_grad():
        if not has_kernels(convolution, x):
            pytest.skip("the extension is not built (make ops), or has no kernels for this processor")
        residual = torch.randn(shape[0], channels, *shape[2:]) if shortcut else None
        expected = convolution.double()(x.double()) + (residual if shortcut else 0)
        convolution.float()
        layer = convolution.weight, convolution.bias
        found = convolve(x, *layer, residual, activation)
        one = convolve(x[:1], *layer, None if residual is None else residual[:1], activation)
        affine = torch.tensor([-0.5]), torch.tensor([0.25])
        scaled = convolve(x, *layer, residual, "relu", affine)
    assert found.is_contiguous(memory_format=torch.channels_last)
    activated = {None: expected, "relu": F.relu(expected), "silu": F.silu(expected)}[activation]
    torch.testing.assert_close(found.double(), activated, rtol=0, atol=near)
    torch.testing.assert_close(scaled.double(), F.relu(expected) * -0.5 + 0.25, rtol=0, atol=near)
    assert torch.equal(found[:1], one), "the same bits alone and in a batch"


def test_convolutions_depend_on_no_threads():
    x = torch.randn(1, 64, 41, 30).to(memory_format=torch.channels_last)
    convolution, threads, found = nn.Conv2d(64, 64, 3, padding=1), torch.get_num_threads(), []
    with torch.no_grad():
        if not has_kernels(convolution, x):
            pytest.skip("the extension is not built (make ops), or has no kernels for this processor")
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(convolve(x, convolution.weight, convolution.bias))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.Conv2d(64, 24, 3, padding=1),
        nn.Conv2d(64, 64, 1, stride=2),
        nn.Conv2d(64, 64, 1, padding=1),
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_pytorch(convolution):
    with torch.no_grad():
        assert not has_kernels(convolution, torch.randn(1, 64, 40, 40).to(memory_format=torch.channels_last))


def test_pointwise_convolutions_that_learn_and_all_that_are_looked_at_are_left_to_pytorch():
    x = torch.randn(1, 64, 40, 40).to(memory_format=torch.channels_last)
    assert not has_kernels(nn.Conv2d(64, 64, 1), x)
    assert not has_kernels(nn.Conv2d(64, 64, 3, padding=1).eval(), x)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("shape", [(2, 32, 9, 13), (1, 96, 50, 31), (9, 64, 20, 24)], ids=str)
def test_gradients_of_convolutions_equal_pytorchs(shape, rectify):
    torch.manual_seed(0)
    convolution, x = nn.Conv2d(shape[1], 64, 3, padding=1), torch.randn(shape).to(memory_format=torch.channels_last)
    if not has_kernels(convolution, x):
        pytest.skip("the extension is not built (make ops), or has no kernels for this processor")
    given = [x, convolution.weight, convolution.bias, torch.randn(shape[0], 64, *shape[2:])]
    given = [tensor.detach().requires_grad_() for tensor in given]
    found = convolve(*given, activation="relu" if rectify else None)
    grad = torch.randn(found.shape) * (found.abs() > 1e-3)  # beside the kink of a ReLU rounding decides
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    expected = F.conv2d(*exact[:3], padding=1) + exact[3]
    expected = F.relu(expected) if rectify else expected
    ours = torch.autograd.grad(found, given, grad, retain_graph=True)
    for our, right in zip(ours, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert (our.double() - right).norm() <= 1e-5 * right.norm()
    by_x, by_weight = torch.autograd.grad(found, given[:2], grad, create_graph=True)
    for our, again in zip(ours, (by_x, by_weight), strict=False):
        assert (our - again).norm() <= 1e-5 * our.norm()
    assert torch.autograd.grad((by_x**2).sum(), given[1])[0].isfinite().all(), "second derivatives"
    alone = torch.autograd.grad(convolve(*(tensor.detach() for tensor in given[:1]), *given[1:3]).sum(), given[1])
    assert alone[0].isfinite().all(), "maps without gradients"


def test_gradients_of_convolutions_depend_on_no_threads():
    x = torch.randn(3, 64, 41, 30, requires_grad=True)
    convolution, threads, found = nn.Conv2d(64, 64, 3, padding=1), torch.get_num_threads(), []
    if not has_kernels(convolution, x):
        pytest.skip("the extension is not built (make ops), or has no kernels for this processor")
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = convolve(x, convolution.weight, convolution.bias)
            found.append(torch.autograd.grad(y.square().sum(), (x, convolution.weight)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_convolutions_of_bfloat16_maps_are_as_near_as_pytorchs():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 40, 52).bfloat16().to(memory_format=torch.channels_last)
    convolution, residual = nn.Conv2d(64, 64, 3, padding=1), torch.randn(2, 64, 40, 52).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if not has_kernels(convolution, x):
            pytest.skip("the extension has no products of bfloat16 for this processor")
        found = convolve(x, convolution.weight, convolution.bias, residual, "relu")
        theirs = F.relu(convolution(x) + residual)
    with torch.no_grad():
        expected = F.relu(convolution.double()(x.double()) + residual.double())
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() <= 1.1 * (theirs.double() - expected).norm()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_that_drops_weights_is_attention(masked, monkeypatch):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, n, 8, requires_grad=True) for n in (5, 9, 9))
    blocked = torch.rand(5, 9) < 0.3 if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=None if blocked is None else ~blocked)
    monkeypatch.setattr("models.layers.attention.has_dropout", lambda *_: True)
    monkeypatch.setattr("models.layers.attention.drop", lambda weights, share: weights)
    torch.testing.assert_close(attend(query, key, value, blocked, 0.1), expected)


def test_linear_layers_are_pytorchs_to_whoever_asks():
    assert issubclass(Linear, nn.Linear)
    assert issubclass(MSDeformAttn, Projecting)
    torch.manual_seed(0)
    ours = Linear(3, 4)
    torch.manual_seed(0)
    theirs = nn.Linear(3, 4)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert repr(ours) == repr(theirs)
