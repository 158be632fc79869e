"""Writes one web page about an evaluation: how good the detector is, what its errors are, how it was trained.

usage: python tools/report.py OUTPUT_DIR [--coco_path DIR] [--score S] [--num_images N] [--out FILE.html]

OUTPUT_DIR is that of `main.py ... --eval --save_results`. The page opens from the disk and asks for nothing else.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import jinja2  # comes with torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from datasets.analysis import SIZES, Analysis, analyse_detections, read_results
from datasets.cards import SHORT_KINDS, image_card
from datasets.coco import DetectionDataset
from datasets.loader import build_dataset
from tools.lib.svg import Line, line_chart
from util.cli.outputs import writable_file
from util.cli.tools import run_tool
from util.config import ConfigDict, ConfigError, parse_config
from util.files.writing import UnwritableError, write_text
from util.reporting.logger import journal_points, read_journal

NUMBERS = {
    "AP": "precision, mean over IoU 0.50 to 0.95",
    "AP50": "precision at IoU 0.50",
    "AP75": "precision at IoU 0.75",
    "APs": "precision, small objects (area up to 32 x 32 pixels)",
    "APm": "precision, medium objects (up to 96 x 96 pixels)",
    "APl": "precision, large objects",
    "AR1": "recall with one detection an image",
    "AR10": "recall with ten detections an image",
    "AR100": "recall with a hundred detections an image",
    "ARs": "recall, small objects",
    "ARm": "recall, medium objects",
    "ARl": "recall, large objects",
}
ERRORS = {
    "classification": "the place of an object (IoU ≥ 0.5), but the wrong class",
    "localisation": "the right class, but a poor place (IoU 0.1 to 0.5)",
    "both": "neither the right class nor a good place",
    "duplicate": "an object that a surer detection has found already",
    "background": "nothing there (IoU < 0.1 with every object)",
    "missed": "objects that no detection found, and none of the first two kinds would have",
}
CURVES = {
    "loss": ("train_loss", "test_loss", "ema_test_loss"),
    "average precision": ("test_AP", "test_AP50", "ema_test_AP", "ema_test_AP50"),
    "learning rate": ("train_lr",),
}
SHOWN_CLASSES = 25
"""A larger confusion matrix, and more curves, are folded away."""


class MissingInputError(OSError):
    """A file that the report needs is not there; the message says what makes it."""


def chart(curves: dict[str, np.ndarray], title: str) -> str:
    """Precision over recall."""
    recall = np.linspace(0, 1, 101).tolist()
    lines = [Line(name, recall, values.tolist()) for name, values in curves.items()]
    return line_chart(lines, title, "recall", "precision", (0, 1), (0, 1))


def training_curves(path: Path) -> list[dict]:
    """Charts of what log.txt tells of every epoch."""
    entries, problems = read_journal(path)
    for problem in problems:
        print(problem, file=sys.stderr)
    charts = []
    for title, names in CURVES.items():
        lines = []
        for name in names:
            points = journal_points(entries, name)
            if points:
                lines.append(Line(name, *map(list, zip(*points, strict=True))))
        if lines:
            ends = "; ".join(f"{line.name} {line.ys[-1]:.4g}" for line in lines)
            label = f"{title} over {len(entries)} epochs, at last {ends}"
            charts.append({"title": title, "svg": line_chart(lines, label, "epoch", title)})
    return charts


def confusion_rows(analysis: Analysis) -> tuple[list[str], list[dict], list[tuple[str, str, int]]]:
    """The confusion matrix for a page: its classes, its rows, and what was most often taken for another class.

    Classes without objects and detections are left out.
    """
    table, names = analysis.confusion, [entry.name for entry in analysis.classes]
    used = [place for place in range(len(names)) if table[place].any() or table[:, place].any()]
    columns, rows = [*used, len(names)], []
    for place in columns:
        total = max(1, int(table[place].sum()))
        cells = [(int(table[place, c]), round(45 * table[place, c] / total), place == c < len(names)) for c in columns]
        rows.append({"name": [*names, "nothing"][place], "cells": cells})
    pairs = [(int(table[i, j]), i, j) for i in used for j in used if i != j and table[i, j]]
    most = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:15]
    return [row["name"] for row in rows], rows, [(names[i], names[j], count) for count, i, j in most]


def stored_numbers(output_dir: Path, analysis: Analysis) -> tuple[str | None, str | None]:
    """Whose numbers eval.json holds last, as results.json does its detections; and what contradicts the analysis."""
    path = output_dir / "eval.json"
    if not path.is_file():
        return None, None
    name, stored = list(json.loads(path.read_text(encoding="utf-8")).items())[-1]
    for key, value in analysis.numbers.items():
        if abs(value - stored.get(key, np.inf)) > 1e-9:  # eval.json holds ten digits
            return name, f"eval.json says {key} {stored.get(key)}, the detections in results.json give {value}"
    return name, None


def read_benchmark(path: Path) -> dict:
    """benchmark.json of a run; in older ones images were called pictures."""
    return json.loads(path.read_text(encoding="utf-8").replace('"pictures_per_second"', '"images_per_second"'))


def build_report(
    output_dir: Path, cfg: ConfigDict, dataset: DetectionDataset, detections: np.ndarray, score: float, images: int
) -> str:
    """The page.

    Args:
        output_dir: of an evaluation.
        cfg: its config.
        dataset: that was evaluated on.
        detections: (D, 7) rows of `CocoEvaluator.detections`.
        score: of detections that are shown and counted.
        images: how many of the best, and of the worst, are shown at most.
    """
    analysis = analyse_detections(dataset.annotations, detections, score)
    best, worst = analysis.extremes(images)
    cards = [[image_card(dataset, detections, scores) for scores in some] for some in (best, worst)]
    weights, contradiction = stored_numbers(output_dir, analysis)
    evaluate = command(output_dir, cfg, "--eval --save_results")
    benchmark = output_dir / "benchmark.json"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "tools/lib"),
        autoescape=True,  # names of classes and files are anybody's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        name=output_dir.resolve().name,
        annotations=dataset.annotations,
        detections=len(detections),
        weights={"regular": "the model", "ema": "the model's EMA"}.get(weights, weights),
        contradiction=contradiction and f"{contradiction}. They are not of one evaluation; run again: {evaluate}",
        best=[card for card in cards[0] if card],
        worst=[card for card in cards[1] if card],
        unreadable=sum(card is None for some in cards for card in some),
        training=training_curves(output_dir / "log.txt"),
        benchmark=read_benchmark(benchmark) if benchmark.is_file() else None,
        benchmark_command=command(output_dir, cfg, "--benchmark_only"),
        config=(output_dir / "config.py").read_text(encoding="utf-8"),
        **score_parts(analysis),
    )


def score_parts(analysis: Analysis) -> dict:
    """What the page's parts about scores and errors show."""
    columns, rows, confusions = confusion_rows(analysis)
    return {
        "analysis": analysis,
        "meanings": NUMBERS,
        "absent": [entry.name for entry in analysis.classes if not entry.objects],
        "sizes": SIZES,
        "error_meanings": ERRORS,
        "short_kinds": SHORT_KINDS,
        "highest_cost": max([1e-9, *(error.cost for error in analysis.errors)]),
        "mean_curve": analysis.curves and chart(analysis.curves, "Precision over recall, mean of all classes"),
        "class_curves": [
            {"name": entry.name, "svg": chart(entry.curves, f"Precision over recall of {entry.name}")}
            for entry in analysis.classes
            if entry.curves
        ],
        "columns": columns,
        "confusion": rows,
        "confusions": confusions,
        "folded": len(analysis.classes) > SHOWN_CLASSES,
    }


def command(output_dir: Path, cfg: ConfigDict, flags: str) -> str:
    """What makes a missing file."""
    root = shlex.quote(str(cfg.data.root))
    config = shlex.quote(str(output_dir / "config.py"))
    return f"python main.py -c {config} --coco_path {root} --output_dir {shlex.quote(str(output_dir))} {flags}"


def read_inputs(output_dir: Path, coco_path: str | None) -> tuple[ConfigDict, DetectionDataset, np.ndarray]:
    """The config, the data and the detections of an evaluation.

    Raises:
        MissingInputError, ConfigError, ValueError: what is missing or wrong, and what helps.
    """
    path, results = output_dir / "config.py", output_dir / "results.json"
    if not path.is_file():
        remedy = f"python main.py -c CONFIG --coco_path COCODIR --output_dir {output_dir} --eval --save_results"
        raise MissingInputError(f"{path}: not there, so {output_dir} is no folder of a run; this makes one: {remedy}")
    cfg = parse_config(path.read_text(encoding="utf-8"), str(path))
    if coco_path is not None:
        cfg.data.root = coco_path
    if not results.is_file():
        raise MissingInputError(
            f"{results}: not there; it is made by {command(output_dir, cfg, '--eval --save_results')}"
        )
    dataset = build_dataset(cfg, "val")
    return cfg, dataset, read_results(results, dataset.annotations)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or a list of words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("output_dir", type=Path, metavar="OUTPUT_DIR")
    add("--coco_path", metavar="DIR", help="where the data is now (default: as the config says)")
    add("--score", type=float, default=0.3, metavar="S", help="of detections that are shown and counted (default: 0.3)")
    add(
        "--num_images", "--pictures", type=int, default=6, metavar="N", help="of the best and of the worst (default: 6)"
    )
    add("--out", type=writable_file, metavar="FILE", help="default: OUTPUT_DIR/report.html")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 when something is missing."""
    args = parse_arguments(arguments)
    try:
        inputs = read_inputs(args.output_dir, args.coco_path)
        out = args.out or writable_file(args.output_dir / "report.html")
    except (MissingInputError, ConfigError, UnwritableError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    page = build_report(args.output_dir, *inputs, args.score, args.num_images)
    write_text(out, page)
    print(f"{out}: {len(page) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    run_tool(main)
