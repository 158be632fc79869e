"""hubconf.py: every config is an entry point of torch.hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hubconf
from models import build_detector
from tests.golden import Recording, make_image
from util.checkpoints.files import save_checkpoint
from util.config import ConfigError, dump_config, load_config

ROOT = Path(__file__).parents[1]


def test_every_config_is_an_entry_point():
    names = {path.stem for path in (ROOT / "config").rglob("*.py") if path.parent.name != "_base_"}
    assert all(callable(getattr(hubconf, name)) for name in names)
    assert "AP as published" in hubconf.deformable_detr_r50.__doc__


def test_a_model_with_weights_and_its_postprocessing(tmp_path):
    weights = Recording("deformable_detr/deformable_detr_r50").checkpoint()
    torch.save({"model": weights}, tmp_path / "official.pth")
    arguments = {"pretrained": tmp_path / "official.pth", "return_postprocessor": True}
    detector, postprocess = torch.hub.load(str(ROOT), "deformable_detr_r50", source="local", **arguments)
    key = "encoder.layers.0.linear1.weight"
    assert torch.equal(detector.state_dict()[key], weights[f"transformer.{key}"])
    with torch.inference_mode():
        output = detector.eval()([make_image(64, 96)])
    (found,) = postprocess(output, torch.tensor([[64, 96]]))
    assert found["boxes"].shape == (100, 4)


def test_options_reach_the_config():
    small = torch.hub.load(str(ROOT), "lite_dino_r18_shapes", source="local", options={"model.num_classes": 3})
    assert small.decoder.heads[0].class_embed.out_features == 3
    with pytest.raises(ConfigError, match="did you mean 'num_classes'"):
        torch.hub.load(str(ROOT), "lite_dino_r18_shapes", source="local", options={"model.num_clases": 3})


LOAD = "import sys, torch; sys.path.insert(0, '.'); import {name}; torch.hub.load({root!r}, {model!r}, source='local')"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("models.py", "'models' is another one here already, of "),
        ("util/__init__.py", "'util' is another one here already, of "),
        ("models/net.py", "'models' is another one here already, of "),  # a folder without __init__.py
        ("datasets/__init__.py", ""),  # as that of Hugging Face: no model needs ours
    ],
)
def test_other_modules_of_the_same_names(file, said, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("ANSWER = 42\n")
    name = Path(file).parts[0].removesuffix(".py")
    code = LOAD.format(name=name, root=str(ROOT), model="lite_dino_r18_shapes")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert said in done.stderr
    assert bool(done.returncode) == bool(said)
    if said:
        assert str(tmp_path / Path(file).parts[0]) in done.stderr


def test_a_notebook_with_another_package_called_datasets(tmp_path):
    """As that of Hugging Face."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/__init__.py").touch()
    code = f"import sys, datasets; sys.path.insert(0, {str(ROOT)!r}); import tools.predict"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert f"'datasets' is another one here already, of {tmp_path / 'datasets'}" in done.stderr


@pytest.mark.parametrize("command", [["main.py", "--help"], ["tools/predict.py", "--help"]])
def test_commands_find_their_own_modules_wherever_they_are_started(command, tmp_path):
    """Also beside a package that is called as one of ours, or where one is installed."""
    for name in ("datasets", "models", "util", "engine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
    words = [sys.executable, ROOT / command[0], *command[1:]]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def stored(path, config, options, **more):
    """A checkpoint as training writes it; returns its weights."""
    cfg = load_config(ROOT / "config" / config, options)
    weights = build_detector(cfg).state_dict()
    save_checkpoint({"model": weights, "config": dump_config(cfg), **more}, path)
    return weights


def test_a_checkpoint_of_ours_builds_the_model_that_it_describes(tmp_path, caplog):
    options = {"model.num_classes": 3, "model.d_model": 32, "model.encoder.layer.ffn_dim": 48}
    weights = stored(tmp_path / "own.pth", "small/lite_dino_r18_shapes.py", {"model.num_classes": 3})
    model = hubconf.lite_dino_r18_shapes(tmp_path / "own.pth")
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert "does not hold" not in caplog.text  # another number of classes is no contradiction
    weights = stored(tmp_path / "wide.pth", "small/lite_dino_r18_shapes.py", options)
    model = hubconf.lite_dino_r18_shapes(tmp_path / "wide.pth")
    assert model.state_dict().keys() == weights.keys()
    said = f"{tmp_path}/wide.pth: does not hold a lite_dino_r18_shapes (model.d_model is 32, not 128"
    assert said in caplog.text
    assert "the model is built as the checkpoint says" in caplog.text
    caplog.clear()
    model, postprocess = hubconf.detr_r50(tmp_path / "own.pth", return_postprocessor=True)
    assert "does not hold a detr_r50 (model.d_model is 128, not 256; model.head.type" in caplog.text
    assert model.decoder.heads[0].class_embed.out_features == 3
    with torch.inference_mode():
        (found,) = postprocess(model.eval()([make_image(64, 96)]), torch.tensor([[64, 96]]))
    assert found["labels"].max() < 3


def test_an_average_is_taken_by_key(tmp_path, caplog):
    caplog.set_level("INFO")
    weights = build_detector(load_config(ROOT / "config/small/lite_dino_r18_shapes.py")).state_dict()
    average = {f"module.{key}": value * 0.5 if value.is_floating_point() else value for key, value in weights.items()}
    stored(tmp_path / "own.pth", "small/lite_dino_r18_shapes.py", {}, ema=average)
    model = hubconf.lite_dino_r18_shapes(tmp_path / "own.pth", checkpoint_key="ema")
    assert torch.equal(model.neck.level_embed, average["module.neck.level_embed"])
    assert "stands for their EMA" not in caplog.text
    model = hubconf.lite_dino_r18_shapes(tmp_path / "own.pth")
    assert not torch.equal(model.neck.level_embed, average["module.neck.level_embed"])
    assert "its weights themselves are taken; the checkpoint key 'ema' stands for their EMA" in caplog.text
