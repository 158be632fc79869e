"""Imports point down: every file stands on lower floors only, and no part of a detector knows another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GROUND = ("config", "files", "processes", "tensors")
"""The rooms of util that stand on none."""

# Who may import whom, longest prefix first. A folder may always import itself, unless it is a part.
STANDS_ON = {
    "main": {"util", "datasets", "engine", "models"},
    "engine": {"util"},
    "datasets": {"util"},
    "models.ops": set(),
    "models.structures": {"util"},
    "models.registry": {"util"},
    "models.layers": {"models.ops", "models.structures", "models.registry", "util"},
    "models.backbones": {"models.layers", "models.structures", "models.registry", "util"},
    "models.neck": {"models.layers", "models.structures", "models.registry", "util"},
    "models.encoders": {"models.layers", "models.structures", "models.registry", "util"},
    "models.queries": {"models.layers", "models.structures", "models.registry", "util"},
    "models.decoders": {"models.layers", "models.structures", "models.registry", "util"},
    "models.criteria": {"models.layers", "models.structures", "models.registry", "util"},
    "models.postprocess": {"models.structures", "models.registry", "util"},
    "models.detector": {"models.structures", "util"},
    "models.faster_rcnn": {"models.registry", "util"},
    "models.official_keys": {"util"},
    "models": {"models", "util"},
    "tools.dev": {"tools", "datasets", "models", "util"},
    "tools": {"tools.lib", "datasets", "models", "util"},
    "tools.lib": {"datasets", "models", "util"},
    "util.cli": {f"util.{room}" for room in (*GROUND, "checkpoints", "reporting", "training")},
    "util.training": {f"util.{room}" for room in (*GROUND, "checkpoints", "measuring", "reporting")},
    "util.reporting": {"util.files", "util.processes"},
    "util.checkpoints": {"util.files", "util.processes"},
    "util.measuring": {"util.tensors"},
    "util.files": set(),
    "util.processes": set(),
    "util.tensors": set(),
    "util.config": set(),
    "util": {"util.measuring"},  # util/flops.py
}
OURS = {"main", "engine", "datasets", "models", "util", "tools"}


def modules():
    """(dotted name, path) of every module of the project."""
    for path in sorted(ROOT.glob("*.py")) + sorted(p for top in OURS for p in (ROOT / top).rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        if name.split(".")[0] in OURS and path.name != "setup.py":
            yield name, path


def imports(path):
    """Dotted names that a file imports from the project."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor(name):
    """The longest known prefix of a dotted name."""
    parts = name.split(".")
    return next((p for p in (".".join(parts[:i]) for i in range(len(parts), 0, -1)) if p in STANDS_ON), None)


def check_imports(name, path):
    """Fails on an import of a module that stands on no lower floor."""
    own = floor(name)
    for imported in imports(path):
        if imported.split(".")[0] not in OURS:
            continue
        target = floor(imported)
        allowed = target == own or any(f"{target}.".startswith(f"{below}.") for below in STANDS_ON[own])
        assert allowed, f"{name} ({own}) imports {imported} ({target})"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down(name, path):
    check_imports(name, path)


def test_only_the_dispatch_imports_the_extension():
    users = [name for name, path in modules() if "leandetr_ops" in path.read_text()]
    assert users == ["models.ops.extension"]
