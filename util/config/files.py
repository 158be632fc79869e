"""Configs: Python files that inherit, merge, can be overridden by path, and can be written back to a file.

A config file is a Python file of assignments. It is run as code: give only files that you trust.

* `_base_`: a path or a list of paths, relative to the file, merged from left to right before the file itself.
* Dicts merge key by key. A dict that names another `type` than its base, or a type where that has none, replaces it.
  Everything else replaces.
* Names that start with an underscore are the file's own helpers and do not reach the config.
* `aliases` maps short option names to what they stand for: a path, a list of paths that all receive the value, or
  `{value: {path: value}}`.
"""

import ast
import difflib
import re
import runpy
from collections.abc import Mapping
from pathlib import Path

import addict

from util.config.former_names import current_path, with_current_names
from util.config.papers_names import here_it_is

WORD = re.compile(r"[\w./:~+-]+")
CONSTANTS = {"true": True, "false": False, "none": None}


class ConfigError(KeyError, AttributeError):
    """Something in a config or an option is wrong. The message names the file, the key and the remedy."""

    def __str__(self):
        return str(self.args[0]) if self.args else ""


def nearest_name(name, known) -> str:
    """A half-sentence that helps with a misspelt name: the closest known one, or all of them."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known here: {', '.join(known)}" if known else "nothing is known here"


def node_location(node, key: str = "") -> str:
    """How messages call a node of a config: `config/x.py: model.encoder`."""
    file, path = getattr(node, "_where", None) or ("config", "")
    return f"{file}: {'.'.join(filter(None, (path, key)))}".removesuffix(": ")


class ConfigDict(addict.Dict):
    """A dict whose keys are attributes too. Reading a key that is not there is an error that names the nearest one."""

    _where: tuple[str, str] | None = None

    def __missing__(self, key):
        if isinstance(key, str) and key.startswith("__"):
            raise AttributeError(key)
        raise ConfigError(f"{node_location(self)}: there is no key '{key}'; {nearest_name(key, self)}")

    def __setattr__(self, name, value):
        if name == "_where":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def _place(node, file: str, path: str = ""):
    """Tells every dict under `node` where it stands."""
    if isinstance(node, ConfigDict):
        node._where = (file, path)
        for key, value in node.items():
            _place(value, file, f"{path}.{key}" if path else str(key))


def merge_configs(base, child):
    """`child` over `base`, by the rules at the head of this file. Neither is changed."""
    if not (isinstance(base, Mapping) and isinstance(child, Mapping)):
        return child
    if "type" in child and child["type"] != base.get("type"):
        return dict(child)
    return {**base, **{key: merge_configs(base[key], value) if key in base else value for key, value in child.items()}}


def _read(path: Path, chain: tuple = ()) -> dict:
    """One file and its bases, merged."""
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path}: _base_ leads back to this file: {' -> '.join(p.name for p in (*chain, path))}")
    if not path.is_file():
        asked = f" (_base_ of {chain[-1]})" if chain else "; configs lie under config/"
        raise ConfigError(f"{path}: there is no such config file{asked}")
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise ConfigError(f"{path}: cannot be run as a config: {type(error).__name__}: {error}") from error
    bases = names.get("_base_", [])
    merged = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge_configs(merged, _read(path.parent / base, (*chain, path)))
    own = {name: value for name, value in names.items() if not name.startswith("_")}
    return merge_configs(merged, with_current_names(own, str(path)))


def _check_plain(value, file: str, path: str):
    """A config holds plain values only, so that it can be written back and read again."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, file, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, file, path)
    elif not isinstance(value, str | int | float | bool | None):
        raise ConfigError(
            f"{file}: {path} is a {type(value).__name__}; a config holds dicts, lists, strings and numbers only. "
            "Helpers start with an underscore"
        )


def parse_value(text: str, name: str = "value"):
    """The literal that an option's text stands for. Never runs code.

    Numbers, strings, lists, tuples, dicts; true, false and none in any case; a bare word or path is a string.
    """
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if WORD.fullmatch(text) or text == "":
            return text
    raise ConfigError(f"--options {name}={text}: not a literal. Quote it if a string is meant: {name}=\"'...'\"")


def parse_options(pairs: list[str] | None) -> dict:
    """['a.b=3', 'c=[1, 2]'] -> {'a.b': 3, 'c': [1, 2]}."""
    options = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--options {pair}: expected name=value")
        options[name] = parse_value(text, name)
    return options


def _expand_alias(cfg: ConfigDict, name: str, value):
    """What an option stands for: pairs of a path and a value."""
    target = cfg.get("aliases", {}).get(name)
    if target is None:
        return [(name, value)]
    if isinstance(target, str):
        return [(target, value)]
    if isinstance(target, Mapping):
        if value not in target:
            raise ConfigError(f"{node_location(cfg)}: option {name}={value!r} is none of {list(target)}")
        return list(target[value].items())
    return [(path, value) for path in target]


def _set_path(cfg: ConfigDict, path: str, value):
    """Overrides one value. The path must exist: options choose, they do not invent."""
    *parents, leaf = current_path(path, "--options").split(".")
    node = cfg
    for step, key in enumerate([*parents, leaf]):
        if not isinstance(node, Mapping):
            raise ConfigError(f"{node_location(cfg, '.'.join(parents[:step]))} is {node!r}; it holds no '{key}'")
        if key not in node:
            answer = here_it_is(path, str(value), cfg)
            if answer is not None:
                raise ConfigError(f"{node_location(node)}: option '{path}' of the papers' code: here {answer}")
            known = [*node, *(cfg.get("aliases", {}) if node is cfg else ())]
            raise ConfigError(f"{node_location(node)}: no '{key}' for option '{path}'; {nearest_name(key, known)}")
        parent, node = node, node[key]
    parent[leaf] = merge_configs(node, value)


def load_config(path, options: Mapping | None = None) -> ConfigDict:
    """Reads a config file with its bases and overrides.

    Args:
        path: a Python file.
        options: {path or alias: value}, for instance {"model.encoder.num_layers": 3}.

    Raises:
        ConfigError: no such file, a circle of bases, a value that is not plain, a path that does not exist.
    """
    path = Path(path)
    values = _read(path)
    _check_plain(values, str(path), "")
    return _with_options(values, options, str(path))


def _with_options(values: dict, options: Mapping | None, source: str) -> ConfigDict:
    """A config of these values and overrides, whose dicts know where they stand."""
    cfg = ConfigDict(values)
    _place(cfg, source)
    for name, value in (options or {}).items():
        for target, chosen in _expand_alias(cfg, name, value):
            _set_path(cfg, target, chosen)
    cfg = ConfigDict(cfg.to_dict())
    _place(cfg, source)
    return cfg


def find_value(node: Mapping, name: str):
    """The value of a key wherever it stands under a node, the outermost first; None if it stands nowhere."""
    if not isinstance(node, Mapping):
        return None
    if name in node:
        return node[name]
    inner = (find_value(value, name) for value in node.values())
    return next((value for value in inner if value is not None), None)


def dump_config(cfg: ConfigDict) -> str:
    """The config as Python text that `load_config` reads back to the same values. Takes a second: keep it."""
    from yapf.yapflib.yapf_api import FormatCode

    lines = "\n".join(f"{key} = {value!r}" for key, value in cfg.to_dict().items())
    return FormatCode(lines + "\n", style_config={"based_on_style": "pep8", "column_limit": 120})[0]


def parse_config(text: str, source: str, options: Mapping | None = None) -> ConfigDict:
    """The config that `dump_config` wrote, read without running it: the text may come from a stranger.

    Args:
        text: lines of `name = literal`, nothing else.
        source: where it comes from, for messages.
        options: overrides, as in `load_config`.

    Raises:
        ConfigError: the text holds anything but literals; a path that does not exist.
    """
    values = {}
    try:
        for statement in ast.parse(text).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values[name] = ast.literal_eval(value)
                case _:
                    raise ValueError(f"line {statement.lineno} is not of the form name = literal")
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{source}: its config is not what dump_config writes and is not read: {reason}") from error
    _check_plain(values, source, "")
    return _with_options(with_current_names(values, source), options, source)
