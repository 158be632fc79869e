"""Writes docs/models.md: every model of config/ with what it costs and what its paper reports.

usage: python tools/model_table.py
"""

import ast
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from models import build_detector
from util.benchmark import SIZE
from util.config import load_config
from util.flops import count_gmacs

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
HEAD = f"""\
# Models

Written by `python tools/model_table.py`. AP on COCO val2017 is **as published**, by the paper or with its code's
checkpoints; nothing here was trained to the end with this code. Parameters (all, and those that train) and
multiply-adds (one picture of {SIZE[0]}x{SIZE[1]}, counted as published tables count) are this code's. "Checked": an
official checkpoint of generated weights loads, and gives the outputs, losses and gradients of the paper's code.

| model | config | parameters, M | trainable, M | multiply-adds, G | AP as published | checked |
|---|---|---|---|---|---|---|
"""


def rows(folder: Path) -> list[str]:
    """The table's rows of one family. Longer schedules of a model share its row."""
    found = []
    for path in sorted(folder.glob("*.py")):
        if SCHEDULE.search(path.stem):
            continue
        longer = [other for other in sorted(folder.glob("*.py")) if SCHEDULE.sub("", other.stem) == path.stem]
        reported = [said for said in map(published, longer) if said]
        cfg = load_config(path)
        detector = build_detector(cfg)
        total = sum(p.numel() for p in detector.parameters()) / 1e6
        trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad) / 1e6
        gmacs = count_gmacs(detector, [torch.empty(3, *SIZE)])
        checked = "yes" if any((ROOT / "tests/recordings").glob(f"*/{path.stem}.npz")) else ""
        link = f"[{path.stem}](../{path.relative_to(ROOT).as_posix()})"
        about = ast.get_docstring(ast.parse(path.read_text())).split("\n")[0].split(":")[0].rstrip(".")
        ap = ", ".join(reported)
        found.append(f"| {about} | {link} | {total:.1f} | {trainable:.1f} | {gmacs:.1f} | {ap} | {checked} |")
    return found


def published(path: Path) -> str:
    """What a config's docstring says that its paper reports, and a variant's schedule; may be empty."""
    said = re.search(r"([\d.]+) AP as published", ast.get_docstring(ast.parse(path.read_text())))
    schedule = SCHEDULE.search(path.stem)
    return (said[1] + (f" ({schedule[0][1:-1]} epochs)" if schedule else "")) if said else ""


def main():
    lines = []
    others = sorted(path.name for path in (ROOT / "config").iterdir() if path.name not in (*PAPERS, "_base_"))
    for name in (*PAPERS, *others):
        lines += [f"| **{PAPERS.get(name, 'This project')}** | | | | | | |", *rows(ROOT / "config" / name)]
    (ROOT / "docs/models.md").write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
