"""Dropout: which numbers are dropped follows from seed and place alone, forward and backward, on every processor."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.layers.dropout import Dropout, add_dropped
from models.ops import linear as products
from models.ops.dropout import dropout, has_dropout
from tests.harness.processors import run_with_instructions

NEEDS_KERNELS = pytest.mark.skipif(
    not has_dropout(torch.zeros(1), 0.5), reason="the extension is not built (make ops), or not for this processor"
)
SEED = 0x0123456789ABCDEF
ROTATIONS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))


def threefry(counter, key):
    """Threefry-4x32 of 20 rounds, as Salmon et al. (2011) define it, on arrays of uint32."""
    keys = [np.uint32(k) for k in key]
    keys.append(np.uint32(0x1BD11BDA) ^ keys[0] ^ keys[1] ^ keys[2] ^ keys[3])
    x = [np.asarray(c, np.uint32) + k for c, k in zip(counter, keys, strict=False)]
    for round_ in range(20):
        for i, j, by in zip((0, 2), (1, 3) if round_ % 2 == 0 else (3, 1), ROTATIONS[round_ % 8], strict=True):
            x[i] = x[i] + x[j]
            x[j] = ((x[j] << np.uint32(by)) | (x[j] >> np.uint32(32 - by))) ^ x[i]
        if round_ % 4 == 3:
            turn = round_ // 4 + 1
            x = [v + keys[(turn + i) % 5] for i, v in enumerate(x)]
            x[3] = x[3] + np.uint32(turn)
    return x


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("word", "known"),
    [
        (0, (0x9C6CA96A, 0xE17EAE66, 0xFC10ECD4, 0x5256A7D8)),
        (0xFFFFFFFF, (0x2A881696, 0x57012287, 0xF6C7446E, 0xA16A6732)),
    ],
)
def test_the_generator_is_the_known_one(word, known):
    assert tuple(int(x[0]) for x in threefry([[word]] * 4, [word] * 4)) == known  # of the authors' kat_vectors


@NEEDS_KERNELS
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("count", [1, 63, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_dropped_follows_from_seed_and_place(count, dtype):
    torch.manual_seed(0)
    x, residual, share = torch.randn(count, dtype=dtype), torch.randn(count, dtype=dtype), 0.3
    blocks = np.arange(-(-count // 64) * 16, dtype=np.uint32)
    words = threefry([blocks, blocks * 0, blocks * 0, blocks * 0], [SEED & 0xFFFFFFFF, SEED >> 32, 0, 0])
    bits = np.stack(words).reshape(4, -1, 16).transpose(1, 0, 2).reshape(-1)[:count]
    kept = torch.from_numpy(bits >= int(share * 2**32))
    expected = torch.where(kept, x.float() / (1 - share), 0)
    torch.testing.assert_close(torch.ops.leandetr.dropout(x, None, share, SEED), expected.to(dtype))
    torch.testing.assert_close(
        torch.ops.leandetr.dropout(x, residual, share, SEED), (expected + residual.float()).to(dtype)
    )


@NEEDS_KERNELS
def test_as_many_are_dropped_as_asked():
    torch.manual_seed(1)
    x = torch.ones(400, 1000)
    for share in (0.1, 0.5):
        y = dropout(x, share)
        assert set(y.unique().tolist()) == {0, torch.tensor(1 / (1 - share)).item()}
        assert abs((y == 0).float().mean().item() - share) < 4 * (share * (1 - share) / x.numel()) ** 0.5
        assert not torch.equal(y, dropout(x, share)), "another call drops others"


@NEEDS_KERNELS
def test_gradients_drop_the_same():
    torch.manual_seed(0)
    x, residual = (torch.randn(3, 7, 11, requires_grad=True) for _ in range(2))
    y = dropout(x, 0.4, residual)
    grad = torch.randn_like(y, requires_grad=True)
    by_x, by_residual = torch.autograd.grad(y, (x, residual), grad, create_graph=True)
    scale = torch.where(y == residual, 0, 1 / 0.6)
    torch.testing.assert_close(by_x, grad * scale)
    assert torch.equal(by_residual, grad)
    torch.testing.assert_close(torch.autograd.grad(by_x.sum(), grad)[0], scale)
    with pytest.raises(RuntimeError, match="residual must be as x"):
        torch.ops.leandetr.dropout(x, residual[:2], 0.4, 1)


@NEEDS_KERNELS
def test_the_same_seed_gives_the_same_bits_by_any_number_of_threads_and_when_computed_anew():
    x, threads, found = torch.randn(64, 1000, requires_grad=True), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            found.append(dropout(x, 0.2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
    torch.manual_seed(3)
    again = checkpoint(lambda x: dropout(x, 0.2).exp(), x, use_reentrant=False)
    expected = torch.autograd.grad(found[0].exp().sum(), x)[0]
    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], expected)


@pytest.mark.parametrize("choice", [None, "pytorch"])
def test_a_module_is_pytorchs_to_whoever_asks(choice, monkeypatch):
    if choice:
        monkeypatch.setenv("LEANDETR_LINEAR", choice)
    products.linear_products.cache_clear()
    try:
        layer, x, residual = Dropout(0.5), torch.randn(50, 40), torch.randn(50, 40)
        assert isinstance(layer, torch.nn.Dropout)
        assert repr(layer) == repr(torch.nn.Dropout(0.5))
        dropped = layer(x)
        torch.testing.assert_close(torch.where(dropped == 0, x, dropped / 2), x)
        added = add_dropped(layer, x, residual) - residual
        assert 0.4 < (added.abs() < 1e-5).float().mean() < 0.6
        if choice:
            torch.manual_seed(5)
            dropped = layer(x)
            torch.manual_seed(5)
            assert torch.equal(dropped, F.dropout(x, 0.5)), "PyTorch's own numbers"
        seen = []
        layer.register_forward_hook(lambda *_: seen.append(1))
        add_dropped(layer, x, residual)
        assert seen == [1], "a hook is called"
        assert torch.equal(layer.eval()(x), x)
        assert torch.equal(add_dropped(layer, x, residual), residual + x)
    finally:
        products.linear_products.cache_clear()


SUM = """
import torch
from models.ops.dropout import has_dropout
x = torch.arange(1.0, 1001.0)
print(has_dropout(x, 0.3), (torch.ops.leandetr.dropout(x, None, 0.3, 77) > 0).nonzero().sum().item())
"""


@NEEDS_KERNELS
def test_lesser_processors_drop_the_same():
    said = [run_with_instructions(instructions, SUM) for instructions in ("avx512", "avx2")]
    assert said[0] == said[1]
    assert said[0].startswith("True")
