"""From a config node to an object: every name in the node is checked against what the object takes."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping

from util.config.files import ConfigError, nearest_name, node_location

PLAIN = {
    int: int, float: int | float, str: str, bool: bool, tuple: tuple | list, list: tuple | list, dict: Mapping,
    types.NoneType: types.NoneType,
}  # fmt: skip
"""Types that options have, and what a config may give for them."""


def call_with_config(target: Callable, given: Mapping, /, where: str, **shared):
    """Calls `target` with `given`, and with those of `shared` that it takes and `given` does not name.

    Args:
        target: a class or function.
        given: keyword arguments, as a config names them.
        where: how messages call the place in the config.
        shared: values that are handed down to whoever has a parameter of that name.

    Raises:
        ConfigError: a key that `target` does not take, a value of another type than it says, a key that it needs and
            nobody names, or a combination that it refuses with a ValueError.
    """
    name, parameters = target.__name__, named_parameters(target)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: expected a dict with the options of {name}, found {given!r}")
    for key in given:
        if key not in parameters:
            raise ConfigError(f"{where}: {name} has no option '{key}'; {nearest_name(key, parameters)}")
    arguments = {key: value for key, value in shared.items() if key in parameters} | dict(given)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ConfigError(f"{where}: {name} needs '{key}', which the config does not give")
        if key in arguments and not _fits(arguments[key], parameter.annotation):
            wanted = inspect.formatannotation(parameter.annotation)
            raise ConfigError(f"{where}: {name}: {key}={arguments[key]!r} should be {wanted}")
    try:
        return target(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}: {name}: {error}") from error


def _fits(value, hint) -> bool:
    """Whether a plain value is of the type that a parameter is annotated with, as far as plain types are concerned."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    hint = typing.get_origin(hint) or hint
    if callable(value) or hint not in PLAIN:
        return True
    return isinstance(value, PLAIN[hint]) and (hint is bool or not isinstance(value, bool))


def named_parameters(target: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function that have a name to give them by."""
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(target).parameters
    return {name: parameter for name, parameter in found.items() if parameter.kind not in unnamed}


class Registry:
    """Classes by name. A config names one as `type`; `build` makes it.

    A nested node that has a `type` of its own reaches the constructor as a factory: calling it builds a new object of
    that type, with the shared values handed down. So a part that repeats a layer six times calls `layer()` six times,
    and need not know what the layer is, what it takes, or this registry.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.classes = {}

    def register(self, cls: type) -> type:
        """Class decorator: makes `cls` known under its own name."""
        if cls.__name__ in self.classes:
            raise TypeError(f"two {self.kind}s are called {cls.__name__}: {self.classes[cls.__name__]} and {cls}")
        self.classes[cls.__name__] = cls
        return cls

    def options(self) -> set[str]:
        """Every option that any of the classes takes."""
        return {name for cls in self.classes.values() for name in named_parameters(cls)}

    def factory(self, node: Mapping, **shared) -> Callable:
        """A callable that builds what `node` describes; its keyword arguments override the shared values."""
        return lambda **more: self.build(node, **{**shared, **more})

    def build(self, node: Mapping, **shared):
        """The object that `node` describes. See `call_with_config` for the errors."""
        where = node_location(node)
        if not isinstance(node, Mapping) or "type" not in node:
            raise ConfigError(f"{where}: expected a dict with a 'type', found {node!r}")
        if node["type"] not in self.classes:
            raise ConfigError(
                f"{where}: no {self.kind} is called '{node['type']}'; {nearest_name(node['type'], self.classes)}"
            )
        given = {
            key: self.factory(value, **shared) if isinstance(value, Mapping) and "type" in value else value
            for key, value in node.items()
            if key != "type"
        }
        return call_with_config(self.classes[node["type"]], given, where=where, **shared)
