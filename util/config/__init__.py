"""Config files, and objects made from them."""

from util.config.files import (
    ConfigDict,
    ConfigError,
    dump_config,
    find_value,
    load_config,
    nearest,
    parse_config,
    parse_options,
    parse_value,
    where_of,
)

__all__ = [
    "ConfigDict",
    "ConfigError",
    "dump_config",
    "find_value",
    "load_config",
    "nearest",
    "parse_config",
    "parse_options",
    "parse_value",
    "where_of",
]
