"""Files that results go to: whole or not there at all, in UTF-8, or refused in a line that says what helps."""

import argparse
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SPACE = "make space and start the same command again"
PLACE = "choose another place"
REMEDIES = {
    "ENOSPC": SPACE,
    "EDQUOT": SPACE,
    "EROFS": f"{PLACE}: this file system can only be read",
    "EACCES": f"{PLACE}, or have its permissions changed",
    "EPERM": f"{PLACE}, or have its permissions changed",
    "ENOTDIR": f"{PLACE}: a file stands where a folder is needed",
    "EEXIST": f"{PLACE}: a file stands where a folder is needed",
    "EISDIR": f"{PLACE}: a folder stands where a file is needed",
    "ENAMETOOLONG": "choose a shorter name",
    "EIO": f"{PLACE}: the disk does not take it",
}
"""What helps, by the name of a system's error."""


class UnwritableError(argparse.ArgumentTypeError):
    """A place that cannot be written to; the message names it, says why and what helps."""


def storage_problem(error: BaseException | None) -> str | None:
    """Why something could not be stored and what helps, in half a sentence; None for an error of another kind.

    Args:
        error: what was raised, or what was raised while that was dealt with: PyTorch's writer hides a full disk so.
    """
    full = os.strerror(errno.ENOSPC)
    while error is not None:
        if not isinstance(error, OSError) and full in str(error):  # of a library in another language
            return f"{full}; {SPACE}"
        if isinstance(error, OSError):
            remedy = REMEDIES.get(errno.errorcode.get(error.errno or 0, ""))
            return remedy and f"{error.strerror}; {remedy}"
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Within this, what the system says against writing `path` becomes an UnwritableError.

    Raises:
        UnwritableError: the disk is full, say.
    """
    try:
        yield
    except Exception as error:
        problem = storage_problem(error)
        if problem is None:
            raise
        raise UnwritableError(f"{path}: cannot be written: {problem}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what takes the name `path` when all of it is there; its folder is made.

    Where writing fails, nothing of it stays, and `path` holds what it held.

    Raises:
        UnwritableError: the disk is full, say.
    """
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    with storing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write_text(path: Path, text: str):
    """Writes a whole file; what is no text, a byte in the name of a file say, is escaped. Raises UnwritableError."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def append_line(path: Path, line: str):
    """Appends a line, all of it or nothing. One that a crash has torn before is ended first.

    Raises:
        UnwritableError: the disk is full, say.
    """
    with storing(path), path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        content = (b"" if file.read(1) in (b"", b"\n") else b"\n") + line.encode() + b"\n"
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(end)
            raise
