"""Learning rates and weight decay of the real-time family, by name, against what the papers' own patterns caught."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from models import build_detector
from models.official_keys import convert_official
from util.config import load_config
from util.training.optimizer import build_optimizer

ROOT = Path(__file__).parents[2]
FAMILIES = ("rt_detr", "d_fine")
RECORDED = {
    path.stem: path
    for family in FAMILIES
    for folder, kind in ((ROOT / "../shared/reference", "json"), (ROOT / "tests/recordings", "npz"))
    for path in (folder / family).glob(f"*.{kind}")
}
"""Recordings by name, this project's own before others."""
CONFIGS = {path.stem: path for path in (ROOT / "config").glob("[!_]*/*.py")}


def read_spec(path: Path) -> dict:
    """What is said about a recording."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with np.load(path) as file:
        return json.loads(file["spec"].tobytes())


def official_settings(spec: dict) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by official name: those of the first pattern that is found in it."""
    *groups, default = spec["optimizer_groups"]
    return {
        name: next(
            ((group["lr"], group["weight_decay"]) for group in groups if re.search(group["pattern"], name)),
            (default["lr"], default["weight_decay"]),
        )
        for name in spec["state_dict"]
    }


def disagreements(detector: nn.Module, optimizer, spec: dict, family: str) -> list[str]:
    """What an optimiser does otherwise than the recorded one: by name, and in the sums over each of its groups.

    Args:
        spec: has `state_dict`, by official names, and `optimizer_groups`, each with a `pattern` (None for the rest),
            its `lr` and `weight_decay`, and how many `tensors` and `elements` it caught.
        family: whose official names these are.
    """
    wanted = convert_official(official_settings(spec), family)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    wrong, sums = [], defaultdict(lambda: [0, 0])
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            ours = settings[id(parameter)]
            sums[tuple(float(f"{value:.4g}") for value in ours)][0] += 1
            sums[tuple(float(f"{value:.4g}") for value in ours)][1] += parameter.numel()
            if not np.allclose(ours, wanted[name], rtol=1e-6):
                wrong.append(f"{name}: lr and weight decay {ours}, in the paper's code {wanted[name]}")
    recorded = defaultdict(lambda: [0, 0])
    for group in spec["optimizer_groups"]:
        if group["tensors"]:
            key = (group["lr"], group["weight_decay"])
            recorded[key] = [recorded[key][0] + group["tensors"], recorded[key][1] + group["elements"]]
    if sums != recorded:
        wrong.append(f"tensors and elements by lr and weight decay: {dict(sums)}, recorded {dict(recorded)}")
    return wrong


@pytest.mark.parametrize("name", sorted(name for name in RECORDED if name in CONFIGS))
def test_groups(name):
    cfg, spec = load_config(CONFIGS[name], {}), read_spec(RECORDED[name])
    if "optimizer_groups" not in spec:
        pytest.skip("its optimiser is not recorded")
    detector = build_detector(cfg)
    wrong = disagreements(detector, build_optimizer(detector, **cfg.optimizer), spec, cfg.official_keys)
    assert not wrong, "\n".join(wrong)


class Small(nn.Module):
    """A backbone and a decoder of a few weights under names that a family's table leaves alone."""

    def __init__(self):
        super().__init__()
        self.backbone, self.decoder = (
            nn.Linear(2, 3),
            nn.ModuleDict({"norm": nn.LayerNorm(3), "linear": nn.Linear(3, 1)}),
        )


def test_a_wrong_group_is_found(monkeypatch):
    monkeypatch.setattr("tests.models.test_optimizer_groups.convert_official", lambda values, family: values)
    model = Small()
    spec = {
        "state_dict": dict.fromkeys(model.state_dict()),
        "optimizer_groups": [
            {"pattern": "backbone", "lr": 0.1, "weight_decay": 0.5, "tensors": 2, "elements": 9},
            {"pattern": "^(?=.*decoder)(?=.*norm).*$", "lr": 1.0, "weight_decay": 0.0, "tensors": 2, "elements": 6},
            {"pattern": None, "lr": 1.0, "weight_decay": 0.5, "tensors": 2, "elements": 4},
        ],
    }
    right = {"lr": 1.0, "weight_decay": 0.5, "scale": {"backbone": 0.1}, "no_decay": (r"decoder.*norm",)}
    assert not disagreements(model, build_optimizer(model, **right), spec, "")
    wrong = disagreements(model, build_optimizer(model, **{**right, "no_decay": (r"decoder.*bias",)}), spec, "")
    assert [line.split(":")[0] for line in wrong] == [
        "decoder.norm.weight",
        "decoder.linear.bias",
        "tensors and elements by lr and weight decay",
    ]
