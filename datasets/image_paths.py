"""Where the images of an annotation file lie: under the name that it gives, or one that can only mean the same file."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from datasets.annotations import Annotations
from datasets.checks import Problem, repeated_rows

ENDINGS = {".jpeg": ".jpg", ".jpe": ".jpg", ".tiff": ".tif"}
"""Two endings of one format."""
SIMILAR = 3
"""How many files of similar names a message mentions."""


def located(found: Annotations, folder: Path) -> Annotations:
    """The annotations with the names that the files have.

    A name that is none of a file's is taken for the one file that it can mean: with other separators, in other upper
    and lower case, in another Unicode form, as part of an address, with spaces at its ends, with .jpeg for .jpg, with
    folders in front that are on one side alone. Where several files or several names compete, nothing is changed.
    """
    texts = [os.fsdecode(name) for name in found.names]
    exists = _existing_rows(texts, folder)
    absent = [row for row in (~exists).nonzero()[0].tolist() if not _climbs(texts[row])]
    if not absent or not folder.is_dir():
        return found
    files = _Files(folder)
    taken = {os.path.normpath(texts[row]) for row in exists.nonzero()[0]}
    meant = {row: files.meant(texts[row]) for row in absent}
    claims = defaultdict(set)
    for row, path in meant.items():
        claims[path].add(texts[row])
    moved = {row: path for row, path in meant.items() if path and path not in taken and len(claims[path]) == 1}
    if not moved:
        return found
    names = found.names.tolist()
    for row, path in moved.items():
        names[row] = os.fsencode(path)
    problem = Problem.of(
        f"file names that are not those in {folder}",
        list(moved),
        lambda row: f"{_visible(texts[row], moved[row])} is {_visible(moved[row], texts[row])}",
        "found all the same, since only one file can be meant",
        harmless=all(found.from_urls[row] for row in moved),
    )
    return replace(found, names=np.array(names), problems=(*found.problems, problem))


def check_files(names: np.ndarray, folder: Path) -> tuple[np.ndarray, list[Problem]]:
    """Looks for every image's file by listing folders, and opens none.

    Returns:
        (I,) bool: which images have a file inside the folder; and what is wrong.
    """
    texts = [os.fsdecode(name) for name in names]
    inside = np.array([not leaves_folder(text) for text in texts])
    exists = _existing_rows(texts, folder)
    absent = (inside & ~exists).nonzero()[0]
    files = _Files(folder) if len(absent) else None

    def name(image: int) -> str:
        return texts[image]

    def similar(image: int) -> str:
        others = files.similar(texts[image])
        return f"{texts[image]}; there is {' and '.join(others)}" if others else texts[image]

    effect = "replaced by the next image in training, without detections in evaluation"
    found = [
        Problem.of(f"file names that lead out of {folder}", (~inside).nonzero()[0], name, effect),
        Problem.of(f"images that are not in {folder}", absent, similar, effect),
        Problem.of("images whose file is listed before", repeated_rows(names), name, "kept, as images of their own"),
    ]
    return exists, [problem for problem in found if problem.count]


def leaves_folder(name: str) -> bool:
    """Whether a file name could lie outside of the folder that it is relative to."""
    return os.path.isabs(name) or _climbs(name)


def _climbs(name: str) -> bool:
    return ".." in name.replace("\\", "/").split("/")


def _existing_rows(texts: list[str], folder: Path) -> np.ndarray:
    """(I,) bool: which names are those of files inside a folder."""
    inside = np.array([not leaves_folder(text) for text in texts])
    paths = [os.path.normpath(text) for text in texts]
    there = _listed(folder, {os.path.dirname(path) for path, own in zip(paths, inside, strict=True) if own})
    return inside & np.array([path in there for path in paths])


def _listed(folder: Path, parts: Iterable[str]) -> set[str]:
    """Files in some folders under `folder`, relative to it."""
    found = set()
    for part in parts:
        if (folder / part).is_dir():
            with os.scandir(folder / part) as entries:
                found.update(os.path.join(part, entry.name) for entry in entries if not entry.is_dir())
    return found


class _Files:
    """All files under a folder, by the last part of their names as `_folded` writes it."""

    def __init__(self, folder: Path):
        self.by_name, self.by_stem = defaultdict(list), defaultdict(list)
        for place, _, names in os.walk(folder):
            for name in names:
                path = os.path.relpath(os.path.join(place, name), folder)
                last = _folded(name)[-1]
                self.by_name[last].append(path)
                self.by_stem[_stem(last)].append(path)

    def candidates(self, name: str) -> list[str]:
        """Files that a name may mean: one of the two has the other's parts at its end."""
        return self._fitting(_folded(name)) or self._fitting(_folded(unquote(name)))

    def _fitting(self, wanted: list[str]) -> list[str]:
        parts = {path: _folded(path) for path in self.by_name[wanted[-1]]}
        fitting = [path for path, own in parts.items() if own[-len(wanted) :] == wanted[-len(own) :]]
        return [path for path in fitting if len(parts[path]) == len(wanted)] or fitting

    def meant(self, name: str) -> str | None:
        """The only file that a name can mean, None where there is none or are several."""
        found = self.candidates(name)
        return found[0] if len(found) == 1 else None

    def similar(self, name: str) -> list[str]:
        """Files that differ from a name a little, as a message shows them."""
        found = sorted(self.candidates(name) or self.by_stem[_stem(_folded(name)[-1])])[:SIMILAR]
        return [_visible(path, name) for path in found]


def _folded(name: str) -> list[str]:
    """The parts of a path, in one case and one Unicode form, with one ending for a format."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    parts = [part.strip() for part in text.replace("\\", "/").split("/") if part.strip() not in ("", ".")] or [""]
    stem, ending = os.path.splitext(parts[-1])
    return [*parts[:-1], stem + ENDINGS.get(ending, ending)]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _visible(name: str, other: str) -> str:
    """A name so that its difference to another one can be seen."""
    alike = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    return ascii(name) if alike else name
