"""Config files, and objects made from them."""

from util.config.files import (
    ConfigDict,
    ConfigError,
    dump_config,
    find_value,
    load_config,
    merge_configs,
    nearest_name,
    node_location,
    parse_config,
    parse_options,
    parse_value,
)

__all__ = [
    "ConfigDict",
    "ConfigError",
    "dump_config",
    "find_value",
    "load_config",
    "merge_configs",
    "nearest_name",
    "node_location",
    "parse_config",
    "parse_options",
    "parse_value",
]
