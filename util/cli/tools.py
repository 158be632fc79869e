"""How a command of tools/ runs: names of any characters on any console, and a line where something is refused."""

import sys
from collections.abc import Callable

from util.files.console import show_any_character
from util.files.writing import UnwritableError, storage_problem


def run_tool(work: Callable[[], int | None], *refusals: type[Exception]):
    """Does the work and leaves with the status that it returns, or with 1 and a line that says what is wrong.

    Args:
        refusals: errors whose message says all that a user needs, beside that of a place that cannot be written to.

    Raises:
        Exception: what nobody foresaw; it comes with a traceback.
    """
    show_any_character()
    foreseen: tuple[type[Exception], ...] = (UnwritableError, *refusals)
    try:
        sys.exit(work())
    except foreseen as error:
        sys.exit(str(error))
    except OSError as error:
        problem = storage_problem(error)
        if problem is None:
            raise
        sys.exit(f"{error.filename or 'a file'}: {problem}")
