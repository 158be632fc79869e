"""From a checkpoint of other classes to a model for one's own data."""

import math

import pytest
import torch

from models import build_detector, weights
from models.layers.head import PRIOR, DetectionHead, EdgeHead
from models.weights import load_for_finetuning, warn_of_scratch
from tests.tiny import FAMILIES, shrunk
from util.checkpoints.files import CheckpointError
from util.config import load_config

BIAS = -math.log((1 - PRIOR) / PRIOR)
CATEGORIES = {"ids": [1, 2, 3], "names": ["a", "b", "c"]}


def detector(family, classes):
    path, options = f"config/{family}.py", {"model.num_classes": classes}
    if "depth" in load_config(path).model.backbone:
        options["model.backbone.depth"] = 18
    return build_detector(shrunk(path, **options))


@pytest.fixture
def checkpoint(monkeypatch):
    """Says what every file holds."""

    def of(content):
        monkeypatch.setattr(weights, "read_checkpoint_in_all_processes", lambda source: content)

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_other_classes_start_anew_with_their_prior_and_all_else_is_loaded(family, checkpoint, caplog):
    caplog.set_level("INFO")
    old = {key: torch.full_like(value, 7) for key, value in detector(family, 7).state_dict().items()}
    checkpoint({"model": old})
    new = detector(family, 3)
    load_for_finetuning(new, "seven.pth", None, [])
    fresh = [key for key, value in new.state_dict().items() if not (value == 7).all()]
    assert fresh
    assert all("class_embed" in key or "label_embed" in key for key in fresh), fresh
    heads = [module for module in new.modules() if isinstance(module, DetectionHead | EdgeHead)]
    assert all((head.class_embed.bias == BIAS).all() for head in heads)
    assert ("detr/" in family[:5] or "pnp" in family) != bool(heads)  # a softmax over all classes has no prior
    for key in fresh:
        value = new.state_dict()[key]
        assert key.endswith("bias") or 0.01 < value.std() < 1.5
    assert f"re-initialised, since their shapes differ ({len(fresh)})" in caplog.text
    assert "class_embed.bias (" in caplog.text


def test_the_table_counts_by_part_and_names_what_is_new(checkpoint, caplog):
    caplog.set_level("INFO")
    old = detector("DINO/dino_4scale_r50", 7).state_dict()
    del old["neck.level_embed"]
    checkpoint({"model": old | {"odd.weight": torch.zeros(1)}})
    load_for_finetuning(detector("DINO/dino_4scale_r50", 3), "seven.pth", None, ["label_embed"])
    rows = {line.split()[0]: line.split()[1:] for line in caplog.text.splitlines() if len(line.split()) == 3}
    total = {part: sum(key.startswith(f"{part}.") for key in old) for part in ("encoder", "backbone")}
    assert int(rows["encoder"][0]) == total["encoder"]
    assert rows["encoder"][1] == "0"
    assert rows["queries"][1] == "3"  # bias and weight of the proposals' classes, and the labels
    assert "lacks them (1): neck.level_embed" in caplog.text
    assert "skipped by --finetune_ignore (1): queries.label_embed.weight" in caplog.text
    assert "skipped, since this model has no such weights (1): odd.weight" in caplog.text


def test_nothing_that_fits_is_an_error(checkpoint):
    checkpoint({"model": {"fc.weight": torch.zeros(2, 2)}})
    with pytest.raises(CheckpointError, match="other.pth: none of its 1 weights fit this model"):
        load_for_finetuning(detector("detr/detr_r50", 3), "other.pth", None, [])


def test_as_many_classes_of_other_names_are_noticed(checkpoint, caplog):
    new = detector("deformable_detr/deformable_detr_r50", 3)
    theirs = {"ids": [1, 2, 3], "names": ["x", "y", "z"]}
    checkpoint({"model": new.state_dict(), "categories": theirs})
    load_for_finetuning(new, "three.pth", None, [], theirs)
    load_for_finetuning(new, "three.pth", None, [], theirs | {"ids": [7, 8, 9]})
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    load_for_finetuning(new, "three.pth", None, [], CATEGORIES)
    assert "trained for other classes (x, y, z, ...)" in caplog.text
    load_for_finetuning(new, "three.pth", None, [], {"ids": [1, 2, 3], "names": ["z", "y", "x"]})
    assert "trained for the same classes in another order (x, y, z, ...)" in caplog.text


def test_a_large_model_on_few_images_from_scratch_is_warned_of(caplog):
    large = build_detector(shrunk("config/deformable_detr/deformable_detr_r50.py"))
    small = detector("deformable_detr/deformable_detr_r50", 3)
    for model, images in ((small, 10), (large, 100_000)):
        warn_of_scratch(model, images)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    warn_of_scratch(large, 10)
    assert "from scratch on 10 images" in caplog.text
    assert "--pretrain_model_path" in caplog.text
