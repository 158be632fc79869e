"""The op: every backend against the definition in plain PyTorch."""

import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from models.ops import available_backends, key_aware_deform_attn, ms_deform_attn, reference
from models.ops.library import OPERATIONS
from models.ops.ms_deform_attn import fits_card
from tests.harness.processors import run_with_instructions

dispatch = importlib.import_module("models.ops.ms_deform_attn")  # its function has taken the name
COMPILED = [name for name in available_backends() if name != "reference"]
DEVICE = {"cpu": "cpu", "cuda": "cuda", "reference": "cpu"}
needs_extension = pytest.mark.skipif(not COMPILED, reason="the extension is not built (make ops)")


def problem(shapes, N=2, Q=5, M=2, D=8, P=3, dtype=torch.float32, device="cpu", spread=0.4):
    """Random arguments: query, key, value, locations (some outside), weights."""
    S, L = sum(h * w for h, w in shapes), len(shapes)
    wide = torch.promote_types(dtype, torch.float32)
    query, key, value = (torch.randn(N, n, M, D, dtype=dtype, device=device) for n in (Q, S, S))
    locations = torch.rand(N, Q, M, L, P, 2, dtype=wide, device=device) * (1 + 2 * spread) - spread
    weights = torch.rand(N, Q, M, L, P, dtype=wide, device=device)
    return query, key, value, locations, weights


def bilinear(value, shapes, locations):
    """(N, Q, M, L, P, D), one sample at a time, by the definition: zero outside, pixel centres at (i + 0.5) / size."""
    N, Q, M, L, P, _ = locations.shape
    answer = torch.zeros(N, Q, M, L, P, value.shape[-1], dtype=torch.float64)
    start = 0
    for level, (h, w) in enumerate(shapes):
        for n, q, m, p in torch.cartesian_prod(*(torch.arange(k) for k in (N, Q, M, P))).tolist():
            x, y = (locations[n, q, m, level, p].double() * torch.tensor([w, h]) - 0.5).tolist()
            for row in (int(y // 1), int(y // 1) + 1):
                for column in (int(x // 1), int(x // 1) + 1):
                    if 0 <= row < h and 0 <= column < w:
                        share = (1 - abs(y - row)) * (1 - abs(x - column))
                        answer[n, q, m, level, p] += share * value[n, start + row * w + column, m].double()
        start += h * w
    return answer


def test_the_definition():
    torch.manual_seed(0)
    shapes = ((3, 4), (2, 1))
    query, _, value, locations, weights = problem(shapes, dtype=torch.float64)
    samples = bilinear(value, shapes, locations)
    plain = (samples * weights[..., None]).sum((3, 4)).flatten(2)
    torch.testing.assert_close(ms_deform_attn(value, shapes, locations, weights, backend="reference"), plain)
    flat = samples.flatten(3, 4)
    logits = (flat * query[:, :, :, None]).sum(-1) / 8**0.5
    aware = (flat * logits.softmax(-1)[..., None]).sum(3).flatten(2)
    torch.testing.assert_close(key_aware_deform_attn(query, value, value, shapes, locations, "reference"), aware)


def gradients(function, *inputs):
    """The answer and its gradients by every input, for a fixed direction."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    answer = function(*inputs)
    direction = torch.linspace(-1, 1, answer.numel(), device=answer.device).view(answer.shape).to(answer.dtype)
    return answer, *torch.autograd.grad(answer, inputs, direction)


def assert_equal(ours, reference, tolerance):
    """Relative to the largest number of each tensor, or to a tenth where all cancel out: inputs are about 1."""
    for a, b in zip(ours, reference, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        largest = b.abs().max().item() if b.numel() else 0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * max(0.1, largest))


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
CASES = st.fixed_dictionaries(
    {
        "shapes": st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4).map(tuple),
        "N": st.integers(1, 3),
        "Q": st.integers(0, 6),
        "M": st.integers(1, 3),
        "D": st.sampled_from((4, 8, 12, 16, 32, 64)),
        "P": st.integers(1, 5),
        "spread": st.sampled_from((0.0, 0.4, 30.0)),
    }
)


@needs_extension
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(max_examples=25)
@given(case=CASES, seed=st.integers(0, 99))
def test_compiled_backends_equal_the_reference(dtype, case, seed):
    shapes = case["shapes"]
    for backend in COMPILED:
        if backend == "cuda" and dtype == torch.float64:
            continue  # GPUs compute that in plain PyTorch
        torch.manual_seed(seed)
        query, key, value, locations, weights = problem(dtype=dtype, device=DEVICE[backend], **case)

        def plain(v, x, w, backend=backend):
            return ms_deform_attn(v, shapes, x, w, backend)

        def aware(q, k, v, x, backend=backend):
            return key_aware_deform_attn(q, k, v, shapes, x, backend)

        def shared(q, v, x, backend=backend):
            return key_aware_deform_attn(q, v, v, shapes, x, backend)

        for function, inputs in (
            (plain, (value, locations, weights)),
            (aware, (query, key, value, locations)),
            (shared, (query, value, locations)),
        ):
            ours = gradients(function, *inputs)
            theirs = gradients(lambda *x, f=function: f(*x, backend="reference"), *inputs)
            assert_equal(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "cuda"])
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_first_and_second_derivatives(backend, check):
    torch.manual_seed(0)
    shapes = ((3, 4), (1, 1))
    query, key, value, locations, weights = (
        x.requires_grad_() for x in problem(shapes, N=1, Q=3, D=4, P=2, dtype=torch.float64)
    )
    assert check(lambda v, x, w: ms_deform_attn(v, shapes, x, w, backend), (value, locations, weights))
    assert check(lambda q, k, v, x: key_aware_deform_attn(q, k, v, shapes, x, backend), (query, key, value, locations))
    assert check(lambda q, v, x: key_aware_deform_attn(q, v, v, shapes, x, backend), (query, value, locations))


@needs_extension
def test_third_derivatives():
    shapes = ((3, 4), (1, 1))
    _, _, value, locations, weights = problem(shapes, dtype=torch.float64)
    found = []
    for backend in ("reference", "cpu"):
        weights = weights.detach().requires_grad_()
        answer = ms_deform_attn(value, shapes, locations, weights.exp(), backend).square().sum()
        (first,) = torch.autograd.grad(answer, weights, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(3).sum(), weights, create_graph=True)
        found += torch.autograd.grad(second.square().sum(), weights)
    torch.testing.assert_close(*found)


@needs_extension
def test_forward_mode_derivatives_are_right_or_refused():
    """An operator of a library would drop them without a word."""
    shapes = ((3, 4), (1, 1))
    query, _, value, locations, weights = problem(shapes, dtype=torch.float64)
    change = torch.randn_like(weights)
    expected = ms_deform_attn(value, shapes, locations, change)  # linear in the weights
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weights, change)
        answer = ms_deform_attn(value, shapes, locations, dual)
        torch.testing.assert_close(forward_ad.unpack_dual(answer).tangent, expected)
        for backend in COMPILED:
            with pytest.raises(ValueError, match="no forward-mode derivatives"):
                ms_deform_attn(value, shapes, locations, dual, backend)
            with pytest.raises(ValueError, match="no forward-mode derivatives"):
                key_aware_deform_attn(forward_ad.make_dual(query, query), value, value, shapes, locations, backend)

    def function(w):
        return ms_deform_attn(value, shapes, locations, w)

    torch.testing.assert_close(torch.func.jvp(function, (weights,), (change,))[1], expected)
    by_weights = torch.func.grad(lambda w: function(w).square().sum())(weights)
    leaf = weights.clone().requires_grad_()
    torch.testing.assert_close(by_weights, *torch.autograd.grad(function(leaf).square().sum(), leaf))


@pytest.mark.parametrize(
    ("shapes", "tokens"), [(((0, 3), (-2, -2)), 4), (((2, 2), (0, 5)), 4), (((-1, -4),), 4), ((), 0)], ids=str
)
@pytest.mark.parametrize("backend", ["auto", *available_backends()])
def test_levels_without_area_are_refused(backend, shapes, tokens):
    value = torch.rand(1, tokens, 2, 8)
    locations, weights = torch.rand(1, 3, 2, len(shapes), 2, 2), torch.rand(1, 3, 2, len(shapes), 2)
    with pytest.raises(ValueError, match="1x1 or more"):
        ms_deform_attn(value, shapes, locations, weights, backend)
    with pytest.raises(ValueError, match="1x1 or more"):
        key_aware_deform_attn(torch.rand(1, 3, 2, 8), value, value, shapes, locations, backend)


@needs_extension
def test_operators_refuse_levels_without_area():
    """Programs that were compiled or exported call them by themselves."""
    _, _, value, locations, weights = problem(((2, 2), (1, 1)))
    with pytest.raises(RuntimeError, match="has no area"):
        torch.ops.leandetr.ms_deform_attn(value, [-2, -2, 1, 1], locations, weights)


@pytest.mark.parametrize("backend", ["auto", *available_backends()])
def test_other_devices_and_whole_numbers_are_refused(backend):
    shapes = ((3, 4), (1, 1))
    query, _, value, locations, weights = problem(shapes)
    for index in range(3):
        inputs = [value, locations, weights]
        for spoilt, message in ((inputs[index].to("meta"), "is on"), (inputs[index].long(), "floating-point")):
            inputs[index] = spoilt
            with pytest.raises(ValueError, match=message):
                ms_deform_attn(inputs[0], shapes, *inputs[1:], backend)
    for spoilt, message in ((query.to("meta"), "is on"), (query.int(), "floating-point")):
        with pytest.raises(ValueError, match=message):
            key_aware_deform_attn(spoilt, value, value, shapes, locations, backend)
    with pytest.raises(ValueError, match="hold no sample"):
        ms_deform_attn(value, shapes, locations[..., :0, :], weights[..., :0], backend)


def test_kernels_are_for_cards_of_their_own_generation_and_with_ptx_for_later_ones():
    default = "8.0;8.6;8.9;9.0+PTX"
    assert [fits_card(default, card) for card in ((7, 0), (7, 5))] == [False, False]  # V100, T4
    assert all(fits_card(default, card) for card in ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0)))
    assert not fits_card("8.0", (9, 0))
    assert not fits_card("8.6", (8, 0))
    assert fits_card("9.0a 7.5", (7, 5))
    assert fits_card("Ampere", (8, 0))


def test_a_card_that_the_kernels_are_not_for_gets_plain_pytorch_and_a_line(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "FIT_CARDS", {})
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", dispatch._compiled("cuda", (torch.float32,)))
    monkeypatch.setattr(dispatch, "cuda_architectures", lambda: "8.0;8.6;8.9;9.0+PTX")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert "cuda" not in available_backends()
    assert "cuda" not in available_backends()
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(
        "Tesla T4 has compute capability 7.5, the CUDA kernels are for 8.0;8.6;8.9;9.0+PTX: using plain"
    )
    assert "`make clean ops`" in line
    dispatch.FIT_CARDS.clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
    assert "cuda" in available_backends()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("capability", [(8, 6), (7, 5)])
@pytest.mark.usefixtures("compiler")
def test_whether_a_card_is_fit_is_asked_while_compiling_and_not_traced(monkeypatch, capability):
    def ask(index):
        assert not torch.compiler.is_dynamo_compiling()
        return capability

    monkeypatch.setattr(dispatch, "FIT_CARDS", {})
    monkeypatch.setattr(dispatch, "cuda_architectures", lambda: "8.0+PTX")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", ask)
    x = torch.ones(2)
    compiled = torch.compile(lambda x: x + dispatch._runs_on(0), fullgraph=True, backend="eager")
    assert compiled(x).equal(x + (capability == (8, 6)))
    assert len(dispatch.FIT_CARDS) == 1


@needs_extension
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e30, 1e30])
def test_wild_locations_are_outside(bad):
    shapes = ((4, 5), (2, 2))
    for backend in COMPILED:
        query, _, value, locations, weights = problem(shapes, device=DEVICE[backend])
        locations[0, 0] = bad
        answer, *grads = gradients(
            lambda v, x, w, b=backend: ms_deform_attn(v, shapes, x, w, b), value, locations, weights
        )
        assert answer[0, 0].eq(0).all()
        assert all(grad.isfinite().all() for grad in grads)
        answer, *grads = gradients(
            lambda q, v, x, b=backend: key_aware_deform_attn(q, v, v, shapes, x, b), query, value, locations
        )
        assert answer[0, 0].eq(0).all()
        assert all(grad.isfinite().all() for grad in grads)


@needs_extension
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("queries", [2, 200])
def test_values_that_are_no_numbers_do_not_reach_samples_outside(bad, queries):
    """Few queries read the values where they are, many read copies."""
    shapes = ((4, 5), (2, 2))
    for backend in COMPILED:
        query, key, value, locations, weights = problem(shapes, Q=queries, device=DEVICE[backend])
        value[:] = key[:] = bad
        locations[:, ::2] = -1.5
        locations[:, 1::2] = 2.0
        answer, *grads = gradients(
            lambda v, x, w, b=backend: ms_deform_attn(v, shapes, x, w, b), value, locations, weights
        )
        assert all(x.eq(0).all() for x in (answer, *grads))
        for function, inputs in (
            (lambda q, v, x, b=backend: key_aware_deform_attn(q, v, v, shapes, x, b), (query, value, locations)),
            (
                lambda q, k, v, x, b=backend: key_aware_deform_attn(q, k, v, shapes, x, b),
                (query, key, value, locations),
            ),
        ):
            answer, *grads = gradients(function, *inputs)
            assert all(x.eq(0).all() for x in (answer, *grads))


OFFSETS = """
import torch
from models.ops import ms_deform_attn
from models.ops.library import ms_deform_attn_of_offsets
torch.manual_seed(0)
for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
    for sides in (2, 4):
        for N, Q, M, D, P, shapes in ((2, 50, 2, 8, 3, ((3, 4), (2, 1))), (1, 5, 8, 32, 4, ((9, 7), (5, 4), (3, 2)))):
            wide = torch.promote_types(dtype, torch.float32)
            L, S = len(shapes), sum(h * w for h, w in shapes)
            value, offsets = torch.randn(N, S, M, D).to(dtype), torch.randn(N, Q, M, L, P, 2).to(dtype)
            logits, reference = torch.randn(N, Q, M, L, P).to(dtype), torch.rand(N, Q, L, sides, dtype=wide)
            apart = reference[:, :, None, :, None]
            if sides == 2:
                places = apart + offsets.to(wide) / torch.tensor([(w, h) for h, w in shapes], dtype=wide)[:, None]
            else:
                places = apart[..., :2] + offsets.to(wide) / P * apart[..., 2:] * 0.5
            weights = logits.to(wide).flatten(3).softmax(-1).view(logits.shape)
            found = ms_deform_attn_of_offsets(value, shapes, offsets, logits, reference)
            expected = ms_deform_attn(value, shapes, places, weights)
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
print("alike")
"""


@needs_extension
@pytest.mark.parametrize("instructions", ["avx512", "avx2", "baseline"])
def test_offsets_and_logits_give_what_locations_and_weights_give(instructions):
    assert run_with_instructions(instructions, OFFSETS) == "alike\n"


@needs_extension
@pytest.mark.parametrize("instructions", ["avx512", "avx2", "baseline"])
def test_next_to_whole_pixels(instructions):
    """In a process of its own, since each chooses its instructions once."""
    command = [sys.executable, "-m", "tests.harness.whole_pixels"]
    environment = os.environ | {"LEANDETR_CPU": instructions, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 numbers wrong") == 3


@needs_extension
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_logits_of_any_size_are_weighed(dtype):
    """Of several hundred and of less than minus several hundred: e to neither is a number."""
    torch.manual_seed(0)
    shapes = ((4, 5), (2, 2))
    for backend in COMPILED:
        if backend == "cuda" and dtype == torch.float64:
            continue
        query, key, value, locations, _ = problem(shapes, P=3, spread=0.0, dtype=dtype, device=DEVICE[backend])
        query, key = 4000 * query.abs(), key.abs()
        for sign in (1, -1):
            answers = [
                key_aware_deform_attn(query, sign * key, value, shapes, locations, name)
                for name in (backend, "reference")
            ]
            assert_equal(answers[:1], answers[1:], max(1e-3, TOLERANCE[dtype]))


@needs_extension
def test_a_query_that_is_not_a_number_gives_an_answer_that_is_none():
    """A softmax that cut its arguments off would hide it."""
    shapes = ((4, 5), (2, 2))
    for backend in COMPILED:
        query, key, value, locations, _ = problem(shapes, P=2, spread=0.0, device=DEVICE[backend])
        query[0, 0] = float("nan")
        for keys in (value, key):
            answer = key_aware_deform_attn(query, keys, value, shapes, locations, backend)
            assert answer[0, 0].isnan().all()
            assert answer[0, 1:].isfinite().all()


def test_operators_keep_their_contract():
    """Schemas, fake kernels and autograd registration, as torch.library checks them."""
    if not COMPILED:
        pytest.skip("the extension is not built (make ops)")
    query, key, value, locations, weights = problem(((3, 4), (2, 2)))
    flat = [3, 4, 2, 2]
    value.requires_grad_()
    torch.library.opcheck(torch.ops.leandetr.ms_deform_attn, (value, flat, locations, weights))
    torch.library.opcheck(torch.ops.leandetr.key_aware_deform_attn, (query, key, value, flat, locations))
    torch.library.opcheck(torch.ops.leandetr.key_aware_deform_attn, (query, None, value, flat, locations))


def test_shapes_may_be_a_tensor_and_inputs_strided():
    _, _, value, locations, weights = problem(((3, 4), (1, 1)))
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    answer = ms_deform_attn(strided, torch.tensor([[3, 4], [1, 1]]), locations, weights)
    torch.testing.assert_close(answer, reference.ms_deform_attn(value, ((3, 4), (1, 1)), locations, weights))


@needs_extension
def test_gradients_of_any_layout():
    """That of a sum is one number in memory, that of a transposed answer is transposed."""
    shapes = ((3, 4), (2, 2))
    query, key, value, locations, weights = problem(shapes)
    direction = torch.randn(16, 5, 2)
    for backend, reduced in itertools.product(
        COMPILED, (Tensor.sum, lambda x: (x.permute(2, 1, 0) * direction.to(x)).sum())
    ):
        grads = []
        for name in (backend, "reference"):
            inputs = [x.to(DEVICE[name]).requires_grad_() for x in (query, key, value, locations, weights)]
            answers = (
                ms_deform_attn(inputs[2], shapes, inputs[3], inputs[4], name),
                key_aware_deform_attn(*inputs[:3], shapes, inputs[3], name),
            )
            grads.append([x.cpu() for answer in answers for x in torch.autograd.grad(reduced(answer), inputs[2:4])])
        assert_equal(*grads, 1e-5)


@pytest.mark.parametrize("size", [{"D": 6}, {"P": 65}], ids=str)
def test_what_the_kernels_cannot_take_falls_to_the_reference(size):
    _, _, value, locations, weights = problem(((3, 4), (1, 1)), **size)
    assert ms_deform_attn(value, ((3, 4), (1, 1)), locations, weights).shape == (2, 5, 2 * value.shape[-1])
    for backend in COMPILED:
        with pytest.raises(ValueError, match="cannot take"):
            ms_deform_attn(value, ((3, 4), (1, 1)), locations, weights, backend)


def test_operations_are_counted_one_by_one():
    """Of a sample 14 for its place and 6 for a softmax; of each of its numbers 8 to sample it, 2 to weigh or ask it."""
    shapes = ((3, 4), (1, 1))
    query, key, value, locations, weights = (x.to("meta") for x in problem(shapes))
    samples, numbers = weights.numel(), weights.numel() * value.shape[-1]
    for attention, expected in (
        (lambda: ms_deform_attn(value, shapes, locations, weights), 14 * samples + (8 + 2) * numbers),
        (lambda: key_aware_deform_attn(query, value, value, shapes, locations), 20 * samples + (8 + 2 + 2) * numbers),
        (lambda: key_aware_deform_attn(query, key, value, shapes, locations), 20 * samples + (8 + 8 + 2 + 2) * numbers),
    ):
        with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
            attention()
        assert counter.get_total_flops() == expected


def test_meta_tensors_have_shapes():
    query, key, value, locations, weights = (x.to("meta") for x in problem(((3, 4), (1, 1))))
    assert ms_deform_attn(value, ((3, 4), (1, 1)), locations, weights).shape == (2, 5, 16)
    assert key_aware_deform_attn(query, key, value, ((3, 4), (1, 1)), locations).shape == (2, 5, 16)


@needs_extension
def test_a_key_that_shares_the_values_memory_has_a_gradient_of_its_own():
    shapes = ((3, 4), (1, 1))
    query, _, value, locations, _ = problem(shapes, dtype=torch.float64)
    grads = []
    for backend in ("cpu", "reference"):
        leaf = value.clone().requires_grad_()
        key_aware_deform_attn(query, leaf.detach(), leaf, shapes, locations, backend).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


@needs_extension
def test_mixed_dtypes_as_autocast_gives_them():
    shapes = ((3, 4), (2, 2))
    query, key, value, locations, weights = problem(shapes)
    for backend in COMPILED:
        plain = ms_deform_attn(value.bfloat16(), shapes, locations, weights, backend)
        assert plain.dtype == torch.bfloat16
        expected = ms_deform_attn(value, shapes, locations, weights, "reference")
        torch.testing.assert_close(plain.float(), expected, rtol=0, atol=2e-2 * expected.abs().max().item())
        aware = key_aware_deform_attn(query, key.bfloat16(), value.bfloat16(), shapes, locations.double(), backend)
        assert aware.dtype == torch.bfloat16


@needs_extension
@pytest.mark.usefixtures("compiler")
def test_compiled_and_exported_programs_see_one_operator():
    shapes = ((3, 4), (2, 2))
    _, _, value, locations, weights = problem(shapes)

    class Attention(torch.nn.Module):
        def forward(self, value, locations, weights):
            return ms_deform_attn(value, shapes, locations, weights) * 2

    expected = Attention()(value, locations, weights)
    compiled = torch.compile(Attention(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(value, locations, weights), expected)
    program = torch.export.export(Attention(), (value, locations, weights))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.leandetr.ms_deform_attn.default in targets
    assert len(targets) == 2
    torch.testing.assert_close(program.module()(value, locations, weights), expected)


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in available_backends(), reason="there is no GPU, or no kernels for it are built")
def test_gpu_backward_in_order_gives_the_same_bits_every_time():
    query, key, value, locations, weights = problem(((9, 7), (4, 3)), Q=300, device="cuda")
    cases = (
        (lambda v, x, w: ms_deform_attn(v, ((9, 7), (4, 3)), x, w), (value, locations, weights)),
        (lambda q, k, v, x: key_aware_deform_attn(q, k, v, ((9, 7), (4, 3)), x), (query, key, value, locations)),
    )
    for function, inputs in cases:
        atomic = gradients(function, *inputs)
        torch.use_deterministic_algorithms(True)
        try:
            first, second = gradients(function, *inputs), gradients(function, *inputs)
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert_equal(first, atomic, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_reference_on_a_gpu():
    _, _, value, locations, weights = problem(((3, 4), (1, 1)))
    inputs = [x.cuda() for x in (value, locations, weights)]
    there = ms_deform_attn(inputs[0], ((3, 4), (1, 1)), *inputs[1:], backend="reference")
    torch.testing.assert_close(there.cpu(), ms_deform_attn(value, ((3, 4), (1, 1)), locations, weights))


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8),
    reason="before 2.8, PyTorch does not tell a model that it is being exported to ONNX",
)
def test_onnx_programs_compute_the_same(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    shapes = ((6, 8), (3, 4))

    class Attentions(torch.nn.Module):
        def forward(self, query, value, locations, weights):
            plain = ms_deform_attn(value, shapes, locations, weights)
            return plain, key_aware_deform_attn(query, value, value, shapes, locations)

    query, _, value, locations, weights = problem(shapes)
    inputs = (query, value, locations, weights)
    torch.onnx.export(Attentions().eval(), inputs, dynamo=True, verbose=False).save(tmp_path / "attentions.onnx")
    session = runtime.InferenceSession(tmp_path / "attentions.onnx")
    answers = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)})
    for answer, expected in zip(answers, Attentions()(*inputs), strict=True):
        torch.testing.assert_close(torch.from_numpy(answer), expected)
