"""Names of any characters on a console of any encoding."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from util.files.console import _tell_of_file_names, show_any_character
from util.reporting.logger import setup_logging

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "gr\\xf6\\xdfe \\u732b"), ("cp1252", "größe \\u732b")])
def test_what_cannot_be_shown_is_escaped(encoding, shown, monkeypatch, tmp_path, capsys):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    setup_logging(tmp_path)
    logging.getLogger("x").info("größe 猫")
    setup_logging(None)
    assert console.buffer.getvalue().decode(encoding).strip().endswith(shown)
    assert (tmp_path / "info.txt").read_text(encoding="utf-8").strip().endswith("größe 猫")
    assert "Logging error" not in capsys.readouterr().err


def test_a_stream_that_is_none_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    show_any_character()


def test_file_names_that_cannot_be_found_are_told_once(capsys):
    _tell_of_file_names.cache_clear()
    for _ in range(2):
        _tell_of_file_names("ascii")
        _tell_of_file_names("utf-8")
    assert capsys.readouterr().err.count("set PYTHONUTF8=1") == 1


VALIDATE = [sys.executable, "-m", "datasets.validate", "--no_decode"]


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_whole_command(environment, tmp_path):
    file = tmp_path / "labels.json"
    image = {"id": 1, "file_name": "größe.jpg", "width": 8, "height": 8}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "猫"}]}
    file.write_text(json.dumps(content), encoding="utf-8")
    environment = {**os.environ, "PYTHONCOERCECLOCALE": "0", **environment}
    done = subprocess.run([*VALIDATE, file], cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr  # there are no images
    assert b"  gr\\" in done.stdout
    assert b"Error" not in done.stderr
    assert b"Traceback" not in done.stderr
