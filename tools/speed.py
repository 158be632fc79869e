"""The tables of docs/speed.md, which tools/zoo.py --latency writes."""

import argparse
import csv
import importlib.util
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from models import build_detector
from tools.benchmark_peers import SIZE, Opponent
from tools.tables import PUBLISHED, published_ap, table
from util.benchmark import matrix_rate, measure_latency, name_of
from util.config import load_config
from util.flops import count_gmacs
from util.precision import Precision
from util.visualize import scatter_plot

CLAIMS = (
    *((f"sparse_detr_r50_rho_0.{i}", "efficient_detr_r50") for i in range(1, 6)),
    *((f"lite_dino_r50_{kind}_{attention}", "dino_4scale_r50")
      for kind in ("h3l1_2p1x3", "h3l1_6p1x1", "h2l2_2p1x3") for attention in ("kda", "da")),
)  # fmt: skip
"""(what its paper calls faster, than what)."""
YARDSTICK = "transformers' deformable_detr_r50"
"""Whose seconds are known of the machine that the papers' code ran on, and can be measured here."""


def measure_all(
    chosen: list[Path], args: argparse.Namespace, opponents: dict[str, Callable] | None = None
) -> tuple[dict[str, dict], float]:
    """Times the models one after the other, once a round, and the machine's matrix products between them.

    Args:
        opponents: by name, further models to time: callables that take a list of pictures.

    Returns:
        by name: gmacs (not of opponents), seconds, peak_mb; and the matrix products' operations per second in 10^9.
        Both times are medians of each round, and the best of the rounds.
    """
    precision = Precision(args.device, args.amp)
    detectors = {path.stem: build_detector(load_config(path)).to(args.device).eval() for path in chosen}
    found, rates = {name: {"seconds": []} for name in (*detectors, *(opponents or ()))}, []
    for name, detector in detectors.items():
        found[name]["gmacs"] = count_gmacs(detector, [torch.empty(3, *args.size)], inference=True)
    for _ in range(args.rounds):  # noise that comes and goes then meets more than one model
        rates.append([])
        for name, detector in (detectors | (opponents or {})).items():
            rates[-1].append(matrix_rate(precision))
            numbers = measure_latency(detector, 1, args.size, precision, args.repeats)
            found[name]["seconds"].append(numbers["latency_ms"] / 1e3)
            found[name]["peak_mb"] = numbers["peak_mb"]
            print(f"{name} {numbers['latency_ms']:.0f} ms, {rates[-1][-1]:.0f} GFLOP/s", file=sys.stderr)
    best = {name: {**numbers, "seconds": min(numbers["seconds"])} for name, numbers in found.items()}
    return best, max(map(statistics.median, rates))


def yardstick(args: argparse.Namespace) -> dict[str, Callable]:
    """transformers' model by name, where transformers is installed and can be held against the given seconds."""
    measurable = args.device == "cpu" and not args.amp and tuple(args.size) == SIZE
    found = measurable and importlib.util.find_spec("transformers") is not None
    return {YARDSTICK: Opponent("deformable_detr_r50")} if found else {}


def write_speed(chosen: list[Path], args: argparse.Namespace):
    """Measures and writes speed.{md,csv,png} in a folder."""
    found, rate = measure_all(chosen, args, yardstick(args))
    theirs = found.pop(YARDSTICK, None)
    # How much longer the same work takes here than on the machine that the given seconds are of.
    pace = theirs["seconds"] / PUBLISHED["cpu_seconds"][YARDSTICK] if theirs else None
    base = args.baseline if args.baseline in found else chosen[0].stem
    ap = {path.stem: published_ap(path) for path in chosen}
    rows = [_row(name, ap[name], numbers, found[base], rate, pace) for name, numbers in found.items()]
    header = ("model", "AP as published", "multiply-adds, G", "seconds", "peak MB", f"multiply-adds / {base}",
              f"seconds / {base}", "seconds / time of its products", "seconds of the papers' code",
              "at this machine's pace", "times as fast")  # fmt: skip
    claims = [_claim(found[fast], found[slow], fast, slow) for fast, slow in CLAIMS if {fast, slow} <= found.keys()]
    claimed = table(("model", "than", "multiply-adds, times fewer", "seconds, times fewer", "of these"), claims)
    measured = _about(args, rate) + (_about_pace(theirs["seconds"], pace) if theirs else "") + table(header, rows)
    (args.out / "speed.md").write_text(measured + (CLAIMED + claimed if claims else ""))
    with (args.out / "speed.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    points = [(name, float(ap[name].split()[0]), n["seconds"], n["gmacs"]) for name, n in found.items() if ap[name]]
    scatter_plot(points, ("seconds", "multiply-adds, G"), "AP as published", args.out / "speed.png")


def _row(name: str, ap: str, numbers: dict, base: dict, rate: float, pace: float | None) -> tuple[str, ...]:
    gmacs, seconds = numbers["gmacs"], numbers["seconds"]
    given = PUBLISHED["cpu_seconds"].get(name)
    theirs = given and pace and given * pace
    return (
        name,
        ap,
        f"{gmacs:.1f}",
        f"{seconds:.3g}",
        f"{numbers['peak_mb']:.0f}",
        f"{gmacs / base['gmacs']:.2f}",
        f"{seconds / base['seconds']:.2f}",
        f"{seconds / (2 * gmacs / rate):.2f}",
        f"{given}" if given else "",
        f"{theirs:.3g}" if theirs else "",
        f"{theirs / seconds:.1f}" if theirs else "",
    )


def _claim(fast: dict, slow: dict, *names: str) -> tuple[str, ...]:
    work, time = slow["gmacs"] / fast["gmacs"], slow["seconds"] / fast["seconds"]
    return (*names, f"{work:.2f}", f"{time:.2f}", f"{time / work:.2f}")


def _about(args: argparse.Namespace, rate: float) -> str:
    words = " ".join(["python", *sys.argv])
    where = name_of(args.device) if args.device == "cuda" else f"{platform.machine()} {name_of(args.device)}"
    return f"""\
# Speed

One picture of {args.size[0]}x{args.size[1]}, {"autocast to bfloat16" if args.amp else "float32"}, on {where};
PyTorch {torch.__version__}. The best median of {args.rounds} rounds. Machines are noisy: compare within one table.
Products of large matrices, measured the same way between the models, reached {rate:.0f} GFLOP/s; "time of its products"
is what a model's multiply-adds would take at that rate. "Seconds of the papers' code" were given, not measured here: of
an 800x1066 picture on another CPU, 2 threads, its op in plain PyTorch.

```sh
{words}
```

![AP as published against seconds and multiply-adds](speed.png)

"""


def _about_pace(seconds: float, pace: float) -> str:
    return f"""\
transformers' Deformable DETR took {PUBLISHED["cpu_seconds"][YARDSTICK]} s on that CPU (given), and {seconds:.2f} s
here, in this very run; so the papers' code would take {pace:.2f} times its given seconds "at this machine's pace".

"""


CLAIMED = """
What the papers claim, in the same run:

"""
