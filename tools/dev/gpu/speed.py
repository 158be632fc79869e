"""Stage 3: the op is fast: medians beside the least time in which its bytes can move, and beside other kernels."""

import torch
from torch import Tensor

from tools.dev.benchmark_ops import ROUND_LOCATIONS, SHAPES, forward_only, op_functions, random_problem
from tools.dev.gpu.results import Results
from tools.dev.gpu.stages import Setting
from tools.dev.gpu.timing import copy_rate, milliseconds

REPEATS = 20
BATCHES = (2, 1, 8)
QUERIES = (None, 300, 900)
"""None: as many as tokens, as in an encoder."""
TYPES = ("bfloat16", "float32")
OURS = "cuda"
SAME = 2e-2
"""Of the norm of an answer: how far apart the kernels may be, whose types differ within."""
PEERS = (("classic", "float32", 2.0), ("deformops", "float32", 1.0), ("deformops", "bfloat16", 1.0))
"""(other kernels, in which type, how many times as fast ours should be at least)."""


def run(setting: Setting, results: Results):
    """The shapes that the goals speak of first."""
    tiny = setting.dry_run
    rate = copy_rate(setting.device, 2**20 if tiny else 2**31)
    results.row("a copy within the device", **{"GB/s, read and written": rate / 1e9})
    shapes = ((6, 8), (3, 4), (2, 2), (1, 1)) if tiny else SHAPES
    found = {}
    for images in BATCHES[:1] if tiny else BATCHES:
        for queries in (None, 5) if tiny else QUERIES:
            for dtype in TYPES:
                times = measure(setting, results, (images, queries, dtype), shapes, rate)
                found |= {(images, queries, dtype, *key): ms for key, ms in times.items()}
    goals(results, found, "cpu" if tiny else OURS)


def measure(
    setting: Setting, results: Results, which: tuple[int, int | None, str], shapes, rate: float
) -> dict[tuple[str, str, str], float]:
    """{(attention, backend, forward or backward): milliseconds} of every kernel at one size."""
    images, queries, dtype = which
    device, repeats = setting.device, 2 if setting.dry_run else REPEATS
    size = f"{'encoder' if queries is None else f'{queries} queries'}, N={images}, {dtype}"
    inputs, found, answers = random_problem(images, queries, getattr(torch, dtype), device, shapes), {}, {}
    for (attention, backend), (function, taken) in op_functions(device, dtype, True, shapes).items():
        if backend.startswith(("reference", "transformers")) and images > 2:
            continue  # many times slower, as the smaller sizes tell
        with results.attempt(f"{size}: {attention}, {backend}"):
            leaves = [inputs[i].detach().requires_grad_() for i in taken]
            answer = function(*leaves)
            base = answers.setdefault(attention, answer.detach().float())
            apart = ((answer.detach().float() - base).norm() / base.norm()).item()
            rounded = backend in ROUND_LOCATIONS and dtype != "float32"
            if rounded and (images, queries) == (BATCHES[0], QUERIES[0]):  # once is enough
                results.note(f"{backend} looks at locations rounded to {dtype}; {size}: {apart:.1e} apart.")
            elif not rounded and not apart <= SAME:
                results.check(f"{size}: {attention}, {backend} gives the same answer", False, f"{apart:.1e} apart")
            grad = torch.randn_like(answer)
            floors = {
                "forward": moved(*leaves, answer) / rate,
                "backward": moved(*leaves, *leaves, answer) / rate,  # gradients are as large as what they are of
            }
            work = {
                "forward": forward_only(function, leaves),
                "backward": lambda a=answer, x=leaves, g=grad: torch.autograd.grad(a, x, g, retain_graph=True),
            }
            for part, floor in floors.items():
                ms = milliseconds(work[part], device, repeats)
                found[attention, backend, part] = ms
                results.row(
                    "medians",
                    size=size,
                    attention=attention,
                    backend=backend,
                    part=part,
                    ms=ms,
                    **{"ms to move the bytes": 1e3 * floor, "times that": ms / (1e3 * floor)},
                )
    return found


def moved(*tensors: Tensor) -> int:
    """Bytes, each tensor once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def goals(results: Results, found: dict[tuple, float], ours: str):
    """What was wanted of the encoder's shape and two images."""

    def ms(dtype: str, part: str, attention: str = "plain", backend: str = ours) -> float:
        return found.get((2, None, dtype, attention, backend, part), float("nan"))

    for part, limit in (("forward", 0.20), ("backward", 0.60)):
        results.goal(f"{part}, bfloat16, ms", ms("bfloat16", part), limit)
    for peer, dtype, least in PEERS:
        if (2, None, dtype, "plain", peer, "backward") not in found:
            results.note(f"{peer} was not measured in {dtype}: it is not here, or failed.")
            continue
        for part in ("forward", "backward"):
            ratio = ms(dtype, part, backend=peer) / ms(dtype, part)
            results.goal(f"{part}, {dtype}, times as fast as {peer}", ratio, least, at_least=True)
    for part in ("forward", "backward"):
        for dtype in TYPES:
            ratio = ms(dtype, part, "key-aware") / ms(dtype, part)
            results.goal(f"{part}, {dtype}, key-aware over plain", ratio, 1.5)
