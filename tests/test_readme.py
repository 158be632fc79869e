"""What README.md tells people to write works as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from models import build_criterion, build_detector
from models.registry import PARTS
from tests.golden import objects, picture
from tests.tiny import shrunk
from util.arguments import parse_arguments

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_an_encoder_of_ones_own(tmp_path, monkeypatch):
    """The file and the config of "Add your own encoder" train for a step."""
    encoder, config = re.findall(r"```python\n# (?:models/encoders|config/mine)/\S+\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.setattr(PARTS, "classes", dict(PARTS.classes))
    exec(encoder, {"__name__": "models.encoders.mine"})
    for name in ("DINO", "_base_"):
        (tmp_path / name).symlink_to(ROOT / "config" / name)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine_r50.py").write_text(config)
    cfg = shrunk(tmp_path / "mine/mine_r50.py")
    assert cfg.model.encoder.type == "MyEncoder"
    targets = objects(1, 5)
    losses, _ = build_criterion(cfg)(build_detector(cfg)([picture(64, 96)]), targets)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)


@pytest.mark.parametrize("command", re.findall(r"main\.py( -c config/(?:\\\n|[^`#\n])*)", TEXT))
def test_commands_name_configs_and_options_that_exist(command):
    words = command.replace("\\\n", " ").split()
    arguments = parse_arguments(words)
    assert (ROOT / arguments.config_file).is_file()


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert links
    assert all((ROOT / link).exists() for link in links), links
