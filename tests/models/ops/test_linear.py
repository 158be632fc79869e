"""Linear layers by the extension's kernels: equal to PyTorch's, in every bit independent of how the work is divided."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.ops import linear as products
from models.ops.linear_operators import operators
from tests.harness.processors import run_with_instructions
from util.measuring.flops import CONVENTION

SHAPES = ((1, 1, 1), (13, 37, 70), (130, 256, 91), (25, 300, 32), (12, 16, 4), (400, 600, 33), (0, 8, 8))
"""(rows, depth, columns): fewer and more than a tile, a panel and a block hold, and none at all."""
NEEDS_KERNELS = pytest.mark.skipif(
    not products._has_kernels(), reason="the extension is not built (make ops), or has no kernels for this processor"
)
NEEDS_BFLOAT16 = pytest.mark.skipif(
    torch.bfloat16 not in products.INSTRUCTIONS,
    reason="the extension is not built (make ops), or this processor has no AVX512-BF16",
)


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch):
    """What a test says in LEANDETR_LINEAR is read, and forgotten afterwards."""
    monkeypatch.delenv("LEANDETR_LINEAR", raising=False)
    products.linear_products.cache_clear()
    yield
    products.linear_products.cache_clear()


def layer(rows, depth, columns, dtype=torch.float32):
    torch.manual_seed(rows + depth + columns)
    x, weight, bias, residual = (
        torch.randn(size, dtype=torch.float64)
        for size in ((rows, depth), (columns, depth), (columns,), (rows, columns))
    )
    return tuple(t.to(dtype) for t in (x, weight / depth**0.5, bias, residual))


def exact(activation, x, weight, bias=None, residual=None):
    """In float64."""
    x, weight, bias, residual = (t if t is None else t.double() for t in (x, weight, bias, residual))
    y = F.linear(x, weight, bias)
    y = y if residual is None else y + residual
    return {"none": lambda v: v, "relu": F.relu, "gelu": F.gelu}[activation](y)


def assert_near(ours, right, tolerance=2e-6):
    assert ours.shape == right.shape
    if right.numel():
        assert (ours.double() - right).abs().max() <= tolerance * max(1, right.abs().max())


@NEEDS_KERNELS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_equals_pytorch(shape, activation):
    x, weight, bias, residual = layer(*shape)
    with torch.no_grad():
        assert products.kernel_dtype(x, weight, bias) == torch.float32
        assert_near(products.linear(x, weight, bias, activation), exact(activation, x, weight, bias))
        assert_near(products.linear(x, weight, None, activation), exact(activation, x, weight))
        ours = products.linear(x, weight, bias, activation, residual)
        assert_near(ours, exact(activation, x, weight, bias, residual))


@NEEDS_KERNELS
def test_takes_any_strides_and_batches():
    x, weight, bias, _ = layer(24, 40, 48)
    right = exact("none", x, weight, bias).view(2, 3, 4, 48)
    assert_near(products.linear(x.view(2, 3, 4, 40), weight, bias), right)
    assert_near(products.linear(x.T.contiguous().T.view(24, 40), weight.T.contiguous().T, bias), right.view(24, 48))


@NEEDS_KERNELS
def test_what_is_not_a_number_stays_so():
    x, weight, bias, _ = layer(13, 37, 70)
    x[3, 5] = torch.nan
    for activation in ("none", "relu", "gelu"):
        with torch.no_grad():
            y = products.linear(x, weight, bias, activation)
        assert y[3].isnan().all()
        assert torch.cat([y[:3], y[4:]]).isfinite().all()


@NEEDS_KERNELS
def test_bits_depend_on_neither_neighbours_nor_threads():
    x, weight, bias, _ = layer(400, 600, 65)
    grad = torch.randn(400, 65)
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = operators.linear(x, weight, bias, None, 1, torch.float32)
            part = operators.linear(x[77:200], weight, bias, None, 1, torch.float32)
            assert torch.equal(y[77:200], part)
            answers.append((y, *operators.linear_backward(grad, x, weight, y, [True] * 3)))
    finally:
        torch.set_num_threads(threads)
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


@NEEDS_KERNELS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_gradients_equal_pytorch(shape, activation):
    x, weight, bias, grad = layer(*shape)
    given = [t.requires_grad_() for t in (x, weight, bias)]
    right = [t.detach().double().requires_grad_() for t in given]
    y = products.linear(*given, activation)
    assert_near(y.detach(), exact(activation, *given).detach())
    found = torch.autograd.grad(y, given, grad)
    # Where a ReLU is a rounding away from its kink, PyTorch's float32 would have either gradient, too.
    far = exact("none", *given).abs() > 1e-6 if activation == "relu" else torch.ones_like(grad, dtype=torch.bool)
    assert bool(far.all())
    expected = torch.autograd.grad(exact(activation, *right), right, grad.double())
    for ours, gradient in zip(found, expected, strict=True):
        assert_near(ours, gradient, 1e-5)


@NEEDS_KERNELS
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_tensors_get_no_gradient(frozen):
    given = [t.requires_grad_(i != frozen) for i, t in enumerate(layer(30, 20, 40)[:3])]
    products.linear(*given, "relu").sum().backward()
    assert [t.grad is None for t in given] == [i == frozen for i in range(3)]


@NEEDS_KERNELS
def test_second_derivatives_equal_pytorch():
    def penalty(function, x, weight, bias):
        (grad,) = torch.autograd.grad(function(x, weight, bias).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, weight, bias))

    given = [t.requires_grad_() for t in layer(13, 37, 40)[:3]]
    ours = penalty(lambda *args: products.linear(*args, "relu"), *given)
    theirs = penalty(lambda *args: F.relu(F.linear(*args)), *given)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@NEEDS_KERNELS
@pytest.mark.parametrize(("rows", "width", "hidden"), [(1, 8, 4), (130, 256, 1024), (50, 40, 33), (0, 8, 8)])
def test_layers_with_norms_equal_pytorch(rows, width, hidden):
    x, first, bias1, _ = layer(rows, width, hidden)
    _, second, bias2, _ = layer(1, hidden, width)
    residual, norm = torch.randn(rows, width), nn.LayerNorm(width)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    double = nn.LayerNorm(width).double()
    double.load_state_dict(norm.state_dict())
    with torch.no_grad():
        between = exact("relu", x, first, bias1)
        assert_near(
            products.feed_forward(x, (first, second), (bias1, bias2), norm),
            double(x.double() + F.linear(between, second.double(), bias2.double())),
            1e-5,
        )
        ours = products.linear_norm(between.float(), second, bias2, residual, norm)
        assert_near(ours, double(exact("none", between.float(), second, bias2, residual=residual)), 1e-5)


@NEEDS_BFLOAT16
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_equals_pytorch(shape):
    x, weight, bias, residual = layer(*shape)
    rounded = [t.bfloat16().double() for t in (x, weight)]
    right = exact("relu", *rounded, bias, residual=residual)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = products.linear(x, weight, bias, "relu", residual=residual)
        assert ours.dtype == torch.bfloat16
        assert_near(ours, right, 5e-3)
        assert torch.equal(ours, products.linear(x.bfloat16(), weight, bias, "relu", residual=residual))
    with torch.no_grad():
        half = [t.bfloat16() for t in (x, weight, bias)]
        assert_near(products.linear(*half), exact("none", *half), 5e-3)


@NEEDS_BFLOAT16
def test_norms_are_float32_under_autocast():
    x, first, bias1, _ = layer(60, 64, 128)
    _, second, bias2, _ = layer(1, 128, 64)
    norm = nn.LayerNorm(64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = products.feed_forward(x, (first, second), (bias1, bias2), norm)
        theirs = norm(x + F.linear(F.relu(F.linear(x, first, bias1)), second, bias2))
        assert ours.dtype == theirs.dtype == torch.float32
    assert_near(ours, theirs.double(), 2e-2)


@NEEDS_KERNELS
def test_whoever_traces_sees_an_ordinary_layer():
    x, weight, bias, _ = layer(4, 8, 16)

    class Layer(nn.Module):
        def forward(self, x):
            return products.linear(x, weight, bias, "relu")

    program = torch.export.export(Layer(), (x,))
    assert not any("leandetr" in str(node.target) for node in program.graph.nodes)
    assert "leandetr" not in str(torch.jit.trace(Layer(), x).graph)
    assert products.kernel_dtype(x.to("meta"), weight.to("meta")) is None
    assert products.kernel_dtype(x.double(), weight.double()) is None
    assert products.kernel_dtype(x, weight.double()) is None
    torch.testing.assert_close(torch.func.vmap(Layer())(x), Layer()(x))
    tangent = torch.func.jvp(Layer(), (x,), (x,))[1]
    torch.testing.assert_close(tangent, F.linear(x, weight) * (Layer()(x) > 0))


@NEEDS_KERNELS
def test_costs_as_much_as_pytorchs(monkeypatch):
    x, first, bias1, _ = layer(10, 8, 16)
    _, second, bias2, _ = layer(1, 16, 8)
    norm = nn.LayerNorm(8)

    def count(choice, function):
        monkeypatch.setenv("LEANDETR_LINEAR", choice)
        products.linear_products.cache_clear()
        with FlopCounterMode(display=False, custom_mapping=CONVENTION) as counter:
            function()
        return counter.get_total_flops()

    def infer():
        with torch.no_grad():
            products.linear(x, first, bias1)
            products.linear_norm(torch.ones(10, 16), second, bias2, x, norm)
            products.feed_forward(x, (first, second), (bias1, bias2), norm)

    def train():
        given = [t.detach().requires_grad_() for t in (x, first, bias1)]
        products.linear(*given).sum().backward()

    for function in (infer, train):
        assert count("kernels", function) == count("pytorch", function) > 0


def test_a_wish_is_granted_or_refused(monkeypatch):
    monkeypatch.setenv("LEANDETR_LINEAR", "pytorch")
    assert products.linear_products() == "pytorch"
    assert products.describe_products() == "PyTorch's own"
    x, weight, bias, _ = layer(5, 6, 7)
    assert torch.equal(products.linear(x, weight, bias), F.linear(x, weight, bias))
    products.linear_products.cache_clear()
    monkeypatch.setenv("LEANDETR_LINEAR", "mlk")
    with pytest.raises(products.ProductsError, match="LEANDETR_LINEAR='mlk': here are .*pytorch"):
        products.linear_products()


@pytest.mark.parametrize("slow", [True, False])
def test_without_the_extension_onednn_serves_where_mkl_is_slow(monkeypatch, slow):
    monkeypatch.setattr(products, "_has_kernels", lambda: False)
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: slow)
    expected = "onednn" if slow and products._has_onednn() else "pytorch"
    assert products.linear_products() == expected
    x, weight, bias, residual = layer(50, 40, 30)
    with torch.no_grad():
        for activation in ("none", "relu", "gelu"):
            assert_near(products.linear(x, weight, bias, activation), exact(activation, x, weight, bias))
            ours = products.linear(x, weight, bias, activation, residual=residual)
            assert_near(ours, exact(activation, x, weight, bias, residual=residual))
    assert products.linear(x, weight.requires_grad_(), bias).requires_grad


LESSER = """
import torch
from models.ops import linear as products
from models.ops.convolution import convolve_3x3, has_winograd
from models.ops.linear_operators import operators
torch.manual_seed(0)
print(operators.product_instructions(torch.float32) or "none", products.linear_products())
for rows, depth, columns in ((13, 37, 70), (130, 256, 91)):
    x, weight, bias = torch.randn(rows, depth), torch.randn(columns, depth), torch.randn(columns)
    given = [t.requires_grad_() for t in (x, weight, bias)]
    right = [t.detach().double().requires_grad_() for t in given]
    y, expected = products.linear(*given, "relu"), torch.relu(torch.nn.functional.linear(*right))
    pairs = zip((y, *torch.autograd.grad(y.sum(), given)), (expected, *torch.autograd.grad(expected.sum(), right)))
    print(max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs) < 1e-5)
x, weight, bias = torch.randn(1, 48, 21, 34), torch.randn(64, 48, 3, 3), torch.randn(64)
with torch.no_grad():
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    serves = has_winograd(x, weight)
    print(not serves or ((convolve_3x3(x, weight, bias) - expected).abs().max() < 1e-3).item(), serves)
"""


@NEEDS_KERNELS
@pytest.mark.parametrize(("asked", "said"), [("avx2", "AVX2 kernels"), ("baseline", "none ")])
def test_lesser_processors(asked, said):
    first, *agree = run_with_instructions(asked, LESSER).splitlines()
    assert first.startswith(said)
    assert agree == ["True", "True", f"True {asked == 'avx2'}"]
