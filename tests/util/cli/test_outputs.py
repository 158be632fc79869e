"""Places for results are tried before the work begins, and hold what is done when the work breaks off."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from util.cli.outputs import UnwritableError, growing_file, writable_file, writable_folder

ROOT = Path(__file__).parents[3]
COMMANDS = {
    "tools.dev.zoo": ["--latency", "--out", "PLACE"],
    "tools.dev.benchmark_ops": ["--out", "PLACE/table.md"],
    "tools.dev.benchmark_peers": ["--out", "PLACE/peers.csv"],
    "tools.dev.benchmark_linear": ["--out", "PLACE/linear.md"],
    "tools.dev.gpu.__main__": ["--device", "cpu", "--out", "PLACE"],
    "tools.report": ["output", "--out", "PLACE/report.html"],
    "tools.export": ["--checkpoint", "missing.pth", "--output", "PLACE/model.onnx"],
    "tools.predict": ["image.jpg", "--checkpoint", "missing.pth", "--output_dir", "PLACE"],
    "tools.visualize": ["look", "image.jpg", "--checkpoint", "missing.pth", "--output_dir", "PLACE"],
    "tools.convert_checkpoint": ["missing.pth", "PLACE/model.safetensors"],
}


def test_folders_are_made(tmp_path):
    assert writable_folder(str(tmp_path / "a/b")) == tmp_path / "a/b"
    assert writable_file(str(tmp_path / "c/d.csv")) == tmp_path / "c/d.csv"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["a", "a/b", "c"]


def test_what_is_there_stays(tmp_path):
    (tmp_path / "d.csv").write_text("of an earlier run")
    assert writable_file(tmp_path / "d.csv").read_text() == "of an earlier run"


def test_places_that_cannot_be_written_to_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UnwritableError, match=f"{place}: no folder to write to"):
            writable_folder(place)
    with pytest.raises(UnwritableError, match="is a folder, not a file"):
        writable_file(tmp_path)


def test_a_growing_file_holds_every_line_at_once(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("of an earlier run")
    with growing_file(path) as file:
        file.write("first\n")
        assert (tmp_path / "rows.csv.part").read_text() == "first\n"
        assert path.read_text() == "of an earlier run"
    assert path.read_text() == "first\n"
    assert [path] == list(tmp_path.iterdir())


def test_what_was_measured_outlives_a_failure(tmp_path):
    def measure():
        with growing_file(tmp_path / "rows.csv") as file:
            file.write("first\n")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        measure()
    assert (tmp_path / "rows.csv.part").read_text() == "first\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_tool_refuses_before_it_works(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    words = [word.replace("PLACE", str(tmp_path / "file")) for word in COMMANDS[name]]
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as left:
        module.parse_arguments() if hasattr(module, "parse_arguments") else module.main()
    assert left.value.code == 2
    assert f"{tmp_path / 'file'}: no folder to write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "products", "said"),
    [("file", "pytorch", "no folder to write to"), ("new", "mlk", "LEANDETR_LINEAR='mlk': here are ")],
)
def test_main_refuses_in_a_line(place, products, said, tmp_path):
    (tmp_path / "file").touch()
    words = ["-c", "config/small/lite_dino_r18_shapes.py", "--output_dir", str(tmp_path / place), "--benchmark_only"]
    done = subprocess.run(
        [sys.executable, "main.py", *words],
        env={**os.environ, "LEANDETR_LINEAR": products},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
