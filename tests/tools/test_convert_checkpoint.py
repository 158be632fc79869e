"""tools/convert_checkpoint.py: the one way for files that can run code while they are read."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from models import build_detector
from models.restore import restore_detector
from tests.tiny import shrunk
from tools.convert_checkpoint import convert
from util.checkpoints.files import CheckpointError, read_checkpoint, save_checkpoint
from util.config import dump_config

ROOT = Path(__file__).parents[2]
WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


class Marking:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def run(*words):
    command = [sys.executable, "tools/convert_checkpoint.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_a_trusted_file_is_converted_once_and_read_ever_after(tmp_path):
    content = {
        "model": WEIGHTS,
        "best": np.float64(0.5),
        "args": argparse.Namespace(x=1),
        "hook": Marking(tmp_path / "ran"),
    }
    torch.save(content, tmp_path / "x.pth")
    status, said = run(tmp_path / "x.pth")
    assert status == 1
    assert re.search(r"x\.pth: holds more than tensors.*if you trust it, convert it: .* --trust \S+x\.pth", said)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "x.safetensors").exists()
    status, said = run(tmp_path / "x.pth", "--trust")
    assert status == 0, said
    assert "x.pth: is read with --trust: whatever code its author put into it runs now, with your rights" in said
    assert (tmp_path / "ran").exists()
    found = read_checkpoint(tmp_path / "x.safetensors")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize("kind", ["model", "whole", "script"])
def test_whole_models_become_their_weights(tmp_path, kind):
    model = nn.Sequential(nn.Linear(2, 2))
    if kind == "script":
        torch.jit.trace(model, torch.ones(1, 2)).save(str(tmp_path / "x.pth"))
    else:
        torch.save({"model": model, "epoch": 3} if kind == "model" else model, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "x.safetensors", trusted=True)
    found = read_checkpoint(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_code_that_is_missing_is_named(tmp_path):
    content = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
from strange import Config
torch.save({{"model": {{"w": torch.ones(2)}}, "cfg": Config()}}, {str(tmp_path / "x.pth")!r})
"""
    (tmp_path / "strange.py").write_text("class Config:\n    pass\n")
    subprocess.run([sys.executable, "-c", content], check=True)
    with pytest.raises(
        CheckpointError, match=r"x.pth: holds more than tensors and plain values \(class strange.Config\)"
    ):
        convert(tmp_path / "x.pth", tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match=r"needs the code of its author: No module named 'strange'.*PYTHONPATH"):
        convert(tmp_path / "x.pth", tmp_path / "out.safetensors", trusted=True)
    (tmp_path / "torn.pth").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"torn.pth: cannot be read: "):
        convert(tmp_path / "torn.pth", tmp_path / "out.safetensors", trusted=True)


def test_weights_are_chosen_by_key(tmp_path):
    torch.save({"model": WEIGHTS, "ema": {"module": {"a.bias": torch.zeros(2)}, "updates": 1}}, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "x.safetensors", key="ema.module")
    assert read_checkpoint(tmp_path / "x.safetensors")["a.bias"].eq(0).all()
    with pytest.raises(
        CheckpointError, match="checkpoint key 'ema.m': there are no weights of that name; there are 'model'"
    ):
        convert(tmp_path / "x.pth", tmp_path / "x.safetensors", key="ema.m")


def test_what_is_converted_needs_no_config(tmp_path):
    """A file of ours stays one: its config and classes go with it."""
    cfg = shrunk(ROOT / "config/conditional_detr/conditional_detr_r50.py", **{"model.backbone.depth": 18})
    cfg.model.num_classes = 2
    categories = {"ids": [1, None], "names": ["cat", ""]}
    weights = build_detector(cfg).state_dict()
    save_checkpoint({"model": weights, "config": dump_config(cfg), "categories": categories}, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    restored = restore_detector(tmp_path / "x.safetensors")
    assert restored.categories == categories
    assert all(torch.equal(value, weights[name]) for name, value in restored.detector.state_dict().items())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata().keys() == {"config", "categories"}
