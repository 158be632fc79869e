"""What README.md and the pages in docs/ tell people to write works, and their links lead somewhere."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models.registry import PARTS
from tests.models import test_models
from tests.test_floors import check_imports
from tools.dev.config_reference import FILE, reference
from tools.dev.gpu.stages import STAGES, TOTAL
from util.cli.arguments import parse_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text() for page in PAGES}
COMMANDS = {
    command
    for text in TEXTS.values()
    for command in re.findall(r"main\.py( -c config/(?!mine)(?:\\\n|[^`#\n])*)", text.replace("\\\n", " "))
}


ADDING = ("encoder", "backbone", "queries", "loss")
"""Pages that tell how to add a part: a file, a line among the imports of models/__init__.py, and a config."""


def blocks(page):
    """{path: code} of a page's blocks of Python whose first line names a file."""
    found = re.findall(r"```python\n(# (\S+\.py)\b.*?\n.*?)```", TEXTS[ROOT / f"docs/{page}.md"], re.DOTALL)
    return {path: code for code, path in found}


def untouched(dotted):
    """models/__init__.py as it was before anyone followed the page that adds this module."""
    return (ROOT / "models/__init__.py").read_text().replace(f"import {dotted}\n", "")


def placed(page, folder):
    """Follows a page in a folder that has copies of the files that it touches: what its file and config are called."""
    part, line, config = blocks(page).items()
    assert line[0] == "models/__init__.py"
    assert "among the imports" in line[1]
    dotted = part[0].removesuffix(".py").replace("/", ".")
    added = line[1].splitlines()[1:]
    assert added == [f"import {dotted}"]
    for name, code in (part, config):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    for path in (ROOT / "config").iterdir():
        if path.name != "mine":
            (folder / "config" / path.name).symlink_to(path)
    first, *rest = re.split(r"^(?=import models\.)", untouched(dotted), flags=re.MULTILINE)
    (folder / line[0]).write_text("".join([first, f"{added[0]}\n", *rest]))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return dotted, folder / part[0], folder / config[0]


def counted(monkeypatch, cls):
    """What calls of a part's code return, as they come."""
    name, returned = "forward" if issubclass(cls, nn.Module) else "__call__", []
    code = getattr(cls, name)

    def called(*inputs):
        returned.append(code(*inputs))
        return returned[-1]

    monkeypatch.setattr(cls, name, called)
    return returned


@pytest.mark.parametrize("page", ADDING)
def test_a_part_of_ones_own(page, tmp_path, monkeypatch):
    """What "Add a ..." tells to write obeys the floors, and trains for a step in which the new code is called."""
    dotted, part, config = placed(page, tmp_path)
    check_imports(dotted, part)
    known = {name: cls for name, cls in PARTS.classes.items() if cls.__module__ != dotted}
    monkeypatch.setattr(PARTS, "classes", dict(known))
    exec(compile(part.read_text(), str(part), "exec"), {"__name__": dotted})
    ours = {name: counted(monkeypatch, cls) for name, cls in PARTS.classes.items() if name not in known}
    assert ours
    assert all(PARTS.classes[name].__doc__ for name in ours)
    types = re.findall(r"\btype=\"(\w+)\"", config.read_text())
    assert set(ours) <= set(types)
    test_models.test_every_config_takes_a_step(config)
    for name, returned in ours.items():
        assert returned, f"{name} was never called"
        assert all(torch.isfinite(value).all() for value in returned if isinstance(value, torch.Tensor))


@pytest.mark.skipif(not importlib.util.find_spec("ruff"), reason="ruff is not installed")
@pytest.mark.parametrize("page", ADDING)
def test_a_part_of_ones_own_is_clean(page, tmp_path):
    """The new file as it stands, and models/__init__.py after `make format`, which leaves the one line added."""

    def ruff(*words):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    dotted, part, _ = placed(page, tmp_path)
    written, parts = part.read_text(), tmp_path / "models/__init__.py"
    for words in (("check", "--fix"), ("format",), ("check",), ("format", "--check")):
        ruff(*words)
    assert part.read_text() == written
    assert parts.read_text().count(f"\nimport {dotted}\n") == 1
    assert parts.read_text().replace(f"import {dotted}\n", "") == untouched(dotted)


def test_commands_name_configs_and_options_that_exist():
    assert len(COMMANDS) > 8
    for command in COMMANDS:
        arguments = parse_arguments(command.split())
        assert (ROOT / arguments.config_file).is_file(), command


def anchors(text):
    """What headings can be linked to as."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", TEXTS[page])
    assert links or page.name == "architecture.md"
    for path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), (page.name, path)
        assert not anchor or anchor in anchors(target.read_text()), (page.name, path, anchor)


def test_the_config_reference_is_what_the_parts_say():
    text = reference()
    assert FILE.read_text() == text, "run `python tools/dev/config_reference.py`"
    ours = [name for name, cls in PARTS.classes.items() if cls.__module__.startswith("models.")]
    assert len(ours) > 40
    assert all(f"### {name}\n" in text for name in ours)


@pytest.mark.skipif(not importlib.util.find_spec("material"), reason="mkdocs-material is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "num_layers" in (tmp_path / "reference.html").read_text()
    assert (
        "KeyAwareDeformAttn" in (tmp_path / "source/config/lite_detr/lite_dino_r50_h3l1_2p1x3_kda.py.html").read_text()
    )


def test_every_target_of_make_is_listed():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"\.PHONY: (.*)", text)[1].split()
    assert len(targets) > 7
    assert all(re.search(rf"^{target}:.*## \w", text, re.MULTILINE) for target in targets)


def test_what_has_run_on_a_gpu_is_said_in_one_place():
    """Pages that say it themselves would go on saying it when it is no longer so."""
    said = re.compile(r"(?:has|have) (?:not )?run on (?:a GPU|one)\b")
    assert [page.name for page, text in TEXTS.items() if said.search(" ".join(text.split()))] == ["gpu.md"]


def test_the_stages_are_told_with_their_limits():
    text = TEXTS[ROOT / "docs/gpu.md"]
    for name, stage in STAGES.items():
        assert f"| {name} | {stage.limit} |" in text
    assert f"{TOTAL} s at most" in text
