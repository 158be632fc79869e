"""What a console can show: its encoding may be ASCII or cp1252, and names of classes and files are anybody's."""

import io
import sys


def show_any_character():
    """Has standard output and error escape the characters that their encoding lacks, instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # none at all, or another kind in a notebook
            stream.reconfigure(errors="backslashreplace")
