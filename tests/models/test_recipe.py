"""How a training starts: fresh weights, learning rates and schedules are those of the papers' own code."""

import json
import math
import re
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import build_detector
from models.official_keys import convert_official
from util.cli.summary import describe_schedule
from util.config import load_config
from util.training.optimizer import build_optimizer

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "tests/recipes").glob("*.npz"))
SEEDS = (0, 1)
ERRORS = 5
"""Standard errors that a moment may be off."""
SWIN = re.compile(r"^backbone\.layers\.\d\.(blocks|downsample)")
"""Weights of a Swin: the papers' code leaves them as PyTorch makes them, since it loads ImageNet's over them; here they
start as in Swin's own code."""
UNREAD = re.compile(r"query_proj")
"""Of plain attention in Lite-DETR: nothing reads it, so here it is frozen."""


class Recipe:
    """What a training of the papers' code starts from, and our model in two fresh copies.

    Attributes:
        spec: see tests/recipes/compact.py.
        rows: {our name: mean, standard deviation, least, largest, learning rate, weight decay, whether it trains}.
    """

    def __init__(self, path: Path):
        self.name = path.stem
        (config,) = (ROOT / "config").rglob(f"{path.stem}.py")
        self.cfg = load_config(config)
        with np.load(path) as file:
            self.spec, numbers = json.loads(file["spec"].tobytes()), torch.from_numpy(file["numbers"])
        self.rows = self.ours(dict(zip(self.spec["keys"], numbers, strict=True)))

    def ours(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names replaced by ours."""
        return convert_official(values, self.cfg.official_keys)

    def seeds(self, name: str) -> int:
        """Over how many fresh models a row was taken."""
        return self.spec["backbone_seeds" if name.startswith("backbone.") else "seeds"]

    @cached_property
    def fresh(self):
        """Detectors of different seeds."""
        detectors = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            detectors.append(build_detector(self.cfg))
        return detectors


@pytest.fixture(scope="module", params=RECIPES, ids=lambda path: path.stem)
def recipe(request):
    return Recipe(request.param)


def parameters(detector) -> dict[str, Tensor]:
    """By all their names."""
    return dict(detector.named_parameters(remove_duplicate=False))


def test_there_are_recipes():
    assert len(RECIPES) == 20


def test_fresh_weights(recipe):
    """Constants exactly; of random ones mean and standard deviation, and that what is bounded is bounded."""
    fresh, wrong = [parameters(detector) for detector in recipe.fresh], []
    assert fresh[0].keys() == recipe.rows.keys()
    for name, row in recipe.rows.items():
        values = torch.stack([found[name].detach().flatten() for found in fresh]).double()
        mean, std, least, largest = row[:4].tolist()
        ours = values.mean().item(), values.std(unbiased=False).item(), values.min().item(), values.max().item()
        if SWIN.match(name) and "swint" in recipe.name:
            continue
        if least == largest or name.endswith("sampling_offsets.bias"):
            good = np.allclose(ours, (mean, std, least, largest), rtol=1e-4, atol=1e-6)
        else:
            good = within_errors(values, (mean, std, least, largest), recipe.seeds(name))
        if not good:
            wrong.append(f"{name}: mean, std, min, max {ours}, in the recipe {row[:4].tolist()}")
    assert not wrong, "\n".join(wrong)


def within_errors(values: Tensor, recorded: tuple[float, ...], seeds: int) -> bool:
    """Whether (seeds of ours, numbers) can be from the distribution that moments were recorded of."""
    mean, std, least, largest = recorded
    count, theirs = values.numel(), values.shape[1] * seeds
    error = std * math.sqrt(1 / count + 1 / theirs)  # of a mean; of a standard deviation, at most that over root 2
    near = abs(values.mean().item() - mean) <= ERRORS * error
    if max(-least, largest) != 2:  # timm's truncated normal distribution puts single numbers there, which widens it
        near &= abs(values.std().item() - std) <= ERRORS * error / math.sqrt(2)
    uniform = theirs > 500 and max(-least, largest) < 1.8 * std  # no normal distribution ends there
    return near and (not uniform or values.abs().max().item() <= 1.02 * max(-least, largest))


def test_copies_start_equal(recipe):
    """The papers' code makes layers as copies of one, and then draws its matrices anew, but not its biases."""
    names = {key: key for key in recipe.spec["keys"]}
    renamed = {first: ours for ours, first in recipe.ours(names).items()}
    for detector in recipe.fresh:
        found = parameters(detector)
        for keys in recipe.spec["equal"]:
            first, *others = (found[renamed[key]] for key in keys if key in renamed)
            assert all(torch.equal(first, other) for other in others), keys


def test_learning_rates(recipe):
    detector = recipe.fresh[0]
    optimizer = build_optimizer(detector, **recipe.cfg.optimizer)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    wrong = []
    for name, parameter in parameters(detector).items():
        lr, weight_decay, trains = recipe.rows[name][4:].tolist()
        group = groups.get(id(parameter), {"lr": 0.0, "weight_decay": weight_decay})
        if UNREAD.search(name) and recipe.name.endswith("_da"):
            lr, trains = 0.0, 0.0
        ours = group["lr"], group["weight_decay"], float(parameter.requires_grad)
        if not np.allclose(ours, (lr, weight_decay, trains), rtol=1e-6):
            wrong.append(f"{name}: lr, weight decay, trains {ours}, in the recipe {(lr, weight_decay, trains)}")
    assert not wrong, "\n".join(wrong)
    ((betas, eps),) = {(tuple(group["betas"]), group["eps"]) for group in optimizer.param_groups}
    assert [list(betas), eps] == recipe.spec["betas_eps"]


def test_options(recipe):
    """Lengths, drops, batches and the rest that a config says."""
    cfg, options = recipe.cfg, recipe.spec["recipe"]
    late = recipe.name.startswith("lite_dino")  # its scheduler is told of an epoch when that is over
    assert cfg.schedule.kind == "step"
    assert cfg.schedule.epochs == options["epochs"]
    assert tuple(cfg.schedule.drop) == (options["lr_drop"] + late,)
    assert cfg.training.clip_norm == options["clip_max_norm"]
    assert cfg.training.ema is None
    assert cfg.data.batch_size == options["batch_size"]
    text = repr(cfg.model.to_dict())
    assert set(re.findall(r"'dropout': ([\d.]+)", text)) == {str(options["dropout"])}
    expected = {
        "num_queries": options.get("num_queries", options.get("num_queries_one2one")),
        "num_one2many": options.get("num_queries_one2many"),
        "dn_number": options.get("dn_number"),
        "box_noise_scale": options.get("dn_box_noise_scale"),
        "label_noise_ratio": options.get("dn_label_noise_ratio"),
        "keep_ratio": options.get("rho") or None,
        "num_blocks": options.get("num_expansion"),
        "high_levels": options.get("enc_scale"),
    }
    for name, value in expected.items():
        found = re.findall(rf"'{name}': ([\d.]+)", text)
        assert found == ([str(value)] if value is not None else []), name
    if "num_select" in options:
        assert cfg.postprocess.num_select == options["num_select"]


class TwoParts(nn.Module):
    """A backbone and a head."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(1, 1), nn.Linear(1, 1)


def rates(model: nn.Module, **options) -> dict[str, float]:
    """Learning rates of parts, by their names."""
    names = {id(p): name.split(".")[0] for name, p in model.named_parameters()}
    groups = build_optimizer(model, **options).param_groups
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


def test_the_backbone_can_have_a_rate_of_its_own():
    """As in the papers' code, where lr leaves it alone."""
    model, scale = TwoParts(), {"backbone": 0.1}
    assert rates(model, lr=2.0, scale=scale) == {"head": 2.0, "backbone": 0.2}
    assert rates(model, lr=2.0, scale=scale, lr_backbone=0.5) == {"head": 2.0, "backbone": 0.5}
    assert rates(model, lr=2.0, lr_backbone=0.0) == {"head": 2.0, "backbone": 0.0}
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r"lr_backbone=0\.5: nothing in this model's backbone trains"):
        rates(model, lr=2.0, lr_backbone=0.5)


def test_lr_leaves_the_backbone_alone_under_lite_detrs_own_names():
    cfg = load_config(ROOT / "config/DINO/DINO_4scale.py", {"lr": 5e-4})
    assert rates(TwoParts(), **cfg.optimizer) == {"head": 5e-4, "backbone": 1e-5}


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("[!_]*/*.py")), ids=lambda path: path.stem)
def test_every_config_says_what_its_rate_is_meant_for(path):
    cfg = load_config(path, {"lr_backbone": 3e-5})
    assert cfg.optimizer.lr_backbone == 3e-5
    assert cfg.optimizer.total_batch_size >= 1
    assert cfg.optimizer.scale_lr is None


@pytest.mark.parametrize(
    ("scaling", "images", "factor"), [(None, 64, 1.0), ("sqrt", 64, 2.0), ("sqrt", 4, 0.5), ("linear", 64, 4.0)]
)
def test_rates_are_scaled_by_the_images_of_a_step(scaling, images, factor):
    options = {"lr": 2.0, "scale": {"backbone": 0.1}, "total_batch_size": 16, "scale_lr": scaling, "batch_size": images}
    assert rates(TwoParts(), **options) == pytest.approx({"head": 2.0 * factor, "backbone": 0.2 * factor})
    own = {"head": 2.0 * factor, "backbone": 0.5 * factor}
    assert rates(TwoParts(), **options, lr_backbone=0.5) == pytest.approx(own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_lr": "log"}, r"scale_lr='log' is none of None, 'sqrt', 'linear'"),
        ({"scale_lr": "sqrt", "batch_size": 4}, "needs total_batch_size"),
        ({"total_batch_size": 0}, "total_batch_size=0 must be 1 or more"),
    ],
)
def test_scalings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(TwoParts(), 1.0, **options)


def test_the_start_up_table_says_what_a_rate_is_meant_for():
    order = {"batch_size": 4, "accumulate": 1, "steps_per_epoch": 10}
    state = SimpleNamespace(data_order=order, optimizer=SimpleNamespace(param_groups=[{"initial_lr": 1e-4}]))
    cfg = {"data": {"batch_size": 4}, "schedule": {"epochs": 2}, "optimizer": {"total_batch_size": 16}}

    def said(**optimizer) -> str:
        return describe_schedule({**cfg, "optimizer": optimizer}, state)[1]

    assert said(total_batch_size=4) == "learning rate 0.0001, step; meant for 4 images a step"
    assert said(total_batch_size=16).endswith("16 images a step; optimizer.scale_lr='sqrt' or 'linear' would adapt it")
    assert said(total_batch_size=16, scale_lr="sqrt").endswith("; scaled (sqrt) from 16 images a step to 4")
    assert said() == "learning rate 0.0001, step"
