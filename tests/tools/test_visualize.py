"""tools/visualize.py: what is recorded is what was computed, and what is drawn lies where it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import build_detector
from models.layers.attention import ProjectedAttention
from models.ops import ms_deform_attn
from tests.golden import filled, make_image
from tests.tiny import shrunk
from tools.lib.drawings import SIDE, best_queries, draw_sampling, overlay
from tools.lib.traces import LayerSampling, trace_detector
from tools.visualize import chosen_layers, drawings, main, parse_arguments
from util.checkpoints.files import save_checkpoint
from util.config import ConfigError, dump_config, load_config

ROOT = Path(__file__).parents[2]


def detector_of(name):
    """A narrow detector whose answers follow the image, and its config."""
    path, options = ROOT / f"config/{name}.py", {"model.num_classes": 3}
    if "depth" in load_config(path).model.backbone:
        options["model.backbone.depth"] = 18
    cfg = shrunk(path, **options)
    detector = build_detector(cfg).eval()
    detector.load_state_dict({key: filled(key, tuple(value.shape)) for key, value in detector.state_dict().items()})
    return detector, cfg


@pytest.fixture(scope="module")
def pixels():
    return Image.fromarray((make_image(64, 96) * 50 + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("name", "sheets"),
    [
        ("lite_detr/lite_dino_r50_h3l1_2p1x3_kda", {"sampling": 4 * 3, "updates": 1}),
        ("sparse_detr/sparse_detr_r50_rho_0.3", {"sampling": 4 * 3, "tokens": 2 * 4}),
        ("rt_detr/rtdetr_r50vd_m", {"sampling": 2 * 3}),
        ("rt_detr/rtdetrv2_r18vd_dsp", {"sampling": 2 * 3}),
        ("d_fine/dfine_hgnetv2_s", {"sampling": 2 * 3}),
        ("detr/detr_r50", {"attention": 2 * 3}),
        ("conditional_detr/conditional_detr_r50", {"attention": 2 * 3}),
        ("pnp_detr/pnp_detr_r50_ratio033", {"attention": 2 * 3}),
    ],
)
def test_what_each_family_shows(name, sheets, pixels):
    detector, _ = detector_of(name)
    image = make_image(64, 96)
    with torch.no_grad():
        before = detector([image])
    found = trace_detector(detector, image)
    torch.testing.assert_close(found.output.boxes, before.boxes)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in detector.modules())
    for sampling in found.samplings.values():
        torch.testing.assert_close(sampling.weights.sum((2, 3)), torch.ones(sampling.weights.shape[:2]))
        assert len(sampling.reference) == len(sampling.locations) == len(sampling.weights)
    for weights in found.attentions.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    drawn = drawings(pixels, found, best_queries(found.output.answer, 3), None)
    assert drawn.keys() == sheets.keys()
    panel = (SIDE + 4) * (round(SIDE * 64 / 96) + 18 + 4)
    for kind, panels in sheets.items():
        assert kind == "updates" or drawn[kind].width * drawn[kind].height == panels * panel


def test_weights_that_the_operator_keeps_to_itself():
    """Sampling with them as plain weights gives the answer of the key-aware attention."""
    detector, _ = detector_of("lite_detr/lite_dino_r50_h3l1_2p1x3_kda")
    answers = {}
    for name in ("encoder.layers.2.self_attn", "encoder.layers.0.self_attn"):
        module = detector.get_submodule(name)
        module.register_forward_hook(lambda m, inputs, result, name=name: answers.update({name: (inputs, result)}))
    found = trace_detector(detector, make_image(64, 96))
    for name, ((_, _, memory), (answer, _)) in answers.items():
        module, sampling = detector.get_submodule(name), found.samplings[name]
        weights = sampling.weights[None].contiguous()
        with torch.no_grad():
            values = module.values(memory)
            again = module.output_proj(ms_deform_attn(values, memory.shapes, sampling.locations[None], weights))
        torch.testing.assert_close(again, answer, rtol=1e-4, atol=1e-4)
    high, low = found.asking["encoder.layers.0"], found.asking["encoder.layers.1"]
    tokens = [h * w for h, w in found.shapes]
    assert high == [0, *tokens[1:]]  # H3L1: the finest level waits for the end of a block of two layers
    assert low == tokens


def test_weights_of_projected_attention():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.neck, self.encoder, self.cross_attn = torch.nn.Identity(), None, ProjectedAttention(8, 2)

        def forward(self, images):
            torch.manual_seed(0)
            query, key, self.value = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 4)
            self.answer = self.cross_attn(
                query, key, self.value, torch.tensor([0, 0, 0, 0, 1]).bool()[None, None, None]
            )

    layer = Layer().eval()
    weights = trace_detector(layer, None).attentions["cross_attn"]
    assert weights[..., 4].eq(0).all()
    again = layer.cross_attn.out_proj((weights @ layer.value[0]).transpose(0, 1).flatten(1))
    torch.testing.assert_close(again, layer.answer[0])


def test_dots_and_heat_lie_where_they_should():
    black = Image.new("RGB", (200, 100))
    locations = torch.zeros(1, 1, 1, 3, 2)
    locations[0, 0, 0] = torch.tensor([[0.75, 0.5], [0.25, 0.25], [0.25, 0.75]])
    weights = torch.tensor([0.999, 0.001, 0.0]).view(1, 1, 1, 3)
    shown = np.array(draw_sampling(black, LayerSampling(torch.tensor([[0.5, 0.5]]), locations, weights), 0)).max(-1) > 0
    y, x = np.nonzero(shown[:, SIDE * 5 // 8 :])
    assert abs(x.mean() + SIDE * 5 // 8 - 0.75 * SIDE) < 2
    assert abs(y.mean() - 0.5 * SIDE / 2) < 2
    assert len(x) > 4 * (shown[: SIDE // 5, : SIDE // 3]).sum() > 0  # the heavier one is larger
    assert not shown[SIDE * 3 // 10 : SIDE * 2 // 5, SIDE // 5 : SIDE // 3].any()  # and one of no weight is none
    values = torch.zeros(4, 8)
    values[1, 6] = 0.01
    warm = np.array(overlay(black, values)).sum(-1)
    y, x = np.nonzero(warm == warm.max())
    assert (
        (x.min() // (SIDE // 8), y.min() // (SIDE // 8)) == (x.max() // (SIDE // 8), y.max() // (SIDE // 8)) == (6, 1)
    )


def test_the_command_line_from_a_checkpoint(tmp_path, pixels, caplog):
    detector, cfg = detector_of("detr/detr_r50")
    cfg.data.resize.scale = 64
    save_checkpoint({"model": detector.state_dict(), "config": dump_config(cfg)}, tmp_path / "best.pth")
    pixels.save(tmp_path / "waves.png")
    (tmp_path / "broken.png").write_text("no image")
    files = [str(tmp_path / name) for name in ("broken.png", "waves.png")]
    common = ["look", *files, "--checkpoint", str(tmp_path / "best.pth"), "--output_dir", str(tmp_path / "out")]
    main(parse_arguments([*common, "--queries", "1", "4", "--layers", "decoder.layers.5"]))
    assert "broken.png: cannot be read" in caplog.text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["waves_attention.png"]
    assert Image.open(tmp_path / "out/waves_attention.png").width == SIDE + 4
    with pytest.raises(ConfigError, match=r"--queries \[12\]: this model has the queries 0 to 11"):
        main(parse_arguments([*common, "--queries", "12"]))
    with pytest.raises(ConfigError, match=r"--layers encoder\.layers\.9: there are a\.b"):
        chosen_layers(["a.b"], ["encoder.layers.9"])


def test_phones_folders_and_narrow_images_are_looked_at(tmp_path, pixels, caplog):
    detector, cfg = detector_of("detr/detr_r50")
    cfg.data.resize.scale, cfg.data.resize.max_size = 64, 96
    save_checkpoint({"model": detector.state_dict(), "config": dump_config(cfg)}, tmp_path / "best.pth")
    (tmp_path / "in/a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels.rotate(90, expand=True).save(tmp_path / "in/a/same.PNG", exif=exif)
    pixels.save(tmp_path / "in/same.png")
    Image.new("RGB", (1, 300)).save(tmp_path / "in/narrow.png")
    (tmp_path / "empty").mkdir()
    common = ["look", "--checkpoint", str(tmp_path / "best.pth"), "--output_dir", str(tmp_path / "in/out")]
    assert main(parse_arguments([*common, str(tmp_path / "in"), str(tmp_path / "empty"), "--queries", "1"])) == 0
    drawn = {str(path.relative_to(tmp_path / "in/out")): path for path in (tmp_path / "in/out").rglob("*.png")}
    assert sorted(drawn) == ["a/same_attention.png", "narrow_attention.png", "same_attention.png"]
    upright, turned = (Image.open(drawn[name]) for name in ("same_attention.png", "a/same_attention.png"))
    assert upright == turned
    assert "empty: a folder without images" in caplog.text
    assert main(parse_arguments([*common, str(tmp_path / "in/same.png"), "--max_pixels", "6143"])) == 1
    assert "same.png: cannot be read: 96 x 64 are 6144 pixels, and more than 6143 are refused" in caplog.text


def test_browsing_augmented_images(tmp_path):
    """The box of a white square on black is drawn around the square, however the image was changed."""
    folder = tmp_path / "train2017"
    folder.mkdir()
    array = np.zeros((80, 120, 3), np.uint8)
    array[20:50, 60:100] = 255
    Image.fromarray(array).save(folder / "square.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [60, 20, 40, 30], "area": 1200, "iscrowd": 0}
    listed = {"images": [{"id": 1, "file_name": "square.png", "width": 120, "height": 80}], "annotations": [box]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text(
        json.dumps({**listed, "categories": [{"id": 1, "name": ""}]})
    )
    config = str(ROOT / "config/small/lite_dino_r18_shapes.py")
    arguments = ["browse", "-c", config, "--coco_path", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    main(parse_arguments([*arguments, "--epochs", "4", "--num_images", "3"]))
    sheet = np.array(Image.open(tmp_path / "out/augmented_00.png").convert("RGB")).astype(int)
    variants = np.split(sheet[18:], 4, axis=1)
    for variant in variants:
        inside = variant[20:-4, 4:-4]
        red = np.argwhere((inside[..., 0] > 180) & (inside[..., 1] < 90) & (inside[..., 2] < 130))
        black_side = inside.sum(-1) < 60
        white = np.argwhere((inside.sum(-1) > 720) & (np.cumsum(black_side, 1) > 0) & (np.cumsum(black_side, 0) > 0))
        assert len(red) > 50
        assert np.abs(np.median(red, 0) - np.median(white, 0)).max() < 30
