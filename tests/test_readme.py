"""What README.md and the pages in docs/ tell people to write works, and their links lead somewhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import build_criterion, build_detector
from models.registry import PARTS
from tests.golden import make_image, objects
from tests.tiny import shrunk
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


def test_an_encoder_of_ones_own(tmp_path, monkeypatch):
    """The file and the config of "Add an encoder" train for a step."""
    text = TEXTS[ROOT / "docs/encoder.md"]
    encoder, config = re.findall(r"```python\n# (?:models/encoders|config/mine)/\S+\n(.*?)```", text, re.DOTALL)
    monkeypatch.setattr(PARTS, "classes", dict(PARTS.classes))
    exec(encoder, {"__name__": "models.encoders.mine"})
    for name in ("DINO", "_base_"):
        (tmp_path / name).symlink_to(ROOT / "config" / name)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine_r50.py").write_text(config)
    cfg = shrunk(tmp_path / "mine/mine_r50.py")
    assert cfg.model.encoder.type == "MyEncoder"
    targets = objects(1, 5)
    losses, _ = build_criterion(cfg)(build_detector(cfg)([make_image(64, 96)]), targets)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)


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
