"""Says what is wrong with a data set before a training finds out, and writes a copy without it.

  python -m datasets.validate COCODIR                                 all of annotations/instances_*.json
  python -m datasets.validate labels.json --images photos --queries 300 --strict
  python -m datasets.validate COCODIR --fix FIXED                     FIXED/annotations/instances_*.json

Every image is decoded unless --no_decode is given. Exit status: 0; 1 with --strict when there is a problem; 2 when a
file cannot be used at all.
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
from datasets.checks import Problem, check_boxes, check_ids, without_repeats
from datasets.coco import CorruptImageError, DetectionDataset
from datasets.coco_file import parse_coco_file
from datasets.image_paths import check_files, located
from datasets.repair import write_fixed
from datasets.transforms import EvalTransform

log = logging.getLogger(__name__)


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


def examine(file: Path, folder: Path, queries: int | None = None, decode: bool = True, workers: int = 2) -> Report:
    """Checks an annotation file and its images.

    Args:
        file: in COCO's format.
        folder: of the images.
        queries: objects that the model can find in an image; None if that does not matter.
        decode: read every image, not just look for it.
        workers: threads that decode.

    Raises:
        FileNotFoundError, ValueError: there is no such file or folder, or it cannot be used at all.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such image folder; give it with --images")
    listing = parse_coco_file(file)
    problems = check_ids(listing)
    found = located(usable_annotations(without_repeats(listing)), folder)
    problems += [*found.problems, *check_boxes(found, queries)]
    usable, missing = check_files(found.names, folder)
    problems += missing
    if decode:
        unreadable = np.array(list(_unreadable(found, folder, usable.nonzero()[0], workers)), dtype=object)
        if len(unreadable):
            usable[unreadable[:, 0].astype(int)] = False
            problems.append(
                Problem.of("images that cannot be read", unreadable, lambda row: row[1], "as if they were missing")
            )
    return Report(found, (len(listing.image_ids), listing.num_objects), usable, problems)


def _unreadable(found: Annotations, folder: Path, rows: np.ndarray, workers: int) -> Iterator[tuple[int, str]]:
    """(image, message) of the images that cannot be decoded."""
    dataset = DetectionDataset(found, folder, EvalTransform(), training=False)

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


def splits(path: Path, images: Path | None) -> list[tuple[Path, Path]]:
    """(annotation file, image folder) of all that a path names. Raises FileNotFoundError."""
    if not path.is_dir():
        return [(path, images or path.parent)]
    files = sorted((path / "annotations").glob("instances_*.json"))
    if not files:
        raise FileNotFoundError(f"{path}: there are no annotations/instances_*.json; name a file, with --images FOLDER")
    names = [file.stem.removeprefix("instances_") for file in files]
    folders = [path / "images" / name if (path / "images" / name).is_dir() else path / name for name in names]
    return [(file, images or folder) for file, folder in zip(files, folders, strict=True)]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line, or a list of words."""
    parser = argparse.ArgumentParser(
        "python -m datasets.validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="a data root in COCO's layout, or one annotation file")
    add("--images", type=Path, metavar="DIR", help="folder of the images (default: as COCO's layout has it)")
    add("--queries", type=int, metavar="N", help="num_queries of the model: report images with more objects")
    add("--no_decode", action="store_true", help="look for the images' files without reading them")
    add("--strict", action="store_true", help="exit with status 1 when there is a problem")
    add("--fix", type=Path, metavar="OUT", help="write a copy without the problems: a folder, or a file for a file")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="threads that decode (default: all cores)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line; returns the exit status."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    sound = True
    try:
        for file, folder in splits(args.path, args.images):
            report = examine(file, folder, args.queries, not args.no_decode, args.workers)
            log.info("%s", report.table())
            sound &= report.sound
            if args.fix is not None:
                target = args.fix / "annotations" / file.name if args.path.is_dir() else args.fix
                write_fixed(report.annotations, report.usable, target)
                log.info("  a copy without them: %s", target)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 2
    return 1 if args.strict and not sound else 0


if __name__ == "__main__":
    sys.exit(main())
