"""Times deformable attention, plain and key-aware, on every backend that is here, in one run.

usage: python tools/dev/benchmark_ops.py [--repeats N] [--batch_sizes 1 2] [--dtypes float32 bfloat16] [--classic] ...

Shapes are those of a real model: 800x1066 pixels, strides 8 to 64, 8 heads of 32 channels, 4 levels of 4 points. Prints
a Markdown table of medians, each as a ratio to the PyTorch reference on the same device. Other packages are measured
beside ours where they are installed: deformops and transformers (its plain PyTorch), and the forward of
torch-ms-deform-attn and MultiScaleDeformableAttention. With --classic so is the layout of the latter's kernels, one
thread per channel, built from classic_deform_attn.cu (CUDA, float32).
"""

import argparse
import contextlib
import ctypes
import functools
import importlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from torch.utils.cpp_extension import CUDA_HOME

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from models.ops import available_backends, key_aware_deform_attn, ms_deform_attn
from tools.dev.tables import say
from util.cli.outputs import growing_file, writable_file
from util.measuring.benchmark import peak_megabytes, time_repeats

SHAPES = ((100, 134), (50, 67), (25, 34), (13, 17))
HEADS, WIDTH, POINTS = 8, 32, 4
ROUND_LOCATIONS = ("transformers",)
"""Peers that take locations in the type of the values only: of a half type, these are other places."""

Shapes = tuple[tuple[int, int], ...]


def random_problem(
    batch_size: int, queries: int | None, dtype: torch.dtype, device: str, shapes: Shapes = SHAPES
) -> tuple[torch.Tensor, ...]:
    """Random query, value, locations, weights, key. An encoder's queries (None) look near their own token."""
    generator = torch.Generator().manual_seed(0)
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    count = queries or tokens
    value = torch.randn(batch_size, tokens, HEADS, WIDTH, generator=generator)
    query = torch.randn(batch_size, count, HEADS, WIDTH, generator=generator)
    weights = torch.rand(batch_size, count, HEADS, levels * POINTS, generator=generator).softmax(-1)
    if queries:
        centers = torch.rand(count, 2, generator=generator)
    else:
        grids = [torch.cartesian_prod(torch.arange(h) / h + 0.5 / h, torch.arange(w) / w + 0.5 / w) for h, w in shapes]
        centers = torch.cat(grids).flip(1)
    offsets = torch.randn(batch_size, count, HEADS, levels, POINTS, 2, generator=generator) * 3
    sizes = torch.tensor([(w, h) for h, w in shapes])
    locations = centers[:, None, None, None] + offsets / sizes[:, None]
    weights = weights.view(batch_size, count, HEADS, levels, POINTS)
    query, value, weights = (x.to(device, dtype) for x in (query, value, weights))
    return query, value, locations.to(device), weights, value.flip(1)


def median_ms(work: Callable[[], object], device: str, repeats: int) -> float:
    """The median of `repeats` runs after warming up, in milliseconds."""
    return 1e3 * statistics.median(time_repeats(work, device, repeats))


def forward_only(function: Callable, inputs: list[torch.Tensor]) -> Callable:
    """Work that computes the answer."""

    @torch.no_grad()
    def work():
        return function(*inputs)

    return work


def with_backward(function: Callable, inputs: list[torch.Tensor]) -> Callable:
    """Work that computes the answer and all gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.no_grad():
        direction = torch.ones_like(function(*inputs))

    def work():
        return torch.autograd.grad(function(*leaves), leaves, direction)

    return work


def levels(device: str, shapes: Shapes) -> tuple[torch.Tensor, torch.Tensor]:
    """(L, 2) heights and widths, and each level's first token, as other packages want them."""
    sizes = torch.tensor(shapes, device=device)
    return sizes, torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])


def peers(device: str, shapes: Shapes) -> dict[str, Callable]:
    """Plain attention of other installed packages, with gradients: (value, locations, weights) -> answer."""
    found = {}
    sizes, starts = levels(device, shapes)
    with contextlib.suppress(ImportError):
        registry = importlib.import_module("deformops.registry")
        found["deformops"] = lambda v, x, w: registry.msda(v, sizes, starts, x, w.flatten(3)).flatten(2)
    with contextlib.suppress(ImportError):
        deformable = importlib.import_module("transformers.models.deformable_detr.modeling_deformable_detr")
        attention = deformable.MultiScaleDeformableAttention()
        found["transformers"] = lambda v, x, w: attention(v, sizes, shapes, starts, x.to(v.dtype), w, v.shape[0])
    return found


def forward_peers(device: str, shapes: Shapes) -> dict[str, Callable]:
    """The same without gradients."""
    found = {}
    sizes, starts = levels(device, shapes)
    for module in ("MultiScaleDeformableAttention", "torch_ms_deform_attn"):
        try:
            package = importlib.import_module(module)
        except ImportError:
            continue
        function = getattr(package, "ms_deform_attn_forward", None)
        if function is None:
            print(f"{module}: installed, but without ms_deform_attn_forward; left out", file=sys.stderr)
            continue
        found[module] = lambda v, x, w, f=function: f(v, sizes, starts, x.to(v.dtype), w, v.shape[0])
    return found


def build_classic(capability: tuple[int, int], folder: Path = ROOT / "models/ops/build") -> Path:
    """Builds the classic kernels with nvcc for GPUs of a capability, unless they are there already.

    Returns:
        the library.
    """
    major, minor = capability
    source, library = ROOT / "tools/dev/classic_deform_attn.cu", folder / f"classic_deform_attn_{major}{minor}.so"
    if not library.is_file() or library.stat().st_mtime < source.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        nvcc = shutil.which("nvcc", path=f"{os.environ['PATH']}:{CUDA_HOME}/bin") or "nvcc"
        command = [nvcc, "-O3", "-shared", "-Xcompiler", "-fPIC", f"-arch=sm_{major}{minor}", "-o", library, source]
        subprocess.run(command, check=True)
    return library


@functools.cache
def classic(shapes: Shapes = SHAPES) -> Callable:
    """Plain attention by one thread per channel: (value, locations, weights) -> answer, float32 on CUDA."""
    kernels = ctypes.CDLL(str(build_classic(torch.cuda.get_device_capability())))
    sizes, starts = levels("cuda", shapes)

    def launch(kernel: Callable, value: torch.Tensor, locations: torch.Tensor, *tensors: torch.Tensor):
        """Tensors in the order of the kernel's arguments."""
        N, S, M, D = value.shape
        _, Q, _, L, P, _ = locations.shape
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = kernel(N, S, M, D, Q, L, P, *pointers, stream)
        if status:
            raise RuntimeError(f"the classic kernel did not start: CUDA error {status}")

    class Classic(torch.autograd.Function):
        @staticmethod
        def forward(context, value, locations, weights):
            context.save_for_backward(value, locations, weights)
            answer = value.new_empty(*locations.shape[:2], value[0, 0].numel())
            inputs = (value, sizes, starts, locations, weights)
            launch(kernels.classic_forward, value, locations, *inputs, answer)
            return answer

        @staticmethod
        def backward(context, grad):
            value, locations, weights = context.saved_tensors
            grad, grads = grad.contiguous(), [torch.zeros_like(x) for x in context.saved_tensors]
            inputs = (grad, value, sizes, starts, locations, weights)
            launch(kernels.classic_backward, value, locations, *inputs, *grads)
            return tuple(grads)

    return Classic.apply


def op_functions(
    device: str, dtype: str, with_classic: bool, shapes: Shapes = SHAPES
) -> dict[tuple[str, str], tuple[Callable, tuple[int, ...]]]:
    """{(attention, backend): (function, which of query, value, locations, weights, key it takes)} on a device."""
    backends = [name for name in available_backends() if name in ("reference", device)]
    found = {}
    for name in sorted(backends, key=lambda name: name != "reference"):
        found["plain", name] = (lambda v, x, w, b=name: ms_deform_attn(v, shapes, x, w, b), (1, 2, 3))
        found["key-aware", name] = (lambda q, v, x, b=name: key_aware_deform_attn(q, v, v, shapes, x, b), (0, 1, 2))
        found["key-aware, other keys", name] = (
            lambda q, k, v, x, b=name: key_aware_deform_attn(q, k, v, shapes, x, b),
            (0, 4, 1, 2),
        )
    # What the papers' own code does also where keys and values are one tensor.
    found["key-aware", "reference, keys and values sampled apart"] = (
        lambda q, v, x: key_aware_deform_attn(q, v.clone(), v, shapes, x, "reference"),
        (0, 1, 2),
    )
    if with_classic and device == "cuda" and dtype == "float32":
        found["plain", "classic"] = (classic(shapes), (1, 2, 3))
    return found | {("plain", name): (work, (1, 2, 3)) for name, work in peers(device, shapes).items()}


def benchmark_table(
    device: str, batch_sizes: list[int], dtypes: list[str], repeats: int, with_classic: bool, file: TextIO | None
):
    """Says the rows of the Markdown table for one device, each when it is measured."""
    for count in batch_sizes:
        for queries in (None, 300, 900):
            for dtype in dtypes:
                inputs = random_problem(count, queries, getattr(torch, dtype), device)
                shape = f"{'encoder' if queries is None else f'{queries} queries'}, N={count}, {dtype}"
                for label, make in (("forward", forward_only), ("forward+backward", with_backward)):
                    base = {}
                    for (attention, backend), (function, taken) in op_functions(device, dtype, with_classic).items():
                        work = make(function, [inputs[i] for i in taken])
                        slow = backend.startswith("reference") and device == "cpu"
                        ms = median_ms(work, device, max(1, repeats // 5) if slow else repeats)
                        base.setdefault(attention, ms)
                        memory = f"{peak_megabytes(work, device):.0f}"
                        ratio = f"{base[attention] / ms:.1f}x"
                        cells = (shape, label, attention, f"{device}: {backend}", f"{ms:.2f}", ratio, memory)
                        say(f"| {' | '.join(cells)} |", file)
                for name, function in forward_peers(device, SHAPES).items():
                    work = forward_only(function, list(inputs[1:4]))
                    try:
                        ms = median_ms(work, device, repeats)
                    except (RuntimeError, TypeError) as error:
                        print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
                        continue
                    say(f"| {shape} | forward | plain | {device}: {name} | {ms:.2f} | | |", file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--devices", nargs="+", default=["cpu"] + ["cuda"] * torch.cuda.is_available())
    parser.add_argument("--classic", action="store_true", help="measure the classic layout too")
    parser.add_argument("--out", type=writable_file, help="write the table to this file too")
    args = parser.parse_args()
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine += f"; {torch.cuda.get_device_name()}"
    head = [
        f"Machine: {machine}; PyTorch {torch.__version__}.",
        "",
        "| shape | | attention | backend | ms, median | against reference | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    with growing_file(args.out) if args.out else contextlib.nullcontext() as file:
        for line in head:
            say(line, file)
        for device in args.devices:
            benchmark_table(device, args.batch_sizes, args.dtypes, args.repeats, args.classic, file)


if __name__ == "__main__":
    main()
