"""Learning rates and weight decay of the real-time family, by name, against what the papers' own patterns caught."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from models import build_detector
from models.official_keys import convert_official
from util.config import load_config
from util.training.optimizer import build_optimizer

ROOT = Path(__file__).parents[2]
GROUPS = json.loads((ROOT / "tests/recordings/optimizer_groups.json").read_text())
"""Of the optimisers that the papers' code built: the pattern of each group (None: the rest), and what it caught."""
CONFIGS = {path.stem: path for path in (ROOT / "config").glob("[!_]*/*.py")}


def official_names(name: str, family: str) -> list[str]:
    """Of a model's weights, where a recording of it is at hand."""
    own, shared = ROOT / f"tests/recordings/{family}/{name}.npz", ROOT / f"../shared/reference/{family}/{name}.json"
    if own.exists():
        with np.load(own) as file:
            return list(json.loads(file["spec"].tobytes())["state_dict"])
    return list(json.loads(shared.read_text())["state_dict"]) if shared.exists() else []


def official_settings(groups: list[dict], names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by official name: those of the first pattern that is found in it."""
    *patterns, rest = groups
    chosen = {n: next((g for g in patterns if re.search(g["pattern"], n)), rest) for n in names}
    return {name: (group["lr"], group["weight_decay"]) for name, group in chosen.items()}


def disagreements(detector: nn.Module, optimizer, groups: list[dict], names: Iterable[str], family: str) -> list[str]:
    """What an optimiser does otherwise than the recorded one: by name, and in the sums over each of its groups.

    Args:
        groups: recorded: `pattern`, `lr`, `weight_decay`, and how many `tensors` and `elements` were caught.
        names: official ones of the model's weights; none, and the sums alone are compared.
        family: whose official names these are.
    """
    wanted = convert_official(official_settings(groups, names), family)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    wrong, sums, recorded = [], defaultdict(lambda: [0, 0]), defaultdict(lambda: [0, 0])
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            ours = settings[id(parameter)]
            add(sums, ours, 1, parameter.numel())
            if wanted and not np.allclose(ours, wanted[name], rtol=1e-6):
                wrong.append(f"{name}: lr and weight decay {ours}, in the paper's code {wanted[name]}")
    for group in groups:
        if group["tensors"]:
            add(recorded, (group["lr"], group["weight_decay"]), group["tensors"], group["elements"])
    if sums != recorded:
        wrong.append(f"tensors and elements by lr and weight decay: {dict(sums)}, recorded {dict(recorded)}")
    return wrong


def add(sums: dict, setting: tuple[float, float], tensors: int, elements: int):
    """Counts what has a learning rate and weight decay, which are rounded."""
    found = sums[tuple(float(f"{value:.4g}") for value in setting)]
    found[0] += tensors
    found[1] += elements


@pytest.mark.parametrize("name", sorted(GROUPS.keys() & CONFIGS.keys()))
def test_groups(name):
    cfg = load_config(CONFIGS[name])
    detector = build_detector(cfg)
    optimizer, names = build_optimizer(detector, **cfg.optimizer), official_names(name, cfg.official_keys)
    wrong = disagreements(detector, optimizer, GROUPS[name], names, cfg.official_keys)
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
    monkeypatch.setattr(f"{__name__}.convert_official", lambda values, family: values)
    model = Small()
    names = list(model.state_dict())
    recorded = [
        {"pattern": "backbone", "lr": 0.1, "weight_decay": 0.5, "tensors": 2, "elements": 9},
        {"pattern": "^(?=.*decoder)(?=.*norm).*$", "lr": 1.0, "weight_decay": 0.0, "tensors": 2, "elements": 6},
        {"pattern": None, "lr": 1.0, "weight_decay": 0.5, "tensors": 2, "elements": 4},
    ]
    right = {"lr": 1.0, "weight_decay": 0.5, "scale": {"backbone": 0.1}, "no_decay": (r"decoder.*norm",)}
    assert not disagreements(model, build_optimizer(model, **right), recorded, names, "")
    wrong = build_optimizer(model, **{**right, "no_decay": (r"decoder.*bias",)})
    assert [line.split(":")[0] for line in disagreements(model, wrong, recorded, names, "")] == [
        "decoder.norm.weight",
        "decoder.linear.bias",
        "tensors and elements by lr and weight decay",
    ]
    (said,) = disagreements(model, build_optimizer(model, lr=1.0, weight_decay=0.5), recorded, [], "")
    assert said.startswith("tensors and elements")
