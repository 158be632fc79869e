"""What is wrong between the splits of a data set."""

import hashlib
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from datasets.annotations import Annotations
from datasets.categories import DifferentCategoriesError, one_line
from datasets.checks import Problem
from datasets.image_paths import leaves_folder

MOST_CLASSES = 100
"""Rows of a table of classes."""


def class_table(splits: dict[str, Annotations]) -> str:
    """For people: how many objects of every class each split has, crowds left out."""
    counts = {name: _objects_of_classes(found) for name, found in splits.items()}
    labels = list(dict.fromkeys(label for own in counts.values() for label in own))
    shown = labels[:MOST_CLASSES]
    width = max(len(one_line(label)) for label in (*shown, "objects of"))
    lines = [" ".join([f"{'objects of':<{width}}", *(f"{name:>10}" for name in splits)])]
    for label in shown:
        cells = (f"{own[label]:>10}" if label in own else f"{'-':>10}" for own in counts.values())
        lines.append(" ".join([f"{one_line(label):<{width}}", *cells]))
    if len(labels) > len(shown):
        lines.append(f"and {len(labels) - len(shown)} more classes")
    return "\n".join(lines)


def check_splits(splits: dict[str, tuple[Annotations, Path]]) -> list[Problem]:
    """Classes that one split has and another one lacks, and images that are in two.

    Args:
        splits: annotations and image folder by the name of the split; the first is what is trained on.
    """
    (first, (trained, _)), *others = splits.items()
    learned, problems = _objects_of_classes(trained), []
    for name, (found, _) in others:
        counts = _objects_of_classes(found)
        try:
            found.arranged_as(trained.categories, first)
        except DifferentCategoriesError as error:
            strange = [label for label, count in counts.items() if count and label not in learned]
            what, effect = f"classes of {name} that {first} does not list", f"evaluation refuses the file: {error}"
            problems.append(Problem.of(what, strange, str, effect))
        if not found.has_targets():
            effect = "every AP will be -1, and no epoch better than another"
            nothing = [name] if name.startswith("val") else []  # a test split's objects are often kept secret
            problems.append(Problem.of("splits without an object to find", nothing, str, effect))
        else:
            absent = [label for label, count in learned.items() if count and not counts.get(label)]
            effect = "they get no AP"
            problems.append(Problem.of(f"classes that {name} has no object of", absent, str, effect, harmless=True))
    problems += _shared_images(splits)
    return [problem for problem in problems if problem.count]


def _objects_of_classes(found: Annotations) -> dict[str, int]:
    counts = np.bincount(found.slots()[~found.crowd], minlength=len(found.categories))
    used = zip(found.categories.ids, found.categories.labels, counts.tolist(), strict=True)
    return {label: count for key, label, count in used if key is not None}


def _shared_images(splits: dict[str, tuple[Annotations, Path]]) -> list[Problem]:
    """Images of one content in two splits. Files of different sizes are not read."""
    paths = {name: _files(found, folder) for name, (found, folder) in splits.items()}
    sizes = {path: path.stat().st_size for own in paths.values() for path in own}
    times = Counter(sizes.values())
    contents = {}
    for name, own in paths.items():
        contents[name] = defaultdict(list)
        for path in own:
            if times[sizes[path]] > 1:
                contents[name][hashlib.sha256(path.read_bytes()).digest()].append(path)
    problems = []
    for one, other in itertools.combinations(splits, 2):
        shared = [key for key in contents[one] if key in contents[other]]

        def pair(key: bytes, one=one, other=other) -> str:
            return f"{contents[one][key][0]} = {contents[other][key][0]}"

        effect = "kept; what is learned by heart counts as found"
        problems.append(Problem.of(f"images that {one} and {other} share", shared, pair, effect))
    return problems


def _files(found: Annotations, folder: Path) -> list[Path]:
    names = dict.fromkeys(map(found.name, range(len(found))))
    return [folder / name for name in names if not leaves_folder(name) and (folder / name).is_file()]
