"""How cost grows with the image: docs/growth.{csv,png}.

usage: python tools/dev/growth.py [NAME ...] [--sides N ...] [--repeats N] [--rounds N] [--device cpu|cuda] [--amp]

Images are 4 wide to 3 high, and as in evaluation no longer than 1333.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tools.dev.speed import measure_all
from tools.dev.tables import chosen_configs
from util.cli.outputs import growing_file, writable_file
from util.processes.allocator import keep_freed_memory
from util.reporting.plots import line_plots

MODELS = ("dino_4scale_r50", "lite_dino_r50_h3l1_2p1x3_kda", "lite_dino_r50_h3l1_2p1x3_da")
SIDES = (400, 600, 800, 1000, 1200, 1333)
LONGEST = 1333
QUANTITIES = {"GMACs": "gmacs", "seconds": "seconds", "peak MB": "peak_mb"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, metavar="N")
    parser.add_argument("--repeats", type=int, default=1, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true")
    args = parser.parse_args()
    if args.device == "cpu":
        keep_freed_memory()
    chosen = chosen_configs(args.names or MODELS, parser)
    rows = []
    with growing_file(writable_file(ROOT / "docs/growth.csv")) as file:
        writer = csv.writer(file)
        writer.writerow(("model", "height", "width", *QUANTITIES))
        for side in args.sides:
            args.size = side, min(LONGEST, side * 4 // 3)
            for name, numbers in measure_all(chosen, args).items():
                numbers["seconds"] = statistics.median(numbers["seconds"])
                rows.append((name, *args.size, *(numbers[key] for key in QUANTITIES.values())))
                writer.writerow((*rows[-1][:3], *(f"{value:.4g}" for value in rows[-1][3:])))
    lines = {}
    for name, height, width, *values in rows:
        lines.setdefault(name, []).append((height * width / 1e6, *values))
    line_plots(lines, "megapixels", tuple(QUANTITIES), ROOT / "docs/growth.png")


if __name__ == "__main__":
    main()
