"""Measures every model of config/, or some, and holds it against what its paper prints.

usage: python tools/dev/zoo.py [NAME ...]                   docs/models.md: parameters, MACs, published figures
       python tools/dev/zoo.py --latency [NAME ...]         docs/speed.{md,csv,png}: latency and memory on this machine,
                                                        beside its matrix products, the papers' code and claims
                           [--baseline NAME] [--size H W] [--repeats N] [--rounds N] [--device cpu|cuda] [--amp]
                           [--out FOLDER]

Without names, every config; only then docs/models.md is written, else its rows are printed.
"""

import argparse
import ast
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from models import build_detector
from tools.dev.speed import write_speed
from tools.dev.tables import PAPERS, PUBLISHED, SCHEDULE, chosen_configs, markdown_row, markdown_table, published_ap
from util.cli.outputs import growing_file, writable_file, writable_folder
from util.config import load_config
from util.measuring.benchmark import REAL_TIME_SIZE, SIZE
from util.measuring.flops import ELEMENTWISE, count_gmacs
from util.processes.allocator import keep_freed_memory

COLUMNS = (
    "model", "config", "parameters, M", "trainable, M", "as printed", "GMACs", "as its table counts",
    "as printed", "AP as published", "checked",
)  # fmt: skip
REAL_TIME_COLUMNS = (*COLUMNS[:6], "GFLOPs as its table counts", "GFLOPs as printed", *COLUMNS[8:], "weights")
REAL_TIME = ("rt_detr", "d_fine")
"""Families whose tables print GFLOPs of one image of REAL_TIME_SIZE: two for every multiply-add."""
DEPLOYED = ("d_fine",)
"""Those of them that count what inference computes."""
HEAD = f"""\
# Models

Written by `python tools/dev/zoo.py`. AP on COCO val2017 is **as published**, by the paper or with its code's
checkpoints; nothing here was trained to the end with this code. Parameters (all, and those that train) and MACs (one
image of {SIZE[0]}x{SIZE[1]}) are this code's, "as printed" what the paper's table says. Tables differ in what they
count: those of DETR and Conditional DETR average over the first 100 images of val2017 and count sums, products, ReLUs
and softmax too, number by number; Sparse DETR's take one of 800x1066 and leave out the encoder's auxiliary heads (and
their 0.8 M parameters), its row of DETR on Swin-T too; the others take one of {SIZE[0]}x{SIZE[1]}.
"As its table counts" does the same; rows that still differ by more than 1 % are listed below, with the reason.
So are rows whose parameters are not those printed. "Checked": an official checkpoint of generated weights loads, and
gives the outputs, losses and gradients of the paper's code.

"""


REAL_TIME_HEAD = f"""
## Real-time detectors

GMACs are those of one image of {SIZE[0]}x{SIZE[1]}, as above. **GFLOPs are not comparable with them**: these papers'
tables take one image of {REAL_TIME_SIZE[0]}x{REAL_TIME_SIZE[1]} and count two for every multiply-add. RT-DETR's are of
the model as it is trained. D-FINE's are of the deployed one, as inference computes it here: norms are folded into their
convolutions, branches of a 3x3 and a 1x1 convolution are one, and boxes are those of chosen tokens alone.
Weights are files below `https://github.com/lyuwenyu/storage/releases/download/` (RT-DETR, RT-DETRv2)
and `https://github.com/Peterande/storage/releases/download/dfinev1.0/` (D-FINE); nothing here fetches them by itself.
DEIM's are not files that can be named by a link.

"""


def resized(height: int, width: int, scale: int = 800, longest: int = 1333) -> tuple[int, int]:
    """The size that evaluation gives an image."""
    short, long = min(height, width), max(height, width)
    if long / short * scale > longest:
        scale = round(longest * short / long)
    return (scale, int(scale * width / height)) if height <= width else (int(scale * height / width), scale)


def as_printed(detector: nn.Module, folder: str, printed: dict, usual: float) -> float:
    """GMACs, counted on the images of the row's own table, or GFLOPs; `usual` are those of one of SIZE."""
    if folder in REAL_TIME:
        return 2 * count_gmacs(detector, [torch.empty(3, *REAL_TIME_SIZE)], inference=folder in DEPLOYED)
    if "size" in printed:
        return count_gmacs(detector, [torch.empty(3, *printed["size"])])
    if folder == "sparse_detr":
        detector.encoder.heads = nn.ModuleList()
        return count_gmacs(detector, [torch.empty(3, 800, 1066)])
    if folder not in ("detr", "conditional_detr"):
        return usual
    # On its side an image costs the same.
    sizes = Counter(tuple(sorted(resized(*size))) for size in PUBLISHED["val2017_sizes"])
    counts = {size: count_gmacs(detector, [torch.empty(3, *size)], convention=ELEMENTWISE) for size in sizes}
    return sum(counts[size] * times for size, times in sizes.items()) / sizes.total()


def row(path: Path) -> tuple[str, ...]:
    """A model's row of docs/models.md. Longer schedules of the model share it."""
    longer = [other for other in sorted(path.parent.glob("*.py")) if SCHEDULE.sub("", other.stem) == path.stem]
    detector = build_detector(load_config(path))
    total = sum(p.numel() for p in detector.parameters()) / 1e6
    trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad) / 1e6
    gmacs = count_gmacs(detector, [torch.empty(3, *SIZE)])
    printed = PUBLISHED["models"].get(path.stem, {})
    in_real_time = path.parent.name in REAL_TIME
    recordings = (f"*/{path.stem}{variant}.npz" for variant in ("", "_spread"))
    checked = any(any((ROOT / "tests/recordings").glob(pattern)) for pattern in recordings)
    weights = (f"`{printed['weights']}`" if printed else "",) if in_real_time else ()
    return (
        ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n")[0].split(":")[0].rstrip("."),
        f"[{path.stem}](../{path.relative_to(ROOT).as_posix()})",
        f"{total:.1f}",
        f"{trainable:.1f}",
        str(printed.get("params_m", "")),
        f"{gmacs:.1f}",
        f"{as_printed(detector, path.parent.name, printed, gmacs):.1f}" if printed or in_real_time else "",
        str(printed.get("gflops", "")),
        ", ".join(said for said in map(published_ap, longer) if said),
        "yes" if checked else "",
        *weights,
    )


def differences(rows: dict[str, tuple[str, ...]]) -> str:
    """The rows whose MACs, counted as in their table, differ from the printed ones by more than 1 %.

    And those of whose parameters neither all nor those that train are printed.
    """
    found = []
    for name, cells in rows.items():
        printed = PUBLISHED["models"].get(name, {}).get("params_m")
        digits = 1 if isinstance(printed, float) else 0
        if printed and all(round(float(cell), digits) != printed for cell in cells[2:4]):
            reason = PUBLISHED["reasons"].get(PUBLISHED["models"][name].get("params_reason"), "not known")
            found.append((name, f"{cells[3]} M trainable", f"{printed} M", "", reason))
        ours, theirs = cells[6], PUBLISHED["models"].get(name, {}).get("gflops")
        if theirs and abs(float(ours) / theirs - 1) > 0.01:
            reason = PUBLISHED["reasons"].get(PUBLISHED["models"][name].get("reason"), "not known")
            found.append((name, ours, str(theirs), f"{100 * (float(ours) / theirs - 1):+.1f} %", reason))
    return (
        "\n" + markdown_table(("model", "as its table counts", "as printed", "difference", "reason"), found)
        if found
        else ""
    )


def write_models(chosen: list[Path], whole: bool):
    """Writes docs/models.md, or prints the rows of some models."""
    with growing_file(writable_file(ROOT / "docs/models.md")) if whole else nullcontext(sys.stdout) as file:
        write, rows, family = partial(print, file=file, flush=True), {}, None
        for columns, head, paths in (
            (COLUMNS, HEAD, [path for path in chosen if path.parent.name not in REAL_TIME]),
            (REAL_TIME_COLUMNS, REAL_TIME_HEAD, [path for path in chosen if path.parent.name in REAL_TIME]),
        ):
            if not paths:
                continue
            if whole:
                write(head, end="")
            write(markdown_row(*columns), markdown_row(*["---"] * len(columns)), sep="\n")
            for path in paths:
                if path.parent.name != family:
                    family = path.parent.name
                    write(markdown_row(f"**{PAPERS.get(family, 'This project')}**", *[""] * (len(columns) - 1)))
                rows[path.stem] = row(path)
                write(markdown_row(*rows[path.stem]))
                print(path.stem, file=sys.stderr)
        if whole:
            write("\n## What differs from the tables\n", end="")
        write(differences(rows), end="")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--baseline", default="deformable_detr_r50", metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument(
        "--out",
        type=writable_folder,
        default=str(ROOT / "docs"),
        metavar="FOLDER",
        help="of speed.{md,csv,png} and speed_rounds.csv",
    )
    args = parser.parse_args()
    if args.device == "cpu":
        keep_freed_memory()
    chosen = chosen_configs(args.names, parser)
    if args.latency:
        write_speed(chosen, args)
    else:
        write_models(chosen, whole=not args.names)


if __name__ == "__main__":
    main()
