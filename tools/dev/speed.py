"""The tables of docs/speed.md, which tools/dev/zoo.py --latency writes."""

import argparse
import csv
import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from models import build_detector
from tools.dev.benchmark_peers import SIZE, Side, by_transformers
from tools.dev.products import processor_name
from tools.dev.tables import PUBLISHED, markdown_table, published_ap
from util.cli.outputs import growing_file
from util.config import load_config
from util.measuring.benchmark import device_name, matrix_rate, measure_latency
from util.measuring.flops import count_gmacs
from util.reporting.plots import scatter_plot
from util.tensors.precision import Precision, allow_tf32

CLAIMS = (
    *((f"sparse_detr_r50_rho_0.{i}", "efficient_detr_r50") for i in range(1, 6)),
    *((f"lite_dino_r50_{kind}_{attention}", "dino_4scale_r50")
      for kind in ("h3l1_2p1x3", "h3l1_6p1x1", "h2l2_2p1x3") for attention in ("kda", "da")),
)  # fmt: skip
"""(what its paper calls faster, than what)."""
BASELINE = "transformers' deformable_detr_r50"
"""Whose seconds are known of the machine that the papers' code ran on, and can be measured here."""


def measure_all(
    chosen: list[Path],
    args: argparse.Namespace,
    peers: dict[str, Callable] | None = None,
    record: Callable[[tuple], object] = lambda row: None,
) -> dict[str, dict]:
    """Times the models one after the other, once a round, and the machine's matrix products between them.

    Args:
        peers: by name, further models to time: callables that take a list of images.
        record: is handed name, seconds, rate and peak_mb of every measurement when it is done.

    Returns:
        by name: gmacs (not of peers), peak_mb, and of each round: seconds, the median of the repeats, and rate, the
        matrix products' operations per second just before, in 10^9.
    """
    allow_tf32(False)  # so that float32 is float32, in convolutions too
    precision = Precision(args.device, args.amp)
    detectors = {path.stem: build_detector(load_config(path)).to(args.device).eval() for path in chosen}
    timed = detectors | (peers or {})
    found = {name: {"seconds": [], "rate": []} for name in timed}
    for name, detector in detectors.items():
        found[name]["gmacs"] = count_gmacs(detector, [torch.empty(3, *args.size)], inference=True)
    for _ in range(args.rounds):  # noise that comes and goes then meets more than one model
        for name, detector in timed.items():
            rate = matrix_rate(precision)
            found[name]["rate"].append(rate)
            numbers = measure_latency(detector, 1, args.size, precision, args.repeats)
            found[name]["seconds"].append(numbers["latency_ms"] / 1e3)
            found[name]["peak_mb"] = numbers["peak_mb"]
            record((name, numbers["latency_ms"] / 1e3, rate, numbers["peak_mb"]))
            print(f"{name} {numbers['latency_ms']:.0f} ms, {rate:.0f} GFLOP/s", file=sys.stderr)
    return found


def between(above: list[float], below: list[float]) -> float:
    """The median over the rounds of how many times as long one took as the other, which noise moves least."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def baseline(args: argparse.Namespace) -> dict[str, Callable]:
    """transformers' model by name, where transformers is installed and can be held against the given seconds."""
    measurable = args.device == "cpu" and not args.amp and tuple(args.size) == SIZE
    found = measurable and importlib.util.find_spec("transformers") is not None
    return {BASELINE: Side(by_transformers, "deformable_detr_r50", SIZE)} if found else {}


def write_speed(chosen: list[Path], args: argparse.Namespace):
    """Measures and writes speed.{md,csv,png} in a folder, and speed_rounds.csv as it gets on."""
    with growing_file(args.out / "speed_rounds.csv") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "seconds", "matrix products, 10^9 operations per second", "peak MB"))
        found = measure_all(chosen, args, baseline(args), writer.writerow)
    rate = statistics.median(rate for numbers in found.values() for rate in numbers["rate"])
    theirs = found.pop(BASELINE, {}).get("seconds")
    base = args.baseline if args.baseline in found else chosen[0].stem
    ap = {path.stem: published_ap(path) for path in chosen}
    rows = [_row(name, ap[name], numbers, found[base], theirs) for name, numbers in found.items()]
    header = ("model", "AP as published", "GMACs", "seconds", "peak MB", f"MACs / {base}",
              f"seconds / {base}", "seconds / time of its products", "seconds of the papers' code",
              "times as fast, at transformers' pace")  # fmt: skip
    claims = [_claim(found[fast], found[slow], fast, slow) for fast, slow in CLAIMS if {fast, slow} <= found.keys()]
    claimed = markdown_table(("model", "than", "MACs, times fewer", "seconds, times fewer", "of these"), claims)
    measured = (
        _about(args, rate) + (_about_pace(statistics.median(theirs)) if theirs else "") + markdown_table(header, rows)
    )
    (args.out / "speed.md").write_text(measured + (CLAIMED + claimed if claims else ""), encoding="utf-8")
    with (args.out / "speed.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    points = [
        (name, float(ap[name].split()[0]), statistics.median(numbers["seconds"]), numbers["gmacs"])
        for name, numbers in found.items()
        if ap[name]
    ]
    scatter_plot(points, ("seconds", "GMACs"), "AP as published", args.out / "speed.png")


def _row(name: str, ap: str, numbers: dict, base: dict, theirs: list[float] | None) -> tuple[str, ...]:
    gmacs, seconds = numbers["gmacs"], numbers["seconds"]
    products = [2 * gmacs / rate for rate in numbers["rate"]]
    given, yard = PUBLISHED["cpu_seconds"].get(name), PUBLISHED["cpu_seconds"][BASELINE]
    return (
        name,
        ap,
        f"{gmacs:.1f}",
        f"{statistics.median(seconds):.2f}",
        f"{numbers['peak_mb']:.0f}",
        f"{gmacs / base['gmacs']:.2f}",
        f"{between(seconds, base['seconds']):.2f}",
        f"{between(seconds, products):.2f}",
        f"{given}" if given else "",
        f"{given / yard * between(theirs, seconds):.1f}" if given and theirs else "",
    )


def _claim(fast: dict, slow: dict, *names: str) -> tuple[str, ...]:
    work, time = slow["gmacs"] / fast["gmacs"], between(slow["seconds"], fast["seconds"])
    return (*names, f"{work:.2f}", f"{time:.2f}", f"{time / work:.2f}")


def _about(args: argparse.Namespace, rate: float) -> str:
    words = " ".join(["python", *sys.argv])
    where = (
        device_name(args.device) if args.device == "cuda" else f"{processor_name()}, {torch.get_num_threads()} threads"
    )
    return f"""\
# Speed

One image of {args.size[0]}x{args.size[1]}, {"autocast to bfloat16" if args.amp else "float32"}, on {where};
PyTorch {torch.__version__}. Medians of {args.rounds} rounds, also of the ratios: the machine's speed changes from one
minute to the next, so compare within one table. "Time of its products" is what a model's MACs would take at
the rate of large matrix products of PyTorch's own just before, {rate:.0f} GFLOP/s in the median: with kernels of
our own ([linear layers](linear.md)) a model may take less. "Seconds of the papers' code" were
given, not measured here: of an 800x1066 image on a CPU of that kind, 2 threads, its op in plain PyTorch.

```sh
{words}
```

![AP as published against seconds and MACs](speed.png)

"""


def _about_pace(seconds: float) -> str:
    return f"""\
transformers' Deformable DETR took {PUBLISHED["cpu_seconds"][BASELINE]} s there (given), and {seconds:.2f} s here,
between our models and in a process of its own, whose allocator is as it comes. "Times as fast, at transformers' pace"
supposes that the papers' code would be slower here by the same factor.

"""


CLAIMED = """
What the papers claim, in the same run:

"""
