"""hubconf.py: every config is an entry point of torch.hub."""

from pathlib import Path

import pytest
import torch

import hubconf
from tests.golden import Recording, make_image
from util.config import ConfigError

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
