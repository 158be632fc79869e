"""Single values of annotation files, in all the ways in which they are written."""

import math
import re
from urllib.parse import unquote, urlsplit

WHOLE = re.compile(r"-?[0-9]{1,20}")
"""A whole number as text."""

TRUTH = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
"""How converters write `iscrowd` as text."""

SHOWN = 60
"""Characters of a value that a message shows."""


def whole_number(value) -> int:
    """A whole number of 64 bits, also one that is written 3.0 or "3".

    Raises:
        ValueError: names the value.
    """
    if type(value) is int and -(2**63) <= value < 2**63:  # nearly always
        return value
    number = value
    if type(value) is str and WHOLE.fullmatch(value):
        number = int(value)
    if type(value) is float and math.isfinite(value) and value.is_integer() and abs(value) < 2**53:
        number = int(value)
    if type(number) is int and -(2**63) <= number < 2**63:
        return number
    raise ValueError(f"{shown(value)} is not a whole number{' of 64 bits' if type(number) is int else ''}")


def id_or_none(value) -> int | None:
    """A whole number, as `whole_number` has it, or None."""
    try:
        return whole_number(value)
    except ValueError:
        return None


def truth(value) -> bool:
    """Yes or no; no where nothing is said.

    Raises:
        ValueError: neither.
    """
    if type(value) is str:
        value = TRUTH.get(value.strip().lower(), value)
    if value is None or value in (0, 1):
        return bool(value)
    raise ValueError(f"{shown(value)} is neither 0 nor 1")


def stated_area(value) -> float:
    """Pixels; NaN where nothing is said, infinity for what is no number."""
    if value is None:
        return math.nan
    try:
        area = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.inf
    return area if math.isfinite(area) else math.inf


def side(value) -> int:
    """Height or width in pixels; 0 where it is not known, which VIA's tools write as -1.

    Raises:
        ValueError: no whole number.
    """
    pixels = whole_number(value or 0)
    return 0 if pixels == -1 else pixels


def name_in_url(url) -> str | None:
    """Folder and file at the end of an address: LVIS' images have .../val2017/000000397133.jpg for a file name."""
    return "/".join(unquote(urlsplit(url).path).rsplit("/", 2)[-2:]) if isinstance(url, str) else None


def shown(value) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
