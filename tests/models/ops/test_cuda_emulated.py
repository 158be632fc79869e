"""The CUDA kernels' arithmetic, run by a C++ compiler with threads for threads, so that it is tested without a GPU.

What only a GPU shows is not tested here: speed, registers, vector instructions, memory ordering.
"""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from models.ops import reference
from tests.harness.whole_pixels import cases, exact_aware, exact_plain, wrong

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / "models/ops/src/cuda/kernels.cu"
EMULATION = ROOT / "tests/emulation"
COMPILER = os.environ.get("CXX", "c++")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def build(folder: Path, more: str, *flags: str) -> Path:
    """The launchers as C functions and `more`, a C++ source, compiled for this machine's processor."""
    if shutil.which(COMPILER) is None:
        pytest.skip("there is no C++ compiler")
    source = KERNELS.read_text()
    source = source.replace("extern __shared__ __align__(16) char shared[];", "#define shared emulated_shared")
    source = source.replace('"kernels.h"', f'"{KERNELS.with_name("kernels.h")}"')
    launch = r"(\w+(?:<[\w, ]+>)?)<<<(.*?), \w+>>>\((.*?)\);"
    source, launches = re.subn(launch, r"emulate(\2, [&] { \1(\3); });", source, flags=re.DOTALL)
    assert launches == 6
    (folder / "kernels.cpp").write_text(source + (EMULATION / "entry.cpp").read_text() + more)
    command = [COMPILER, "-std=c++20", "-O1", "-pthread", "-I", str(EMULATION), *flags]
    subprocess.run([*command, "kernels.cpp", "-o", "kernels"], cwd=folder, check=True, timeout=300)
    return folder / "kernels"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The launchers, as a library."""
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("emulated"), "", "-fPIC", "-shared")))


class Case:
    """Random tensors of one problem, and the kernels on them."""

    def __init__(self, library, shapes, N, Q, M, D, P, dtype, spread):
        torch.manual_seed(0)
        self.library, self.shapes, self.dtype = library, shapes, dtype
        S, L = sum(h * w for h, w in shapes), len(shapes)
        self.sizes = (ctypes.c_long * 7)(N, S, Q, M, D, L, P)
        self.flat = (ctypes.c_int * (2 * L))(*(side for shape in shapes for side in shape))
        self.query, self.key, self.value = (torch.randn(N, n, M, D).to(dtype) for n in (Q, S, S))
        self.grad = torch.randn(N, Q, M * D).to(dtype)
        self.locations = torch.rand(N, Q, M, L, P, 2) * (1 + 2 * spread) - spread
        self.weights = torch.rand(N, Q, M, L, P)

    def call(self, name, *tensors):
        function = getattr(self.library, f"{name}_{str(self.dtype).removeprefix('torch.')}")
        function(self.sizes, self.flat, *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors))

    def has_tiles(self):
        """Whether the queries are the tokens of some levels."""
        return bool(self.library.has_tiles(self.sizes, self.flat))

    def plain(self, scatter=None):
        """Answer and gradients by value, locations and weights; `scatter` is the kernel that sums up those by value."""
        answer = torch.empty_like(self.grad)
        grads = [torch.zeros(self.value.shape), torch.empty_like(self.locations), torch.empty_like(self.weights)]
        inputs = self.value, self.locations, self.weights
        self.call("plain", *inputs, answer)
        self.call("plain_backward", self.grad, *inputs, None if scatter else grads[0], *grads[1:])
        if scatter:
            self.call(scatter, self.grad, self.locations, self.weights, grads[0])
        return answer, *grads

    def aware(self, same, ordered=False):
        """Answer and gradients by query, key (unless the values are the keys), value and locations."""
        key = self.value if same else self.key
        answer, by_query = torch.empty_like(self.grad), torch.empty_like(self.query)
        by_locations, by_value = torch.empty_like(self.locations), torch.zeros(self.value.shape)
        by_key = by_value if same else torch.zeros(self.value.shape)
        weights, slopes = torch.empty_like(self.weights), torch.empty_like(self.weights)
        sums = (None, None) if ordered else (by_key, by_value)
        factors = (weights, slopes) if ordered else (None, None)
        inputs = self.query, key, self.value, self.locations
        self.call("aware", *inputs, answer)
        self.call("aware_backward", self.grad, *inputs, by_query, *sums, by_locations, *factors)
        if ordered:
            self.call("scatter_in_order", self.grad, self.locations, weights, by_value)
            self.call("scatter_in_order", self.query, self.locations, slopes, by_key)
        return answer, by_query, *([] if same else [by_key]), by_value, by_locations

    def equal(self, ours, inputs, function):
        """Answer and gradients against the reference in float64."""
        inputs = [x.double().requires_grad_() for x in inputs]
        answer = function(*inputs)
        expected = (answer, *torch.autograd.grad(answer, inputs, self.grad.double()))
        for a, b in zip(ours, expected, strict=True):
            atol = TOLERANCE[self.dtype] * max(1e-3, b.abs().max().item())
            torch.testing.assert_close(a.double(), b, rtol=0, atol=atol)


CASES = [
    (((3, 4), (2, 1)), 2, 5, 2, 8, 3, torch.float32, 0.4),
    (((3, 4),), 1, 3, 3, 12, 1, torch.float32, 0.4),
    (((5, 4), (2, 2), (1, 1), (2, 3)), 1, 4, 2, 32, 4, torch.float32, 0.2),
    (((3, 3),), 1, 2, 1, 128, 2, torch.float32, 30.0),
    (((3, 4), (2, 1)), 2, 5, 2, 8, 3, torch.bfloat16, 0.4),
    (((3, 4), (2, 1)), 1, 5, 2, 12, 3, torch.float16, 0.4),
]


ENCODERS = [
    (((5, 9), (3, 4)), 2, 57, 2, 8, 3, torch.float32, 0.4),
    (((5, 9), (3, 4), (2, 2)), 1, 12, 3, 12, 9, torch.float32, 0.4),  # the queries are the tokens of one level
    (((17, 3), (1, 2)), 1, 53, 1, 32, 4, torch.bfloat16, 0.0),
    (((9, 8),), 1, 72, 1, 128, 20, torch.float16, 0.1),
    (((40, 40), (4, 4)), 1, 16, 2, 8, 4, torch.float32, 0.3),  # samples further apart than can be sorted
]
"""Whose queries are tokens."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[4]}-{case[6]}")
@pytest.mark.parametrize("scatter", [None, "scatter_in_order"])
def test_plain(kernels, case, scatter):
    c = Case(kernels, *case)
    inputs = (c.value, c.locations, c.weights)
    c.equal(c.plain(scatter), inputs, lambda v, x, w: reference.ms_deform_attn(v, c.shapes, x, w))


@pytest.mark.parametrize("case", ENCODERS, ids=lambda case: f"{case[0]}-{case[2]}")
def test_plain_in_tiles(kernels, case):
    c = Case(kernels, *case)
    assert c.has_tiles()
    inputs = (c.value, c.locations, c.weights)
    c.equal(c.plain("scatter_tiles"), inputs, lambda v, x, w: reference.ms_deform_attn(v, c.shapes, x, w))


@pytest.mark.parametrize(("queries", "points"), [(56, 3), (5, 3), (57, 40)])
def test_no_tiles(kernels, queries, points):
    assert not Case(kernels, ((5, 9), (3, 4)), 1, queries, 1, 8, points, torch.float32, 0.0).has_tiles()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[4]}-{case[6]}")
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_key_aware(kernels, case, ordered, same):
    c = Case(kernels, *case)
    ours = c.aware(same, ordered)
    if same:
        inputs = (c.query, c.value, c.locations)
        c.equal(ours, inputs, lambda q, v, x: reference.key_aware_deform_attn(q, v, v, c.shapes, x))
    else:
        inputs = (c.query, c.key, c.value, c.locations)
        c.equal(ours, inputs, lambda q, k, v, x: reference.key_aware_deform_attn(q, k, v, c.shapes, x))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_next_to_whole_pixels(kernels, kind):
    for near in cases(kind, sizes=(1, 5, 32, 33), repeats=(1,)):
        c = Case(kernels, (near.shape,), 1, near.query.shape[1], 1, 4, 2, near.value.dtype, 0)
        for name in ("query", "key", "value", "locations", "weights", "grad"):
            setattr(c, name, getattr(near, name))
        for ordered in (False, True):
            assert wrong(c.plain("scatter_in_order" if ordered else None), exact_plain(near), c.dtype) == 0
            assert wrong(c.aware(False, ordered), exact_aware(near, False), c.dtype) == 0
            assert wrong(c.aware(True, ordered), exact_aware(near, True), c.dtype) == 0


def test_values_that_are_no_numbers_stay_where_they_are(kernels):
    c = Case(kernels, ((2, 3),), 1, 2, 1, 8, 2, torch.float32, 0)
    c.value[:] = c.key[:] = torch.inf
    c.locations[:, 0], c.locations[:, 1] = -2.0, torch.nan  # outside
    for ours in (c.plain(), c.plain("scatter_in_order"), c.aware(True), c.aware(False), c.aware(False, True)):
        for numbers in ours:
            assert numbers.eq(0).all()


def test_threads_wait_for_each_other(tmp_path):
    """ThreadSanitizer sees shared memory that two threads touch with no barrier between them."""
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}")
    sanitized = [COMPILER, "-fsanitize=thread", str(empty), "-o", str(tmp_path / "empty")]
    # It knows where things lie only if addresses are not drawn at random.
    start = ["setarch", "-R"]
    if shutil.which(COMPILER) is None or shutil.which("setarch") is None:
        pytest.skip("there is no C++ compiler, or no setarch")
    if subprocess.run(sanitized, capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("the C++ compiler has no ThreadSanitizer")
    if subprocess.run([*start, tmp_path / "empty"], capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("ThreadSanitizer does not start here")
    program = build(tmp_path, (EMULATION / "races.cpp").read_text(), "-g", "-fsanitize=thread")
    done = subprocess.run([*start, program], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "all kernels ran\n"
    assert done.returncode == 0, done.stderr
