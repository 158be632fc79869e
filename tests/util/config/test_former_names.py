"""Files and commands that say what options were once called: they mean the same, and are told the new name."""

import pytest

from tests.tiny import shrunk
from tools import report, visualize
from util.config import load_config, parse_config
from util.config.former_names import FORMER_OPTIONS, _tell, with_current_names

CORRUPT = {"in_a_row": 3, "files": 4}


@pytest.fixture(autouse=True)
def nobody_was_told():
    _tell.cache_clear()


def test_a_config_of_an_older_run(tmp_path, caplog):
    path = tmp_path / "config.py"
    path.write_text(f"data = dict(broken={CORRUPT!r}, root='x')\ntraining = dict(pictures=5)\n")
    stored = f"data = {{'broken': {CORRUPT!r}}}\ntraining = {{'pictures': 5}}"
    for cfg in (load_config(path), parse_config(stored, "a.pth")):
        assert cfg.data.corrupt.to_dict() == CORRUPT
        assert cfg.training.drawn_images == 5
        assert "broken" not in cfg.data
    assert f"{path}: data.broken is called data.corrupt now" in caplog.text
    assert "a.pth: training.pictures is called training.drawn_images now" in caplog.text


def test_a_former_name_overrides_what_a_base_says_under_the_new_one(tmp_path):
    (tmp_path / "base.py").write_text("data = dict(corrupt=dict(in_a_row=10, files=100))\n")
    (tmp_path / "mine.py").write_text("_base_ = 'base.py'\ndata = dict(broken=dict(files=4))\n")
    assert load_config(tmp_path / "mine.py").data.corrupt.to_dict() == {"in_a_row": 10, "files": 4}


def test_options_by_their_former_names(caplog):
    cfg = shrunk("config/small/lite_dino_r18_shapes.py", **{"data.broken.files": 7, "data.broken.in_a_row": 2})
    assert cfg.data.corrupt.to_dict() == {"in_a_row": 2, "files": 7}
    assert caplog.text.count("data.broken is called data.corrupt now") == 1


def test_every_former_name_leads_to_an_option_that_is_there():
    cfg = load_config("config/small/lite_dino_r18_shapes.py")
    for former, name in FORMER_OPTIONS.items():
        section, option = name.split(".")
        assert with_current_names({section: {former.split(".")[1]: 1}}, "x") == {section: {option: 1}}
        assert former.split(".")[1] not in cfg[section]


def test_flags_of_tools_by_their_former_names():
    assert report.parse_arguments(["out", "--pictures", "3"]).num_images == 3
    words = ["browse", "-c", "x.py", "--coco_path", "y", "--pictures", "4"]
    assert visualize.parse_arguments(words).num_images == 4
