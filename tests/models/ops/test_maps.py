"""What is done to maps in one pass: activations, pools, norms folded into weights; and attention of projected rows."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.ops.attention import attend, has_attention
from models.ops.linear import INSTRUCTIONS
from models.ops.maps import HAS_KERNELS, activated, fold_norm, max_pool2d

TYPES = [torch.float32, torch.bfloat16]
NEEDS_BFLOAT16 = pytest.mark.skipif(torch.bfloat16 not in INSTRUCTIONS, reason="no products of bfloat16 here")


def maps(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TYPES)
def test_silu(dtype):
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, 1e30, -1e30, float("nan")])]).to(dtype)
    with torch.no_grad():
        found, exact = activated(x.clone(), "silu"), F.silu(x.double())
    assert found.dtype == dtype
    assert found[-1].isnan()
    near = 2**-8 if dtype == torch.bfloat16 else 4e-7
    torch.testing.assert_close(found[:-1].double(), exact[:-1], rtol=near, atol=2e-8)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_scaled_relu(dtype):
    x, affine = maps(2, 7, 5, 9, dtype=dtype), (torch.tensor([-1.5]), torch.tensor([0.25]))
    expected = affine[0] * F.relu(x) + affine[1]
    with torch.no_grad():
        found = activated(x.clone(memory_format=torch.preserve_format), "relu", affine)
    torch.testing.assert_close(
        found.float(), expected.float(), rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
    )


def test_with_gradients_activations_are_pytorchs():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    affine = torch.tensor([2.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    assert torch.equal(activated(x * 1, "silu"), F.silu(x))
    y = activated(x * 1, "relu", affine)
    assert torch.equal(y, affine[0] * F.relu(x) + affine[1])
    assert len(torch.autograd.grad(y.sum(), (x, *affine))) == 3
    assert activated(x, None) is x


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [(3, 2, 1), (2, 1, 0), (2, 2, 0), (3, 1, 1)], ids=str)
def test_pools_equal_pytorchs(window, dtype):
    x = maps(2, 32, 13, 10, dtype=dtype)
    x[0, 3, 4, 5], x[1, :, 0, 0] = float("nan"), -float("inf")
    with torch.no_grad():
        found = max_pool2d(x, *window)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, F.max_pool2d(x, *window), rtol=0, atol=0, equal_nan=True)
        few = maps(1, 5, 6, 6, dtype=dtype)
        assert torch.equal(max_pool2d(few, *window), F.max_pool2d(few, *window)), "channels that no kernel takes"


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 1, 5, 5), (3, 7, 1, 1)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_folded_norms(shape, last):
    torch.manual_seed(0)
    weight, norm = torch.randn(shape), nn.BatchNorm2d(shape[0])
    weight = weight.contiguous(memory_format=torch.channels_last) if last else weight
    for numbers in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(numbers, 0.5, 1.5)
    expected = fold_norm(weight, norm)
    with torch.no_grad():
        found, half = fold_norm(weight, norm), fold_norm(weight, norm, torch.bfloat16)
    assert found[0].stride() == weight.stride()
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right.detach(), rtol=1e-6, atol=1e-6)
    if HAS_KERNELS and INSTRUCTIONS:
        assert torch.equal(half[0], found[0].bfloat16())
    assert torch.equal(half[1], found[1])


def rows(batch, queries, keys, heads, dtype=torch.float32):
    torch.manual_seed(0)
    query, key, value = (torch.randn(batch, n, 32 * heads) for n in (queries, keys, keys))
    return query.to(dtype), key.to(dtype), value.to(dtype)


def by_pytorch(query, key, value, blocked, heads):
    parts = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = None if blocked is None else ~blocked[:, None, None]
    return F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2)


SIZES = [(2, 30, 37, 3), (1, 1, 1, 1), (1, 25, 300, 2), (1, 5, 600, 1)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention_equals_pytorchs(sizes, masked):
    query, key, value = rows(*sizes)
    blocked = torch.rand(sizes[0], sizes[2]) < 0.4 if masked else None
    if masked:
        blocked[:, 0] = False
    with torch.no_grad():
        if not has_attention(query, key, value, sizes[3]):
            pytest.skip("the extension is not built (make ops), or has no kernels for this processor")
        found = attend(query, key, value, blocked, sizes[3])
        torch.testing.assert_close(found.double(), by_pytorch(query, key, value, blocked, sizes[3]), rtol=0, atol=2e-6)
        wide = torch.cat([query, query], -1)[..., : query.shape[-1]]  # a part of wider rows
        assert torch.equal(found, attend(wide, key, value, blocked, sizes[3]))
        alone = attend(query[:1], key[:1], value[:1], None if blocked is None else blocked[:1], sizes[3])
        assert torch.equal(found[:1], alone), "the same bits alone and in a batch"


def test_attention_depends_on_no_threads():
    query, key, value = rows(2, 70, 90, 4)
    threads, found = torch.get_num_threads(), []
    with torch.no_grad():
        if not has_attention(query, key, value, 4):
            pytest.skip("the extension is not built (make ops), or has no kernels for this processor")
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(attend(query, key, value, None, 4))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


@NEEDS_BFLOAT16
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention_in_bfloat16_is_as_near_as_pytorchs(sizes):
    query, key, value = rows(*sizes, dtype=torch.bfloat16)
    exact = by_pytorch(query, key, value, None, sizes[3])
    parts = (x.unflatten(-1, (sizes[3], -1)).transpose(1, 2) for x in (query, key, value))
    with torch.no_grad():
        theirs = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        assert has_attention(query, key, value, sizes[3])
        found = attend(query, key, value, None, sizes[3])
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() <= 1.5 * (theirs.double() - exact).norm() + 1e-6


def test_attention_of_other_heads_is_left_to_pytorch():
    query, key, value = rows(1, 4, 4, 1)
    assert not has_attention(query, key, value, 1), "with gradients"
    with torch.no_grad():
        assert not has_attention(query, key, value, 2)
        assert not has_attention(query, key[:, :0], value[:, :0], 1)
        assert not has_attention(query.double(), key.double(), value.double(), 1)
