"""tools/run_onnx.py: works alone, and reads what the project reads."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.images import read_image

ROOT = Path(__file__).parents[2]


def test_it_reads_images_word_for_word_as_the_project_does():
    text = (ROOT / "datasets/images.py").read_text()
    assert text[text.index("MAX_PIXELS =") :] in (ROOT / "tools/run_onnx.py").read_text()


@pytest.fixture
def run(tmp_path):
    """Runs a copy of the program in a folder of its own, on a model that finds the mean of every channel as a box."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    shutil.copy(ROOT / "tools/run_onnx.py", tmp_path)
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    numbers = {"one": [1.0], "zero": [0.0]}
    graph = onnx.helper.make_graph(
        [
            node("Cast", ["image"], ["pixels"], to=1),
            node("ReduceMean", ["pixels"], ["colour"], axes=[0, 1], keepdims=0),
            node("Concat", ["colour", "zero"], ["row"], axis=0),
            node("Unsqueeze", ["row", "first"], ["boxes"]),
            node("Identity", ["one"], ["scores"]),
            node("Cast", ["zero"], ["labels"], to=7),
        ],
        "means",
        [info("image", 2, ["h", "w", 3])],
        [info("scores", 1, [1]), info("labels", 7, [1]), info("boxes", 1, [1, 4])],
        [
            *(onnx.helper.make_tensor(name, 1, [1], value) for name, value in numbers.items()),
            onnx.helper.make_tensor("first", 7, [1], [0]),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {"names": json.dumps(["thing"])})
    onnx.save(model, tmp_path / "means.onnx")

    def start(*words):
        command = [sys.executable, "run_onnx.py", "means.onnx", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return start


def test_folders_phones_and_what_is_corrupt(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("in/a/same.png", "in/b/SAME.PNG", "in/b/same.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6), 257 * 200, np.uint16)).save(tmp_path / name, exif=exif)
    (tmp_path / "in/zero.jpg").touch()
    (tmp_path / "in/._x.jpg").touch()
    for _ in range(2):
        done = run("in", "none", "--output_dir", "in/out")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"in/{name}: thing 1.00 at [200, 200, 200, 0]" for name in ("a/same.png", "b/SAME.PNG", "b/same.png")
        ]
        assert done.stderr.splitlines() == [
            "skipped in/zero.jpg: cannot be read: the file is empty",
            "skipped none: cannot be read: No such file or directory",
        ]
    drawn = sorted(str(path.relative_to(tmp_path / "in/out")) for path in (tmp_path / "in/out").rglob("*.png"))
    assert drawn == ["a/same.png", "b/SAME.png", "b/same.png"]
    assert read_image(tmp_path / "in/out/a/same.png").size == (4, 6)


def test_patterns_limits_and_nothing_to_detect_on(run, tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "x.png")
    assert run("*.png", "--max_pixels", "24").returncode == 0
    refused = run("*.png", "--max_pixels", "23")
    assert refused.returncode == 1
    assert "skipped x.png: cannot be read: 6 x 4 are 24 pixels, and more than 23 are refused" in refused.stderr
