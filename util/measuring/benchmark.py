"""What a detector costs: parameters, MACs, latency, memory; and what training it costs."""

import statistics
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from util.measuring.flops import count_by_part, count_gmacs, count_operations_by_part
from util.tensors.precision import Precision

SIZE = (850, 1040)
"""Height and width of the image behind the published MACs of most papers here."""
REAL_TIME_SIZE = (640, 640)
"""That of real-time detectors, whose tables print GFLOPs: two for every multiply-add."""
BATCHES = (1, 4)
COCO_IMAGES = 118_287
"""Images of train2017."""
WARM_UP = 2


def measure_detector(model: nn.Module, precision: Precision, size: tuple[int, int], repeats: int = 5) -> dict:
    """Measures a detector on images of random noise.

    Args:
        size: height and width of the images that are timed.
        repeats: how often every batch is timed.

    Returns:
        parameters and trainable_parameters; of one 850x1040 image gmacs and gigaoperations (see util.measuring.flops),
        in all and _by_part; under "real_time" the gmacs of one image of REAL_TIME_SIZE, and as gflops twice as many, as
        those detectors' tables count; and per size of batch under "batches", after warming up: latency_ms (median) and
        latency_ms_p95 of the batch, images_per_second, and peak_mb, what the batch needs beside the weights.
    """
    image = [torch.empty(3, *SIZE)]
    parts, operations = count_by_part(model, image), count_operations_by_part(model, image)
    real_time = count_gmacs(model, [torch.empty(3, *REAL_TIME_SIZE)])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "gmacs": sum(parts.values()),
        "gmacs_by_part": parts,
        "gigaoperations": sum(operations.values()),
        "gigaoperations_by_part": operations,
        "real_time": {"size": list(REAL_TIME_SIZE), "gmacs": real_time, "gflops": 2 * real_time},
        "size": list(size),
        "batches": {str(count): measure_latency(model.eval(), count, size, precision, repeats) for count in BATCHES},
        "device": device_name(precision.device),
        "dtype": precision.name,
    }


def device_name(device: str) -> str:
    """The device in words."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


@torch.inference_mode()
def measure_latency(
    model: nn.Module, count: int, size: tuple[int, int], precision: Precision, repeats: int
) -> dict[str, float]:
    """What `measure_detector` says of one size of batch: `count` images of noise of one size."""
    images = [torch.randn(3, *size, device=precision.device) for _ in range(count)]

    def detect():
        with precision.autocast():
            model(images)

    seconds = time_repeats(detect, precision.device, repeats)
    median = statistics.median(seconds)
    return {
        "latency_ms": 1e3 * median,
        "latency_ms_p95": 1e3 * sorted(seconds)[round(0.95 * (len(seconds) - 1))],
        "images_per_second": count / median,
        "peak_mb": peak_megabytes(detect, precision.device),
    }


@torch.inference_mode()
def matrix_rate(precision: Precision, size: int = 2048, repeats: int = 9) -> float:
    """10^9 operations per second (two per multiply-add) in products of large square matrices: the median of some."""
    a, b = (torch.randn(size, size, device=precision.device) for _ in range(2))

    def multiply():
        with precision.autocast():
            a @ b

    return 2e-9 * size**3 / statistics.median(time_repeats(multiply, precision.device, repeats))


def measure_training(
    step: Callable[[], Iterator[str]], batch_size: int, epochs: int, device: str, repeats: int = 5
) -> dict:
    """Measures training steps.

    Args:
        step: goes through one whole step on `batch_size` images and, after each part of it, says which that was.
        epochs: of the whole schedule.

    Returns:
        step_ms (median) and by part under parts_ms, images_per_second, peak_mb; and the device-hours that an epoch of
        COCO's train2017, and the whole schedule, take at that rate.
    """
    laps = [_laps(step, device) for _ in range(WARM_UP + repeats)][WARM_UP:]
    median = statistics.median(sum(lap.values()) for lap in laps)
    hours = COCO_IMAGES * median / batch_size / 3600
    return {
        "step_ms": 1e3 * median,
        "parts_ms": {part: 1e3 * statistics.median(lap[part] for lap in laps) for part in laps[0]},
        "images_per_second": batch_size / median,
        "hours_per_epoch": hours,
        "hours_per_schedule": hours * epochs,
        "peak_mb": peak_megabytes(lambda: deque(step(), maxlen=0), device),
    }


def _laps(step: Callable[[], Iterator[str]], device: str) -> dict[str, float]:
    """Seconds that each part of a step takes."""
    seconds, start = {}, time.perf_counter()
    for part in step():
        _wait_for(device)
        now = time.perf_counter()
        seconds[part], start = now - start, now
    return seconds


def time_repeats(work: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs, after two that do not count."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        work()
        _wait_for(device)
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def _wait_for(device: str):
    if device == "cuda":
        torch.cuda.synchronize()


def peak_megabytes(work: Callable[[], object], device: str) -> float:
    """The most memory, in 10^6 bytes, that tensors made during one run hold at any moment of it.

    On a GPU as its allocator says; elsewhere what operators return is counted, without their own scratch memory.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with _LiveStorages() as live:
        work()
    return live.peak / 1e6


def held_megabytes(work: Callable[[], object]) -> float:
    """GPU memory, in 10^6 bytes, that a first run takes and nothing else can have afterwards, whoever needs it.

    Of a detector that is recorded in that run: what its CUDA graph holds. The allocator sets whole blocks apart for it,
    which `peak_megabytes` of later runs does not see. What it only caches is given back before and after.
    """
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    work()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return (torch.cuda.memory_reserved() - before) / 1e6


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that operators make, as long as they live."""

    def __init__(self):
        super().__init__()
        self.known = weakref.WeakKeyDictionary()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        answer = function(*args, **(kwargs or {}))
        for tensor in tree_iter(answer):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage not in self.known:
                    self._add(storage)
        return answer

    def _add(self, storage: torch.UntypedStorage):
        size = storage.nbytes()
        self.known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int):
        self.now -= size


def format_benchmark(measured: dict) -> str:
    """The measurements as text for people."""
    total, trainable = measured["parameters"] / 1e6, measured["trainable_parameters"] / 1e6
    (height, width), gmacs, gflops = measured["real_time"].values()
    lines = [
        f"parameters      {total:.3f} M, {trainable:.3f} M trainable",
        f"{f'{SIZE[0]}x{SIZE[1]}':<16}{'GMACs':>18} {'all operations, G':>18}",
        *(f"{name:<16}{macs:18.2f} {every:18.2f}" for name, macs, every in _costs(measured)),
        f"{f'{height}x{width}':<16}{gmacs:18.2f} GMACs: {gflops:.1f} GFLOPs in tables of real-time detectors",
        f"on {measured['device']}, {measured['dtype']}, images of {measured['size'][0]}x{measured['size'][1]}:",
        f"{'batch':>8} {'median ms':>10} {'p95 ms':>10} {'images/s':>11} {'peak MB':>9}",
    ]
    for count, numbers in measured["batches"].items():
        lines.append(_row(count, numbers["latency_ms"], f"{numbers['latency_ms_p95']:.1f}", numbers))
    if "training" in measured:
        numbers = measured["training"]
        lines.append(_row("training", numbers["step_ms"], "", numbers))
        shares = "  ".join(f"{part} {time:.1f} ms" for part, time in numbers["parts_ms"].items())
        lines.append(f"a step by part: {shares}")
        epoch, schedule = numbers["hours_per_epoch"], numbers["hours_per_schedule"]
        lines.append(f"at that rate COCO takes {epoch:.3g} device-hours an epoch, {schedule:.3g} in all")
    return "\n".join(lines)


def _costs(measured: dict) -> Iterator[tuple[str, float, float]]:
    """MACs and operations of every part, and of all."""
    for name, gmacs in measured["gmacs_by_part"].items():
        yield name, gmacs, measured["gigaoperations_by_part"][name]
    yield "all", measured["gmacs"], measured["gigaoperations"]


def _row(name: str, median: float, p95: str, numbers: dict[str, float]) -> str:
    return f"{name:>8} {median:10.1f} {p95:>10} {numbers['images_per_second']:11.3g} {numbers['peak_mb']:9.0f}"
