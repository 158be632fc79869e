"""Names that options once had. Whoever still says them, a config written by an older run say, is told the new one."""

import logging
from collections.abc import Mapping
from functools import cache

log = logging.getLogger(__name__)

FORMER_OPTIONS = {
    "data.broken": "data.corrupt",
    "training.pictures": "training.drawn_images",
}
"""{former path: path}."""


def current_path(path: str, source: str) -> str:
    """The path of an option, given by any name that it ever had."""
    for former, name in FORMER_OPTIONS.items():
        if path == former or path.startswith(f"{former}."):
            _tell(source, former, name)
            return name + path.removeprefix(former)
    return path


def with_current_names(values: Mapping, source: str) -> dict:
    """A copy of a config's values in which every option has its present name."""
    values = dict(values)
    for former, name in FORMER_OPTIONS.items():
        section, old = former.split(".")
        if isinstance(values.get(section), Mapping) and old in values[section]:
            _tell(source, former, name)
            new = name.split(".")[1]
            values[section] = {new if key == old else key: value for key, value in values[section].items()}
    return values


@cache
def _tell(source: str, former: str, name: str):
    """Once."""
    log.warning("%s: %s is called %s now", source, former, name)
