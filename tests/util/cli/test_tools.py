"""How the commands of tools/ end where something is refused."""

import errno

import pytest

from util.cli.tools import run_tool
from util.files.writing import UnwritableError


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UnwritableError("a.png: cannot be written"), "a.png: cannot be written"),
        (KeyError("a refusal"), "'a refusal'"),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "x/y: No space left on device; make space"),
        (OSError(errno.EROFS, "Read-only file system"), "a file: Read-only file system; choose another place"),
    ],
)
def test_a_refusal_is_a_line_and_a_status(error, said):
    with pytest.raises(SystemExit) as left:
        run_tool(lambda: raises(error), KeyError)
    assert left.value.code.startswith(said)


def test_a_status_is_handed_on_and_an_error_nobody_foresaw_is_not_hidden():
    with pytest.raises(SystemExit) as left:
        run_tool(lambda: 3)
    assert left.value.code == 3
    with pytest.raises(FileNotFoundError):
        run_tool(lambda: raises(FileNotFoundError(errno.ENOENT, "no such file")))
