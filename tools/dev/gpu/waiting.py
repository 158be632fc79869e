"""Where the host waits for the device, and how much of the time the device waits for the host."""

import contextlib
import math
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from tools.dev.gpu.stages import ROOT

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
"""What a synchronisation of PyTorch calls."""
NODE = "autograd::engine::evaluate_function: "
"""What PyTorch's profiler writes before the name of a node of autograd whose gradient is being computed."""
SAID = "synchronizing CUDA operation"
"""PyTorch's warning of one (torch.cuda.set_sync_debug_mode)."""


def synchronisations(work: Callable[[], object]) -> Counter[str]:
    """Runs `work` and counts its synchronisations by the innermost line of this project: "models/x.py:12 function"."""
    found = Counter()

    def note(message, *where, **more):
        if SAID in str(message):
            found[_line_of_ours()] += 1

    with warnings.catch_warnings(), _warned_of():
        warnings.simplefilter("always")
        warnings.showwarning = note
        work()
    return found


@contextlib.contextmanager
def _warned_of() -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _line_of_ours() -> str:
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and path != Path(__file__):
            return f"{path.relative_to(ROOT)}:{frame.lineno} {frame.name}"
    return "outside"


def profiled(work: Callable[[], object]) -> tuple[float, list[float]]:
    """Runs `work` under PyTorch's profiler.

    Returns:
        the share of its time in which a kernel or a copy runs on the device; and the ms that the host waited in each of
        its synchronisations, in their order.
    """
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    events = profile.events()
    busy = covered((event.time_range.start, event.time_range.end) for event in events if _on_device(event))
    return 1e-6 * busy / seconds, [event.time_range.elapsed_us() / 1e3 for event in events if event.name in WAITS]


def waits_of_a_step(work: Callable[[], object]) -> list[tuple[str, float]]:
    """Runs `work` under PyTorch's profiler, which records operators too: the host is slower then, and waits less.

    Returns:
        (who waits, ms) of each of its synchronisations, in their order; within the backward pass, too, where no line of
        this project is at work.
    """
    torch.cuda.synchronize()
    with torch.profiler.profile() as profile:
        work()
        torch.cuda.synchronize()
    return [(who(event), event.time_range.elapsed_us() / 1e3) for event in profile.events() if event.name in WAITS]


def who(event) -> str:
    """The operator that a profiler's event lies within, and the node of autograd, as far as there are any."""
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    operators = [name for name in names if "::" in name and not name.startswith(NODE)]
    nodes = [f"in {name.removeprefix(NODE)}" for name in names if name.startswith(NODE)]
    return " ".join([*operators[:1], *nodes[:1]]) or "unknown"


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much of the time lies within at least one of some spans (begin, end)."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _on_device(event) -> bool:
    return event.device_type == torch.autograd.DeviceType.CUDA
