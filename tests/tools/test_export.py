"""tools/export.py: what it writes computes what the detector computes, without this project."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import build_detector, build_postprocessor
from models.ops import available_backends
from models.postprocess import SigmoidTopK
from models.registry import PARTS
from tests.golden import filled, make_image
from tests.tiny import shrunk
from tools.export import (
    OPSET,
    TOLERANCE,
    ExportError,
    OnImage,
    OnImages,
    capture,
    check_exportable,
    difference,
    example_image,
    export,
    in_plain_pytorch,
    main,
    own_rounding,
    parse_arguments,
    resizing,
    run_file,
    write_onnx,
)
from util.checkpoints.files import save_checkpoint
from util.config import dump_config

ROOT = Path(__file__).parents[2]
FAMILIES = [
    "detr/detr_r50",
    "conditional_detr/conditional_detr_r50",
    "pnp_detr/pnp_detr_r50_ratio033",
    "deformable_detr/deformable_detr_r50",
    "efficient_detr/efficient_detr_r50",
    "sparse_detr/sparse_detr_r50_rho_0.3",
    "h_detr/h_deformable_detr_r50",
    "DINO/dino_4scale_r50",
    "lite_detr/lite_dino_r50_h3l1_2p1x3_kda",
    "rt_detr/rtdetrv2_r50vd_m_dsp",
    "d_fine/dfine_hgnetv2_s",
]
CONDITIONAL = "conditional_detr/conditional_detr_r50"
SIZE = (64, 96)


@PARTS.register
class Strided(nn.Module):
    """A backbone of one convolution for each map: exporting takes a time that grows with the operators."""

    def __init__(self, strides):
        super().__init__()
        self.channels = [16] * len(strides)
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 16, stride, stride) for stride in strides)

    def forward(self, images):
        return [convolution(images) for convolution in self.convolutions]


def small(name):
    """A detector of one or two levels and of few layers, whose answers follow the image, and its config."""
    path = ROOT / f"config/{name}.py"
    model = shrunk(path).model
    options = {"model.backbone": {"type": "Strided", "strides": (16,)}, "model.decoder.num_layers": 1}
    if "num_levels" in model:
        options["model.num_levels"] = 1
    if "num_blocks" in model.encoder:
        options |= {"model.encoder.num_layers": 2, "model.encoder.num_blocks": 1, "model.encoder.high_levels": 1}
        options |= {"model.num_levels": 2}  # the second one is the neck's
    elif "fusion" in model.encoder:
        options |= {"model.backbone.strides": (16, 32), "model.num_levels": 2, "model.encoder.fusion.num_blocks": 1}
        if "answer_layer" in model.decoder:
            options |= {"model.decoder.num_layers": 2, "model.decoder.answer_layer": 1}
        if "scale" in model.decoder:
            options["model.attention.num_points"] = (3, 6)
    else:
        options["model.encoder.base.num_layers" if "base" in model.encoder else "model.encoder.num_layers"] = 1
    cfg = shrunk(path, **options)
    detector = build_detector(cfg).eval()
    detector.load_state_dict({key: filled(key, tuple(value.shape)) for key, value in detector.state_dict().items()})
    return detector, cfg


class Together(OnImages):
    """One detector of each family, as one program: every export has a cost of its own."""

    outputs = tuple(f"{name}/{output}" for name in FAMILIES for output in OnImages.outputs)

    def __init__(self):
        super().__init__(nn.Identity(), any_number=True)
        self.models = nn.ModuleList(OnImages(small(name)[0]) for name in FAMILIES)

    def forward(self, images):
        return tuple(output for model in self.models for output in model(images))


def test_families_answer_the_same_under_onnxruntime(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    """However many images there are, of which the program does not know."""
    images, path = torch.stack([make_image(*SIZE, float(i)) for i in range(3)]), tmp_path / "all.onnx"
    model = Together().eval()
    write_onnx(capture(model, images[:1]), path, {}, ("images", *model.outputs), OPSET)
    for given in (images[:1], images):
        with torch.no_grad():
            answers, flipped = (model(x) for x in (given, given.flip(-1)))
        for name, found, wanted, other in zip(model.outputs, run_file(path, given), answers, flipped, strict=True):
            said = partial(str.format, "{}, {} images: {}", name, len(given))
            torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE, msg=said)
            assert (wanted - other).abs().max() > 10 * TOLERANCE, f"{name} does not look at the image"


def test_a_program_of_pytorch_takes_batches(tmp_path):
    detector, _ = small(CONDITIONAL)
    images = torch.stack([make_image(*SIZE), make_image(*SIZE, 1.0)])
    assert export(OnImages(detector), images, tmp_path / "model.pt2", {"names": ["a"]}) < TOLERANCE
    facts = {"facts.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=facts)
    assert json.loads(facts["facts.json"]) == {"names": ["a"]}


def test_from_a_checkpoint_to_detections_without_this_project(tmp_path):
    """D-FINE: the command line with --with_processing, then tools/run_onnx.py on an image of any size."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    detector, cfg = small("d_fine/dfine_hgnetv2_s")
    content = {
        "config": dump_config(cfg),
        "categories": {"ids": [*range(80)], "names": [f"class {i}" for i in range(80)]},
    }
    save_checkpoint({"model": detector.state_dict(), **content}, tmp_path / "best.pth")
    arguments = ["--checkpoint", f"{tmp_path}/best.pth", "--output", f"{tmp_path}/best.onnx", "--size", "64", "96"]
    assert main(parse_arguments([*arguments, "--with_processing"])) == 0
    pixels = example_image(150, 130)
    with torch.no_grad():
        wanted = OnImage(detector, build_postprocessor(cfg), SIZE, None)(pixels)
    for found, expected in zip(run_file(tmp_path / "best.onnx", pixels), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    for line in (example_image(1, 90), example_image(90, 1)):
        with torch.no_grad():
            expected = OnImage(detector, build_postprocessor(cfg), SIZE, None)(line)
        assert difference(run_file(tmp_path / "best.onnx", line), expected, 90) < TOLERANCE
    Image.fromarray(pixels.numpy()).save(tmp_path / "waves.png")
    shutil.copy(ROOT / "tools/run_onnx.py", tmp_path)
    command = ["run_onnx.py", "best.onnx", "waves.png", "--score", f"{wanted[0][2] - 1e-4}", "--output_dir", "drawn"]
    said = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert len(said.splitlines()) >= 3
    assert f"waves.png: {content['categories']['names'][wanted[1][0]]} {wanted[0][0]:.2f} at" in said.splitlines()[0]
    assert Image.open(tmp_path / "drawn/waves.png").size == (130, 150)


def test_answers_are_compared_as_sets():
    scores, boxes = torch.tensor([0.9, 0.5]), torch.tensor([[0, 0, 80.0, 60], [8, 8, 20, 20]])
    assert difference((scores, boxes), (scores.flip(0), boxes.flip(0)), 80) == 0
    assert difference((scores, boxes), (scores, boxes + 8), 80) == pytest.approx(0.1)
    assert difference((scores, boxes), (scores.flip(0), boxes)) > 0.3
    assert difference((scores, boxes), (scores[:1], boxes[:1])) == float("inf")


@pytest.mark.parametrize(("old", "new"), [(90, 40), (40, 90), (33, 33)])
def test_images_are_resized_as_pillow_does(old, new):
    pixels = example_image(old, 50)
    wanted = torch.from_numpy(np.array(Image.fromarray(pixels.numpy()).resize((50, new), Image.Resampling.BILINEAR)))
    found = torch.einsum("no,oxc->nxc", resizing(old, new), pixels.float())
    assert (found - wanted).abs().max() < 0.51  # Pillow rounds


def test_what_cannot_be_exported_is_named():
    faster = build_detector(shrunk(ROOT / "config/faster_rcnn/faster_rcnn_r50_fpn.py"))
    with pytest.raises(ExportError, match=r"best\.pth: FasterRCNN cannot be exported: how many regions"):
        check_exportable("best.pth", faster, None, with_processing=False)
    detector, cfg = small(CONDITIONAL)
    postprocess = build_postprocessor(cfg)
    check_exportable("best.pth", detector, postprocess, with_processing=True)
    postprocess = SigmoidTopK(nms_iou=0.5)
    with pytest.raises(ExportError, match=r"nms_iou=0\.5 cannot be exported"):
        check_exportable("best.pth", detector, postprocess, with_processing=True)


def test_deformable_attention_gets_its_kernels_back():
    model = OnImages(small("deformable_detr/deformable_detr_r50")[0])
    before = available_backends()
    assert own_rounding(model, make_image(*SIZE)[None]) < TOLERANCE
    with in_plain_pytorch():
        assert available_backends() == ("reference",)
    assert available_backends() == before
