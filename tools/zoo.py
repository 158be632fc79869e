"""Measures every model of config/, or some, and holds it against what its paper prints.

usage: python tools/zoo.py [NAME ...]                   docs/models.md: parameters, multiply-adds, published figures
       python tools/zoo.py --latency [NAME ...]         docs/speed.{md,csv,png}: latency and memory on this machine
                           [--baseline NAME] [--size H W] [--repeats N] [--device cpu|cuda] [--amp]

Without names, every config; only then docs/models.md is written, else its rows are printed.
"""

import argparse
import ast
import csv
import json
import platform
import re
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from models import build_detector
from util.benchmark import SIZE, measure_latency, name_of
from util.config import load_config
from util.flops import count_gmacs
from util.precision import Precision
from util.visualize import scatter_plot

PAPERS = {
    "detr": "[DETR](https://arxiv.org/abs/2005.12872)",
    "conditional_detr": "[Conditional DETR](https://arxiv.org/abs/2108.06152)",
    "pnp_detr": "[PnP-DETR](https://arxiv.org/abs/2109.07036)",
    "deformable_detr": "[Deformable DETR](https://arxiv.org/abs/2010.04159)",
    "efficient_detr": "[Efficient DETR](https://arxiv.org/abs/2104.01318), as Sparse DETR builds it",
    "sparse_detr": "[Sparse DETR](https://arxiv.org/abs/2111.14330)",
    "DINO": "[DINO](https://arxiv.org/abs/2203.03605)",
    "lite_detr": "[Lite DETR](https://arxiv.org/abs/2303.07335)",
    "h_detr": "[H-DETR](https://arxiv.org/abs/2207.13080)",
    "faster_rcnn": "[Faster R-CNN](https://arxiv.org/abs/1506.01497), the tables' baseline",
}
"""Papers by the folder of their configs; models of other folders are this project's own."""
SCHEDULE = re.compile(r"_\d+e$")
PUBLISHED = json.loads((ROOT / "tools/published.json").read_text())
COLUMNS = (
    "model", "config", "parameters, M", "trainable, M", "as printed", "multiply-adds, G", "as its table counts",
    "as printed", "AP as published", "checked",
)  # fmt: skip
HEAD = f"""\
# Models

Written by `python tools/zoo.py`. AP on COCO val2017 is **as published**, by the paper or with its code's checkpoints;
nothing here was trained to the end with this code. Parameters (all, and those that train) and multiply-adds (one
picture of {SIZE[0]}x{SIZE[1]}) are this code's, "as printed" what the paper's table says. Tables differ in what they
count: those of DETR and Conditional DETR average over the first 100 pictures of val2017; Sparse DETR's take one of
800x1066 and leave out the encoder's auxiliary heads (and their 0.8 M parameters); the others take one of
{SIZE[0]}x{SIZE[1]}. "As its table counts" does the same. "Checked": an official checkpoint of generated weights loads,
and gives the outputs, losses and gradients of the paper's code.

"""


def line(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def resized(height: int, width: int, scale: int = 800, longest: int = 1333) -> tuple[int, int]:
    """The size that evaluation gives a picture."""
    short, long = min(height, width), max(height, width)
    if long / short * scale > longest:
        scale = round(longest * short / long)
    return (scale, int(scale * width / height)) if height <= width else (int(scale * height / width), scale)


def as_printed(detector: nn.Module, folder: str, usual: float) -> float:
    """10^9 multiply-adds, counted on the pictures of the family's own table; `usual` are those of one of SIZE."""
    if folder == "sparse_detr":
        detector.encoder.heads = nn.ModuleList()
        return count_gmacs(detector, [torch.empty(3, 800, 1066)])
    if folder not in ("detr", "conditional_detr"):
        return usual
    sizes = Counter(resized(*size) for size in PUBLISHED["val2017_sizes"])
    counts = {size: count_gmacs(detector, [torch.empty(3, *size)]) for size in sizes}
    return sum(counts[size] * times for size, times in sizes.items()) / sizes.total()


def configs(folder: Path) -> dict[str, Path]:
    """{name: config} of a family; longer schedules of a model are left out."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not SCHEDULE.search(path.stem)}


def row(path: Path) -> str:
    """A model's row of docs/models.md. Longer schedules of the model share it."""
    longer = [other for other in sorted(path.parent.glob("*.py")) if SCHEDULE.sub("", other.stem) == path.stem]
    detector = build_detector(load_config(path))
    total = sum(p.numel() for p in detector.parameters()) / 1e6
    trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad) / 1e6
    gmacs = count_gmacs(detector, [torch.empty(3, *SIZE)])
    printed = PUBLISHED["models"].get(path.stem, {})
    checked = any((ROOT / "tests/recordings").glob(f"*/{path.stem}.npz"))
    return line(
        ast.get_docstring(ast.parse(path.read_text())).split("\n")[0].split(":")[0].rstrip("."),
        f"[{path.stem}](../{path.relative_to(ROOT).as_posix()})",
        f"{total:.1f}",
        f"{trainable:.1f}",
        str(printed.get("params_m", "")),
        f"{gmacs:.1f}",
        f"{as_printed(detector, path.parent.name, gmacs):.1f}" if printed else "",
        str(printed.get("gflops", "")),
        ", ".join(said for said in map(published_ap, longer) if said),
        "yes" if checked else "",
    )


def published_ap(path: Path) -> str:
    """What a config's docstring says that its paper reports, and a variant's schedule; may be empty."""
    said = re.search(r"([\d.]+) AP as published", ast.get_docstring(ast.parse(path.read_text())))
    schedule = SCHEDULE.search(path.stem)
    return (said[1] + (f" ({schedule[0][1:-1]} epochs)" if schedule else "")) if said else ""


def write_models(chosen: list[Path], whole: bool):
    """Writes docs/models.md, or prints the rows of some models."""
    lines, family = [line(*COLUMNS), line(*["---"] * len(COLUMNS))], None
    for path in chosen:
        if path.parent.name != family:
            family = path.parent.name
            lines.append(line(f"**{PAPERS.get(family, 'This project')}**", *[""] * (len(COLUMNS) - 1)))
        lines.append(row(path))
        print(lines[-1], file=sys.stderr)
    if whole:
        (ROOT / "docs/models.md").write_text(HEAD + "\n".join(lines) + "\n")
    else:
        print("\n".join(lines))


def write_speed(chosen: list[Path], args: argparse.Namespace):
    """Times the models one after the other, twice over, and writes docs/speed.*."""
    precision = Precision(args.device, args.amp)
    detectors = {path: build_detector(load_config(path)).to(args.device).eval() for path in chosen}
    gmacs = {path: count_gmacs(detectors[path], [torch.empty(3, *args.size)], inference=True) for path in chosen}
    seconds = {path: [] for path in chosen}
    memory = {}
    for _ in range(2):  # noise that comes and goes then meets more than one model
        for path, detector in detectors.items():
            numbers = measure_latency(detector, 1, args.size, precision, args.repeats)
            seconds[path].append(numbers["latency_ms"] / 1e3)
            memory[path] = numbers["peak_mb"]
            print(f"{path.stem} {numbers['latency_ms']:.0f} ms", file=sys.stderr)
    rows = [(path.stem, published_ap(path), gmacs[path], min(seconds[path]), memory[path]) for path in chosen]
    base = next((found for found in rows if found[0] == args.baseline), rows[0])
    header = ("model", "AP as published", "multiply-adds, G", "seconds", "peak MB",
              f"multiply-adds / {base[0]}", f"seconds / {base[0]}")  # fmt: skip
    table = [
        (name, ap, f"{work:.1f}", f"{time:.3g}", f"{peak:.0f}", f"{work / base[2]:.2f}", f"{time / base[3]:.2f}")
        for name, ap, work, time, peak in rows
    ]
    words = " ".join(["python", *sys.argv])
    where = name_of(args.device) if args.device == "cuda" else f"{platform.machine()} {name_of(args.device)}"
    about = f"""\
# Speed

One picture of {args.size[0]}x{args.size[1]}, {"autocast to bfloat16" if args.amp else "float32"}, on {where};
PyTorch {torch.__version__}. The better median of two rounds. Machines are noisy: compare within this table only.

```sh
{words}
```

![AP as published against seconds and multiply-adds](speed.png)

"""
    lines = [line(*header), line(*["---"] * len(header)), *(line(*cells) for cells in table)]
    (ROOT / "docs/speed.md").write_text(about + "\n".join(lines) + "\n")
    with (ROOT / "docs/speed.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *table])
    points = [(name, float(ap.split()[0]), time, work) for name, ap, work, time, _ in rows if ap]
    scatter_plot(points, ("seconds", "multiply-adds, G"), "AP as published", ROOT / "docs/speed.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--baseline", default="deformable_detr_r50", metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true")
    args = parser.parse_args()
    others = sorted(path.name for path in (ROOT / "config").iterdir() if path.name not in (*PAPERS, "_base_"))
    known = {name: path for folder in (*PAPERS, *others) for name, path in configs(ROOT / "config" / folder).items()}
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"no config is named {', '.join(unknown)}")
    chosen = [known[name] for name in args.names or known]
    if args.latency:
        write_speed(chosen, args)
    else:
        write_models(chosen, whole=not args.names)


if __name__ == "__main__":
    main()
