"""Who gives an option of the papers' code is told how it is said here, and what is said holds."""

import re
import shlex
from pathlib import Path

import pytest

from models import build_criterion, build_detector
from tests.tiny import FAMILIES, shrunk
from util.cli.arguments import _parser, parse_arguments
from util.config import ConfigError, load_config, parse_options
from util.config.papers_names import AS_OPTIONS, IN_WORDS, here_it_is

ROOT = Path(__file__).parents[3]
CONFIGS = [f"config/{name}.py" for name in (*FAMILIES, "small/lite_dino_r18_shapes", "DINO/dino_4scale_swint")]
LOADED = {path: load_config(ROOT / path) for path in CONFIGS}


def options_of(answer):
    """The option that an answer names, as a shell would hand it over."""
    return parse_options(shlex.split(answer.split("--options ")[1]))


def help_text():
    """What main.py --help says."""
    return _parser().format_help()


def has(cfg, place, value):
    """Whether a config has a value at a place, and beside the keys of a dict perhaps others."""
    found = value_at(cfg, place)
    return value.items() <= found.items() if isinstance(value, dict) else found == value


def value_at(cfg, path):
    for key in path.split("."):
        cfg = cfg[key]
    return cfg


@pytest.mark.parametrize("path", CONFIGS)
def test_every_answer_is_an_option_of_the_config(path):
    """With the value that the config has there anyway, so that it builds."""
    chosen = {}
    for name, places in AS_OPTIONS.items():
        answer = here_it_is(name, "7", LOADED[path])
        if "--options" not in answer:
            assert "does not have" in answer
            continue
        options = options_of(answer)
        assert len(options) == len(places)
        cfg = load_config(ROOT / path, options)
        assert all(has(cfg, place, value) for place, value in options.items())
        chosen |= {place: value_at(LOADED[path], place) for place in options if place != "training.ema.decay"}
    small = shrunk(ROOT / path).to_dict()
    model = {place: value_at(small, place) for place in chosen if place.startswith("model.")}
    cfg = shrunk(ROOT / path, **chosen | model)
    build_detector(cfg)
    build_criterion(cfg)


@pytest.mark.parametrize("name", AS_OPTIONS)
def test_some_config_has_it(name):
    assert any("--options" in here_it_is(name, "7", cfg) for cfg in LOADED.values())


@pytest.mark.parametrize("name", IN_WORDS)
def test_what_is_said_in_words_is_there(name):
    for path in re.findall(r"config/[\w./]*\w", IN_WORDS[name]):
        assert (ROOT / path).exists(), path
    assert name not in AS_OPTIONS
    for flag in re.findall(r"(?<!-)--(?!options|nproc)\w+", IN_WORDS[name]):
        assert flag in help_text()
    if "--options " in IN_WORDS[name]:
        text = IN_WORDS[name].replace("LOWER", "0.3").replace("HIGHER", "0.8")
        assert any(load_config(path, options_of(text)) for path in ("config/pnp_detr/pnp_detr_r50_ratio033.py",))


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        (
            "sparse_detr/sparse_detr_r50_rho_0.1",
            "--rho 0.3",
            "here it is --options model.encoder.keep_ratio=0.3",
        ),
        ("detr/detr_r50", "--num_queries 300", "--options model.queries.num_queries=300"),
        ("DINO/dino_4scale_r50", "--num_queries=300", "--options model.queries.base.num_queries=300"),
        ("detr/detr_r50", "--lr 1e-4", "--options optimizer.lr=1e-4"),
        ("detr/detr_r50", "--lr_drop_epochs 30 40", '--options "schedule.drop=(30, 40)"'),
        ("pnp_detr/pnp_detr_r50_ratio033", "--enc-layers 3", "--options model.encoder.base.num_layers=3"),
        ("detr/detr_r50", "--rho 0.1", "which this config does not have"),
        ("detr/detr_r50", "--two_stage --masks", "--masks: here there is nothing to say"),
        ("no/such", "--num_feature_levels 4", "--options model.num_levels=4"),
        ("rt_detr/rtdetr_r18vd", "-t weights.pth", "-t weights.pth: here it is --pretrain_model_path"),
        ("rt_detr/rtdetr_r18vd", "--test-only --use-amp", "--test-only: here it is --eval"),
        (
            "d_fine/dfine_hgnetv2_s",
            "--reg_scale 8",
            "--options model.decoder.scale=8 criterion.losses.fgl.scale=8",
        ),
    ],
)
def test_on_the_command_line(config, words, said, capsys):
    with pytest.raises(SystemExit) as left:
        parse_arguments(["-c", f"config/{config}.py", *words.split()])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_a_command_of_the_papers_without_a_config(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--with_box_refine", "--two_stage", "--coco_path", "data"])
    said = capsys.readouterr().err
    assert "deformable_detr_r50_box_refine.py" in said
    assert "deformable_detr_r50_two_stage.py" in said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            {"num_queries": 300},
            "'num_queries' of the papers' code: here it is --options model.queries.num_queries=300",
        ),
        ({"masks": True}, "detectors here find boxes"),
        ({"epoches": 36}, "--options schedule.epochs=36"),
        ({"shedule": 300}, "did you mean 'schedule'"),
    ],
)
def test_among_options(option, said):
    with pytest.raises(ConfigError, match=said):
        load_config(ROOT / "config/detr/detr_r50.py", option)


def test_none_of_them_is_an_option_here():
    """Else it would be refused although it is known."""
    known = {word.lstrip("-") for word in re.findall(r"--\w+", help_text())}
    assert not known & (AS_OPTIONS.keys() | IN_WORDS.keys()) - {"batch_size"}
