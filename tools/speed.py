"""The tables of docs/speed.md, which tools/zoo.py --latency writes."""

import argparse
import csv
import platform
import sys
from pathlib import Path

import torch

from models import build_detector
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


def measure_all(chosen: list[Path], args: argparse.Namespace) -> tuple[dict[str, dict], float]:
    """Times the models one after the other, three times over, and the machine's matrix products between them.

    Returns:
        by name: gmacs, seconds (the best median), peak_mb; and the matrix products' operations per second in 10^9.
    """
    precision = Precision(args.device, args.amp)
    detectors = {path.stem: build_detector(load_config(path)).to(args.device).eval() for path in chosen}
    found, rates = {name: {"seconds": []} for name in detectors}, []
    for name, detector in detectors.items():
        found[name]["gmacs"] = count_gmacs(detector, [torch.empty(3, *args.size)], inference=True)
    for _ in range(args.rounds):  # noise that comes and goes then meets more than one model
        for name, detector in detectors.items():
            rates.append(matrix_rate(precision))
            numbers = measure_latency(detector, 1, args.size, precision, args.repeats)
            found[name]["seconds"].append(numbers["latency_ms"] / 1e3)
            found[name]["peak_mb"] = numbers["peak_mb"]
            print(f"{name} {numbers['latency_ms']:.0f} ms, {rates[-1]:.0f} GFLOP/s", file=sys.stderr)
    return {name: {**numbers, "seconds": min(numbers["seconds"])} for name, numbers in found.items()}, max(rates)


def write_speed(chosen: list[Path], args: argparse.Namespace):
    """Measures and writes speed.{md,csv,png} in a folder."""
    found, rate = measure_all(chosen, args)
    base = args.baseline if args.baseline in found else chosen[0].stem
    ap = {path.stem: published_ap(path) for path in chosen}
    rows = [_row(name, ap[name], numbers, found[base], rate) for name, numbers in found.items()]
    header = ("model", "AP as published", "multiply-adds, G", "seconds", "peak MB", f"multiply-adds / {base}",
              f"seconds / {base}", "seconds / time of its products", "seconds of the papers' code",
              "times as fast")  # fmt: skip
    claims = [_claim(found[fast], found[slow], fast, slow) for fast, slow in CLAIMS if {fast, slow} <= found.keys()]
    claimed = table(("model", "than", "multiply-adds, times fewer", "seconds, times fewer", "of these"), claims)
    (args.out / "speed.md").write_text(_about(args, rate) + table(header, rows) + (CLAIMED + claimed if claims else ""))
    with (args.out / "speed.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    points = [(name, float(ap[name].split()[0]), n["seconds"], n["gmacs"]) for name, n in found.items() if ap[name]]
    scatter_plot(points, ("seconds", "multiply-adds, G"), "AP as published", args.out / "speed.png")


def _row(name: str, ap: str, numbers: dict, base: dict, rate: float) -> tuple[str, ...]:
    gmacs, seconds = numbers["gmacs"], numbers["seconds"]
    theirs = PUBLISHED["cpu_seconds"].get(name)
    return (
        name,
        ap,
        f"{gmacs:.1f}",
        f"{seconds:.3g}",
        f"{numbers['peak_mb']:.0f}",
        f"{gmacs / base['gmacs']:.2f}",
        f"{seconds / base['seconds']:.2f}",
        f"{seconds / (2 * gmacs / rate):.2f}",
        f"{theirs}" if theirs else "",
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
Products of large matrices reached {rate:.0f} GFLOP/s between the models; "time of its products" is what a model's
multiply-adds would take at that rate. "Seconds of the papers' code" were given, not measured here: of an 800x1066
picture on a like CPU, 2 threads, its op in plain PyTorch.

```sh
{words}
```

![AP as published against seconds and multiply-adds](speed.png)

"""


CLAIMED = """
What the papers claim, in the same run:

"""
