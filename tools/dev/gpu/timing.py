"""How long work takes on a device."""

import statistics
import time
from collections.abc import Callable

import torch

WARM_UP = 3


def milliseconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """The median of some runs, each with nothing of its inputs in the caches of a GPU.

    Between two events, of which the first is recorded behind the work that empties the caches: the host has launched
    everything by the time that the GPU begins.
    """
    for _ in range(WARM_UP):
        work()
    if device == "cpu":
        return 1e3 * statistics.median(_host_seconds(work) for _ in range(repeats))
    flood = torch.ones(2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.int32, device=device)
    spans = []
    for _ in range(repeats):
        span = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        flood.add_(1)  # eight times as large as the last cache
        span[0].record()
        work()
        span[1].record()
        spans.append(span)
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in spans)


def _host_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copy_rate(device: str, size: int) -> float:
    """Bytes per second that a copy within the device moves, read and written together.

    Args:
        size: bytes of what is copied.
    """
    source = torch.randint(255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * milliseconds(lambda: target.copy_(source), device, 10))
