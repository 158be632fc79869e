"""What the tools that write tables share: which configs there are, what is published of them, Markdown."""

import argparse
import ast
import json
import re
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[2]
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
    "rt_detr": "[RT-DETR](https://arxiv.org/abs/2304.08069), [RT-DETRv2](https://arxiv.org/abs/2407.17140), "
    "[DEIM](https://arxiv.org/abs/2412.04234)",
    "d_fine": "[D-FINE](https://arxiv.org/abs/2410.13842), [DEIM](https://arxiv.org/abs/2412.04234)",
    "faster_rcnn": "[Faster R-CNN](https://arxiv.org/abs/1506.01497), the tables' baseline",
}
"""Papers by the folder of their configs; models of other folders are this project's own."""
SCHEDULE = re.compile(r"_\d+e$")
PUBLISHED = json.loads((ROOT / "tools/dev/published.json").read_text(encoding="utf-8"))


def markdown_row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return (
        "\n".join(
            [markdown_row(*header), markdown_row(*["---"] * len(header)), *(markdown_row(*cells) for cells in rows)]
        )
        + "\n"
    )


def say(line: str, file: TextIO | None):
    """A line for the terminal and, where there is one, for a file."""
    print(line, flush=True)
    if file:
        file.write(f"{line}\n")


def configs(folder: Path) -> dict[str, Path]:
    """{name: config} of a family; longer schedules of a model are left out."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not SCHEDULE.search(path.stem)}


def all_configs() -> dict[str, Path]:
    """{name: config} of all families, the papers' in their order and this project's own last."""
    others = sorted(path.name for path in (ROOT / "config").iterdir() if path.name not in (*PAPERS, "_base_"))
    return {name: path for folder in (*PAPERS, *others) for name, path in configs(ROOT / "config" / folder).items()}


def chosen_configs(names: list[str], parser: argparse.ArgumentParser) -> list[Path]:
    """The configs of a command line, or all where it names none; leaves with an error where a name is unknown."""
    known = all_configs()
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no config is named {', '.join(unknown)}")
    return [known[name] for name in names or known]


def published_ap(path: Path) -> str:
    """What a config's docstring says that its paper reports, and a variant's schedule; may be empty."""
    said = re.search(r"([\d.]+) AP as published", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))
    schedule = SCHEDULE.search(path.stem)
    return (said[1] + (f" ({schedule[0][1:-1]} epochs)" if schedule else "")) if said else ""
