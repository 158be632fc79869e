"""Says what is wrong with a data set before a training finds out, and writes a copy without it.

  python -m datasets.validate COCODIR                                 all of annotations/instances_*.json
  python -m datasets.validate ROBOFLOWDIR                             all of */_annotations.coco.json
  python -m datasets.validate -c config/mine.py [COCODIR]             the splits that a config names
  python -m datasets.validate labels.json --images photos --queries 300 --strict
  python -m datasets.validate COCODIR --fix FIXED                     FIXED/annotations/instances_*.json

Every image is decoded unless --no_decode is given. Exit status: 0; 1 with --strict when there is a problem; 2 when a
file cannot be used at all, or nothing in it.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.annotations import Annotations, usable_annotations
from datasets.categories import Categories
from datasets.checks import Problem, check_boxes, check_ids, without_repeats
from datasets.coco import CorruptImageError, DetectionDataset
from datasets.coco_file import parse_coco_file
from datasets.image_paths import check_files, located
from datasets.images import MAX_PIXELS
from datasets.loader import data_root, find_split
from datasets.repair import write_fixed
from datasets.split_checks import check_splits, class_table
from datasets.transforms import EvalTransform
from util.config import ConfigDict, ConfigError, find_value, load_config
from util.files.console import show_any_character

log = logging.getLogger(__name__)

ROBOFLOW = "_annotations.coco.json"
"""The name of an annotation file in Roboflow's exports, which lies among the images."""


@dataclass(frozen=True)
class Part:
    """One annotation file to look at.

    Attributes:
        name: of the split.
        file, folder: the annotations and the images.
    """

    name: str
    file: Path
    folder: Path


@dataclass(frozen=True)
class Report:
    """What was found in one annotation file and its images.

    Attributes:
        annotations: what can be used.
        listed: images and objects that the file lists.
        usable: (I,) bool: images of `annotations` that can be read.
        problems: everything that is wrong.
    """

    annotations: Annotations
    listed: tuple[int, int]
    usable: np.ndarray
    problems: list[Problem]

    @property
    def empty(self) -> bool:
        """Nothing of it can be used: no image, or of some objects none."""
        return not self.usable.any() or bool(self.listed[1] and not len(self.annotations.boxes))

    @property
    def sound(self) -> bool:
        """Nothing is wrong that would not be in good data too."""
        return all(problem.harmless for problem in self.problems)

    def table(self) -> str:
        """For people: a line for every kind of problem, with examples."""
        num_images, objects = self.listed
        found = self.annotations
        lines = [
            f"{found.file}",
            f"  {num_images} images, {int(self.usable.sum())} of them usable; {objects} objects, {len(found.boxes)} of "
            f"them usable; {len(found.categories.used)} categories",
        ]
        for problem in sorted(self.problems, key=lambda problem: (problem.harmless, -problem.count)):
            more = ", ..." if problem.count > len(problem.examples) else ""
            lines.append(f"  {problem.count:>9} {problem.what}: {problem.effect}")
            lines.append(f"{'':>12}{'; '.join(problem.examples)}{more}")
        return "\n".join(lines if self.problems else [*lines, "  nothing is wrong"])


def examine(
    file: Path,
    folder: Path,
    queries: int | None = None,
    decode: bool = True,
    workers: int = 2,
    convention: str = "auto",
    unlisted: Categories | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Report:
    """Checks an annotation file and its images.

    Args:
        file: in COCO's format.
        folder: of the images.
        queries: objects that the model can find in an image; None if that does not matter.
        decode: read every image, not just look for it.
        workers: threads that decode.
        convention, unlisted: see `datasets.annotations.read_annotations`.
        max_pixels: width times height of the largest image that is read.

    Raises:
        FileNotFoundError, ValueError: there is no such file or folder, or it cannot be used at all.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such image folder; give it with --images")
    listing = parse_coco_file(file)
    problems = check_ids(listing)
    found = located(usable_annotations(without_repeats(listing), convention, unlisted), folder)
    problems += [*found.problems, *check_boxes(found, queries)]
    usable, missing = check_files(found.names, folder)
    problems += missing
    if decode:
        dataset = DetectionDataset(found, folder, EvalTransform(), training=False, max_pixels=max_pixels)
        unreadable = np.array(list(_unreadable(dataset, usable.nonzero()[0], workers)), dtype=object)
        if len(unreadable):
            usable[unreadable[:, 0].astype(int)] = False
            problems.append(
                Problem.of("images that cannot be read", unreadable, lambda row: row[1], "as if they were missing")
            )
    return Report(found, (len(listing.image_ids), listing.num_objects), usable, problems)


def _unreadable(dataset: DetectionDataset, rows: np.ndarray, workers: int) -> Iterator[tuple[int, str]]:
    """(image, message) of the images that cannot be decoded."""

    def problem(row: int) -> str | None:
        try:
            dataset.load_image(row)
        except CorruptImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers) as threads:
        messages = tqdm(threads.map(problem, rows), total=len(rows), desc="decoding", disable=None, leave=False)
        for row, message in zip(rows, messages, strict=True):
            if message is not None:
                yield int(row), message


def splits(path: Path, images: Path | None = None) -> list[Part]:
    """What a path names: a file, or the splits of a folder in COCO's or Roboflow's layout; train is the first.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_dir():
        return [Part(path.stem, path, images or path.parent)]
    files = sorted((path / "annotations").glob("instances_*.json"))
    names = [file.stem.removeprefix("instances_") for file in files]
    folders = [path / "images" / name if (path / "images" / name).is_dir() else path / name for name in names]
    if not files:
        files = sorted([*path.glob(ROBOFLOW), *path.glob(f"*/{ROBOFLOW}")])
        folders = [file.parent for file in files]
        names = [folder.resolve().name for folder in folders]
    if not files:
        raise FileNotFoundError(
            f"{path}: there are no annotations/instances_*.json and no */{ROBOFLOW}; name a file, with --images FOLDER"
        )
    parts = [Part(name, file, images or folder) for name, file, folder in zip(names, files, folders, strict=True)]
    return sorted(parts, key=lambda part: not part.name.startswith("train"))


def config_splits(cfg: ConfigDict) -> list[Part]:
    """The splits of a config: train and val, and test where it is there. Raises ConfigError for what is missing."""
    parts = [Part(split, *find_split(cfg, split)) for split in ("train", "val")]
    try:
        test = Part("test", *find_split(cfg, "test"))
    except ConfigError:
        return parts
    return [*parts, test] if test.file.is_file() else parts


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line, or a list of words."""
    parser = argparse.ArgumentParser(
        "python -m datasets.validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("path", type=Path, nargs="?", metavar="PATH", help="a folder of data, or one annotation file")
    add("-c", "--config_file", metavar="FILE", help="look at the data of a config; PATH is then its data.root")
    add("--images", type=Path, metavar="DIR", help="folder of the images (default: as the layout has it)")
    add(
        "--queries",
        type=int,
        metavar="N",
        help="num_queries of the model: report images with more objects (default: as --config_file says, else any)",
    )
    add(
        "--max_pixels",
        type=int,
        metavar="N",
        help=f"images of more pixels count as unreadable (default: as --config_file says, else {MAX_PIXELS})",
    )
    add("--no_decode", action="store_true", help="look for the images' files without reading them (default: read all)")
    add("--strict", action="store_true", help="exit with status 1 when there is a problem (default: 0)")
    add(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write a copy without the problems: a folder, or a file for a file (default: write nothing)",
    )
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="threads that decode (default: all cores)")
    args = parser.parse_args(arguments)
    if args.path is None and args.config_file is None:
        parser.error("name a PATH, or a config with -c")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line; returns the exit status."""
    args = parse_arguments(arguments)
    show_any_character()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        return validate(args)
    except (OSError, ValueError, ConfigError) as error:
        log.error("%s", error)
        return 2


def fixed_copy(target: Path, file: Path, root: Path) -> Path:
    """Where the copy of an annotation file goes: a file for a file, and the same place in a folder for a folder."""
    if not root.is_dir():
        return target
    return target / (file.relative_to(root) if file.is_relative_to(root) else file.name)


def validate(args: argparse.Namespace) -> int:
    """Looks at all splits, says what there is, and returns the exit status."""
    convention, queries, root, max_pixels = "auto", args.queries, args.path, args.max_pixels or MAX_PIXELS
    if args.config_file is None:
        parts = splits(args.path, args.images)
    else:
        cfg = load_config(args.config_file, {} if args.path is None else {"data.root": str(args.path)})
        parts, convention, root = config_splits(cfg), cfg.data.categories, data_root(cfg)
        queries = find_value(cfg.model, "num_queries") if queries is None else queries
        max_pixels = args.max_pixels or cfg.data.get("max_pixels", MAX_PIXELS)
    reports: dict[str, Report] = {}
    refused = False
    for part in parts:
        unlisted = next((report.annotations.categories for report in reports.values()), None)
        try:
            options = queries, not args.no_decode, args.workers, convention, unlisted, max_pixels
            report = examine(part.file, part.folder, *options)
        except (OSError, ValueError) as error:
            log.error("%s", error)
            refused = True
            continue
        reports[part.name] = report
        log.info("%s", report.table())
        if args.fix is not None:
            target = fixed_copy(args.fix, part.file, root)
            write_fixed(report.annotations, report.usable, target)
            log.info("  a copy without them: %s", target)
    found = {part.name: (reports[part.name].annotations, part.folder) for part in parts if part.name in reports}
    problems = check_splits(found) if len(found) > 1 else []
    if found:
        log.info("\n%s", class_table({name: annotations for name, (annotations, _) in found.items()}))
    for problem in problems:
        log.info("%s", problem)
    unlearnable = [name for name, (own, _) in found.items() if name.startswith("train") and not len(own.boxes)]
    empty = sorted({name for name, report in reports.items() if report.empty} | set(unlearnable))
    if empty:
        log.error("nothing can be used of %s", ", ".join(empty))
    if refused or empty:
        return 2
    sound = all(report.sound for report in reports.values()) and all(problem.harmless for problem in problems)
    return 1 if args.strict and not sound else 0


if __name__ == "__main__":
    sys.exit(main())
