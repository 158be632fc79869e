"""tools/predict.py: a model out of its checkpoint alone, any images, and what is wrong with the others."""

import json
import re
import sys
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tools.predict
from datasets.annotations import read_annotations
from datasets.categories import COCO, Categories
from datasets.image_files import find_image_files, read_images
from datasets.images import CorruptImageError
from datasets.predictions import Found
from datasets.shapes import draw_image, make_shapes
from models import build_detector
from models.restore import restore_detector
from tests.harness import fake_graphs
from tests.tiny import shrunk
from tools.predict import Predictor, main
from util.checkpoints.files import CheckpointError, save_checkpoint
from util.config import ConfigError, dump_config
from util.tensors.cuda_graphs import CaptureError

ROOT = Path(__file__).parents[2]
NAMES = ["disc", "square", "triangle", "ring", "cross"]
SMALL = {"data.resize.scale": 64, "data.resize.max_size": 96}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images that can be used, one of them a line, and one that cannot."""
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=1, val=3)
    val = root / "val2017"
    (val / "broken.jpg").write_bytes(b"not an image")
    Image.new("RGB", (4000, 1)).save(val / "narrow.png")
    (val / "notes.txt").write_text("not taken")
    return val


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint as training writes it, of a model that has learnt nothing, and of an average that differs."""
    path = tmp_path_factory.mktemp("model") / "checkpoint.pth"
    torch.manual_seed(1)
    layers = {"model.encoder.num_layers": 2, "model.decoder.num_layers": 2}
    cfg = shrunk(ROOT / "config/small/lite_dino_r18_shapes.py", **SMALL, **layers, **{"model.num_classes": 5})
    weights = build_detector(cfg).state_dict()
    average = {f"module.{key}": value + (0.01 if value.is_floating_point() else 0) for key, value in weights.items()}
    facts = {"config": dump_config(cfg), "categories": {"ids": [1, 2, 3, 4, 9], "names": NAMES}}
    save_checkpoint({"model": weights, "ema": average, **facts}, path)
    return path


def predicted(output):
    return json.loads((output / "predictions.json").read_text())


def test_a_folder_becomes_json_and_drawings(folder, checkpoint, tmp_path, capsys):
    arguments = ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path), "--score", "0", "--batch_size", "4"]
    assert main([*arguments, "--device", "cpu", str(folder), "nowhere.jpg"]) == 0
    found = predicted(tmp_path)
    names = [*sorted(path.name for path in folder.glob("0*.jpg")), "narrow.png"]
    assert [image["file_name"] for image in found["images"]] == names
    assert {entry["category_id"] for entry in found["annotations"]} <= {1, 2, 3, 4, 9}
    assert {entry["image_id"] for entry in found["annotations"]} == {1, 2, 3, 4}
    skipped = re.findall(r"skipped (\S+: .*)", capsys.readouterr().out)
    assert skipped == [
        f"{folder}/broken.jpg: cannot be read: not an image of a known format",
        "nowhere.jpg: cannot be read: No such file or directory",
    ]
    read = read_annotations(tmp_path / "predictions.json")  # is an annotation file too
    assert [read.name(index) for index in range(4)] == names
    first = found["images"][0]
    with Image.open(tmp_path / "drawn" / names[0]) as drawn:
        assert drawn.size == (first["width"], first["height"])
        with Image.open(folder / names[0]) as original:
            assert np.abs(np.asarray(drawn.convert("RGB"), float) - np.asarray(original, float)).max() > 50


def test_the_model_is_the_average_of_the_checkpoint(checkpoint):
    restored = restore_detector(checkpoint)
    average = torch.load(checkpoint, weights_only=True)["ema"]
    assert all(torch.equal(value, average[f"module.{key}"]) for key, value in restored.detector.state_dict().items())
    assert restored.categories["names"] == NAMES
    assert restored.cfg.data.resize.scale == 64
    assert not restored.detector.training


def test_scores_and_classes_choose(folder, checkpoint, tmp_path):
    image = Image.open(sorted(folder.glob("0*.jpg"))[0])
    (everything,) = Predictor(checkpoint, score=0.0, device="cpu")([image])
    limit = float(np.median(everything.scores))
    (some,) = Predictor(checkpoint, score=limit, classes=["disc", "9"], device="cpu")([image])
    kept = (everything.scores >= limit) & np.isin(everything.slots, (0, 4))
    assert 0 < kept.sum() < len(everything.scores)
    assert np.array_equal(some.boxes, everything.boxes[kept])
    assert set(some.slots) <= {0, 4}
    assert len(Predictor(checkpoint, score=1.1, device="cpu")([image])[0].boxes) == 0
    with pytest.raises(ConfigError, match="did you mean 'disc'"):
        Predictor(checkpoint, classes=["disk"], device="cpu")


def test_nothing_to_detect_on_is_no_success(checkpoint, tmp_path, folder):
    arguments = ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, str(folder / "broken.jpg")]) == 1
    assert predicted(tmp_path)["images"] == []
    assert main([*arguments[2:], "--checkpoint", str(tmp_path / "none.pth"), str(folder)]) == 2


@pytest.mark.parametrize(
    ("device", "asked", "allowed"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_tf32_is_for_gpus_that_are_asked_to_use_it(folder, tmp_path, monkeypatch, device, asked, allowed):
    said, categories = [], Categories((1,), ("thing",))
    found = SimpleNamespace(precision=SimpleNamespace(device=device), categories=categories)
    monkeypatch.setattr(tools.predict, "Predictor", lambda *args, **kwargs: found)
    monkeypatch.setattr(tools.predict, "allow_tf32", said.append)
    arguments = ["--checkpoint", "any.pth", "--output_dir", str(tmp_path), str(folder / "broken.jpg")]
    main([*arguments, *["--tf32"] * asked])
    assert said == [allowed]


def test_images_of_one_name_are_drawn_side_by_side(checkpoint, folder, tmp_path):
    source = sorted(folder.glob("0*.jpg"))[0]
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "same.jpg").write_bytes(source.read_bytes())
    pattern = [str(tmp_path / "**" / "*.jpg"), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["--checkpoint", str(checkpoint), *pattern]) == 0
    assert sorted(path.name for path in (tmp_path / "out/drawn").iterdir()) == ["same-2.jpg", "same.jpg"]


def test_equal_names_in_sub_folders_are_told_apart(checkpoint, folder, tmp_path):
    source, root = sorted(folder.glob("0*.jpg"))[0], tmp_path / "in"
    names = ["._same.jpg", "a/SAME.JPG", "a/same.jpg", "b/same.jpg", "b/same.png", "same.jpg"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(source.read_bytes())
    arguments = ["--checkpoint", str(checkpoint), "--device", "cpu", "--output_dir", str(root / "out"), str(root)]
    for _ in range(2):  # what was written is not read the second time
        assert main(arguments) == 0
        assert [image["file_name"] for image in predicted(root / "out")["images"]] == names[1:]
    drawn = sorted(str(path.relative_to(root / "out/drawn")) for path in (root / "out/drawn").rglob("*.jpg"))
    assert drawn == ["a/SAME.jpg", "a/same.jpg", "b/same-2.jpg", "b/same.jpg", "same.jpg"]


def test_a_folder_without_images_and_images_that_are_too_large(checkpoint, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*arguments, str(tmp_path / "empty"), str(folder / "narrow.png"), "--max_pixels", "3999"]) == 1
    said = capsys.readouterr().out
    assert f"skipped {tmp_path}/empty: a folder without images" in said
    assert "narrow.png: cannot be read: 4000 x 1 are 4000 pixels, and more than 3999 are refused" in said
    assert main([*arguments, str(folder / "narrow.png"), "--max_pixels", "4000"]) == 0


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    """An image that lies on its side, as phones store them; and how it is meant."""
    pixels = np.asarray(draw_image(np.random.default_rng(3))[0])
    path = tmp_path_factory.mktemp("phone") / "phone.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(path, exif=exif)
    return path, pixels


def test_an_image_is_the_same_in_all_ways_to_give_it(checkpoint, phone):
    path, pixels = phone
    predictor = Predictor(checkpoint, score=0.0, device="cpu")
    (expected,) = predictor([Image.fromarray(pixels)])
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with Image.open(path) as opened:
        ways = [str(path), path, opened, Image.fromarray(pixels).convert("RGBA"), pixels, tensor]
        ways += [tensor / 255, (tensor / 255).double(), pixels[:, ::-1][:, ::-1]]
        many = [predictor(ways[:4]), predictor(tuple(ways[:4])), predictor(way for way in ways[:4])]
        for way in ways:
            (found,) = predictor(way)
            assert np.array_equal(found.boxes, expected.boxes)
            assert np.array_equal(found.scores, expected.scores)
            assert np.array_equal(
                np.asarray(predictor.draw(way, expected)), np.asarray(predictor.draw(pixels, expected))
            )
    for batch in many:
        assert len(batch) == 4
        np.testing.assert_allclose([found.scores for found in batch], [expected.scores] * 4, rtol=0, atol=1e-4)
    assert predictor([]) == []


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        (None, TypeError, "NoneType None is no image; taken are paths, PIL images, numpy arrays (H, W, 3) of uint8"),
        (b"bytes", TypeError, "bytes b'bytes' is no image"),
        ({"a.jpg": 1}, TypeError, "dict {'a.jpg': 1} is no image"),
        (np.zeros((4, 4, 3)), TypeError, "a numpy array (4, 4, 3) of float64 is no image"),
        (np.zeros((4, 4), np.uint8), ValueError, "a numpy array (4, 4) of uint8 is no image"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, "a numpy array (2, 4, 4, 3) of uint8 is no image"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "a numpy array (0, 4, 3) of uint8 is no image"),
        (torch.zeros(4, 4, 3), ValueError, "a tensor (4, 4, 3) of torch.float32 is no image"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError, "a tensor (3, 4, 4) of torch.int64 is no image"),
        (torch.full((3, 4, 4), 255.0), ValueError, "of torch.float32 from 255 to 255 is no image"),
        (torch.full((3, 4, 4), torch.nan), ValueError, "of torch.float32 from nan to nan is no image"),
        (Image.new("F", (4, 3)), ValueError, "a PIL image of mode F, (4, 3), is no image: its pixels are fractions"),
        ("absent.jpg", CorruptImageError, "absent.jpg: cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_image_is_told_what_is(checkpoint, given, kind, said):
    predictor = Predictor(checkpoint, device="cpu")
    for images in (given, [given]):
        with pytest.raises(kind, match=re.escape(said)):
            predictor(images)


def test_files_are_taken_once_and_names_with_brackets_are_no_patterns(tmp_path):
    for name in ("a[1].jpg", "a1.jpg", "b.PNG", "c.txt"):
        (tmp_path / name).touch()
    given = [str(tmp_path / "a[1].jpg"), str(tmp_path), str(tmp_path / "a?.jpg"), str(tmp_path / "c.txt")]
    assert [path.name for path in find_image_files(given)] == ["a[1].jpg", "a1.jpg", "b.PNG", "c.txt"]


def test_modes_and_turned_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.full((20, 40), 257 * 200, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (40, 20), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    (turned,), (deep,), (clear,) = (read_images(tmp_path / f) for f in ("turned.jpg", "deep.png", "clear.png"))
    assert turned.image.size == (20, 40)
    assert set(np.unique(np.asarray(deep.image))) == {200}
    assert clear.image.mode == "RGB"


def test_a_checkpoint_without_config_needs_one(tmp_path):
    cfg = shrunk(ROOT / "config/conditional_detr/conditional_detr_r50.py", **SMALL, **{"model.backbone.depth": 18})
    (tmp_path / "config.py").write_text("\n".join(f"{key} = {value!r}" for key, value in cfg.to_dict().items()))
    torch.save({"model": build_detector(cfg).state_dict()}, tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match="holds no config.*-c config/"):
        Predictor(tmp_path / "official.pth", device="cpu")
    more = {"options": {"postprocess.num_select": 1092}, "score": 0.0, "classes": ["cat"], "device": "cpu"}
    predictor = Predictor(tmp_path / "official.pth", tmp_path / "config.py", **more)
    (found,) = predictor([Image.new("RGB", (80, 60))])
    assert len(found.slots) == 12  # every query's
    assert {predictor.categories.names[slot] for slot in found.slots} == {"cat"}
    assert dict(predictor.categories.used) == COCO


def test_a_config_in_a_checkpoint_is_not_executed(tmp_path):
    text = f"model = {{}}\nhere = open({str(tmp_path / 'escaped')!r}, 'w')"
    save_checkpoint({"model": {}, "config": text}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=r"evil\.pth: its config is not what dump_config writes"):
        restore_detector(tmp_path / "evil.pth")
    save_checkpoint({"model": {}, "categories": {"ids": [1], "names": "a"}}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="'categories' are not lists"):
        restore_detector(tmp_path / "odd.pth")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("mode", ["compiled", "graphed"])
def test_modes_detect_the_same(checkpoint, folder, monkeypatch, mode):
    images = [Image.open(path) for path in sorted(folder.glob("0*.jpg"))]
    batches = images[:1], images[1:], images[:1]
    eager = Predictor(checkpoint, score=0.0, device="cpu")
    expected = [found for batch in batches for found in eager(batch)]
    # Half a minute less than PyTorch's own backend takes, and a compiled program all the same.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager", fullgraph=True))
    if mode == "graphed":
        fake_graphs.install(monkeypatch)
    predictor = Predictor(checkpoint, score=0.0, device="cpu", mode=mode)
    found = [found for batch in batches for found in predictor(batch)]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=1e-4)
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-4, atol=1e-2)
        assert np.array_equal(a.slots, b.slots)


def test_modes_that_there_are_not(checkpoint, folder, capsys):
    with pytest.raises(ValueError, match="mode='fast' is none of eager, compiled, graphed"):
        Predictor(checkpoint, mode="fast")
    with pytest.raises(ValueError, match="CUDA graphs need a GPU, the detector is on cpu"):
        Predictor(checkpoint, device="cpu", mode="graphed")
    with pytest.raises(SystemExit):
        main(["--checkpoint", str(checkpoint), "--device", "cpu", "--mode", "graphed", str(folder)])
    assert "--mode graphed needs a GPU; on a CPU: --mode compiled, or eager" in capsys.readouterr().err


def test_a_model_that_no_graph_holds_ends_the_run(checkpoint, folder, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise CaptureError("a CUDA graph cannot hold this Detector")

    monkeypatch.setattr(Predictor, "__call__", refuse)
    arguments = ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, str(folder)]) == 2
    assert "--mode graphed: a CUDA graph cannot hold this Detector" in capsys.readouterr().out


def test_drawings_are_copies(checkpoint):
    image = Image.new("RGB", (50, 40), "white")
    predictor = Predictor(checkpoint, device="cpu")
    drawn = predictor.draw(image, Found(np.array([[5.0, 5, 30, 30]]), np.array([0.9]), np.array([1])))
    assert np.asarray(image).min() == 255
    assert np.asarray(drawn).min() < 255


def test_a_video_without_opencv_says_what_is_missing(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "clip.mp4").touch()
    arguments = ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, str(tmp_path / "clip.mp4")]) == 1
    assert "pip install opencv-python-headless" in capsys.readouterr().out


def test_a_video_is_detected_frame_by_frame(checkpoint, tmp_path):
    cv2 = pytest.importorskip("cv2")
    clip = str(tmp_path / "clip.mp4")
    writer = cv2.VideoWriter(clip, cv2.VideoWriter_fourcc(*"mp4v"), 5.0, (96, 64))
    for shade in (0, 100, 200):
        writer.write(np.full((64, 96, 3), shade, np.uint8))
    writer.release()
    assert main(["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path), "--device", "cpu", clip]) == 0
    assert [image["file_name"] for image in predicted(tmp_path)["images"]] == [f"{clip}#{n}" for n in range(3)]
    assert cv2.VideoCapture(str(tmp_path / "drawn/clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
