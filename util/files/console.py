"""What a console can show: its encoding may be ASCII or cp1252, and names of classes and files are anybody's."""

import io
import sys
from functools import cache


def show_any_character():
    """Has standard output and error escape the characters that their encoding lacks, instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # none at all, or another kind in a notebook
            stream.reconfigure(errors="backslashreplace")
    _tell_of_file_names(sys.getfilesystemencoding())


@cache
def _tell_of_file_names(encoding: str):
    """Says, once, that files whose names the machine's encoding lacks cannot be found, and what helps."""
    if encoding.lower() not in ("utf-8", "utf8") and sys.stderr is not None:
        others = f"names of files are {encoding} here; files with other characters in their names are not found"
        sys.stderr.write(f"{others}: set PYTHONUTF8=1\n")
