"""Where a command line has its results written: made and tried before the work begins, and filled as it gets on."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from util.files.writing import UnwritableError, storage_problem, storing


def writable_folder(text: str | Path) -> Path:
    """For argparse: a folder, which is made if need be.

    Raises:
        UnwritableError: it cannot be made, or nothing can be written there.
    """
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have here
        raise UnwritableError(f"{path}: no folder to write to: {storage_problem(error) or error}") from error
    return path


def writable_file(text: str | Path) -> Path:
    """For argparse: a file to be written, whose folder is made if need be. One that is there stays as it is until then.

    Raises:
        UnwritableError: it is a folder, or cannot be written.
    """
    path = Path(text)
    if path.is_dir():
        raise UnwritableError(f"{path}: is a folder, not a file to write")
    writable_folder(path.parent)
    if path.exists():
        with storing(path), path.open("r+b"):
            pass
    return path


@contextmanager
def growing_file(path: Path) -> Iterator[TextIO]:
    """A text file of which every line is on the disk when it is written.

    Until all are, they stand in a file beside it, .part; that stays where the work breaks off, and so does what `path`
    held before.

    Raises:
        UnwritableError: the disk is full, say.
    """
    part = path.with_name(f"{path.name}.part")
    with storing(path):
        with part.open("w", buffering=1, newline="", encoding="utf-8") as file:
            yield file
        part.replace(path)
