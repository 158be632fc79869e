"""Configs: inheritance, overrides, messages, and the way back to a file."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import build_criterion, build_detector
from models.encoders.interleaved import InterleavedEncoder
from util.config import (
    ConfigError,
    dump_config,
    find_value,
    load_config,
    merge_configs,
    parse_config,
    parse_options,
    parse_value,
)

ROOT = Path(__file__).parents[3]
CONFIGS = sorted(path for path in (ROOT / "config").rglob("*.py") if path.parent.name != "_base_")
DEFORMABLE = ROOT / "config/deformable_detr/deformable_detr_r50.py"
LITE = ROOT / "config/DINO/DINO_4scale.py"


@pytest.fixture
def write(tmp_path):
    """Writes a config file and returns its path."""

    def write_file(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_file


def test_bases_merge_in_order_and_types_replace(write):
    write("a.py", "x = dict(type='A', a=1, deep=dict(k=1, l=2))\ny = [1, 2]\n")
    write("b.py", "y = [3]\nz = 1\n")
    cfg = load_config(
        write("c.py", "_base_ = ['a.py', 'b.py']\n_n = 7\nx = dict(deep=dict(k=_n))\nw = dict(type='C')\n")
    )
    assert cfg.to_dict() == {"x": {"type": "A", "a": 1, "deep": {"k": 7, "l": 2}}, "y": [3], "z": 1, "w": {"type": "C"}}
    replaced = load_config(write("d.py", "_base_ = 'a.py'\nx = dict(type='B', b=2)\n"))
    assert replaced.x.to_dict() == {"type": "B", "b": 2}


nodes = st.recursive(
    st.integers(0, 9), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=6
).filter(lambda node: isinstance(node, dict))


def leaves(node, path=()):
    """(path, value) of everything in a nested dict that is no filled dict."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


@given(nodes, nodes)
def test_merging(base, child):
    before = repr((base, child))
    merged = merge_configs(base, child)
    assert repr((base, child)) == before
    assert merge_configs(base, {}) == base
    assert merge_configs({}, child) == child
    assert merge_configs(merged, child) == merged
    known = dict(leaves(merged))
    for path, value in leaves(child):
        assert known.get(path) == value or value == {}
    for path in known:
        assert path in dict(leaves(child)) or known[path] == dict(leaves(base))[path]


def test_a_missing_key_names_file_path_and_nearest():
    cfg = load_config(DEFORMABLE)
    with pytest.raises(
        ConfigError, match=r"deformable_detr_r50.py: model.encoder: there is no key 'num_layer'.*'num_layers'"
    ):
        _ = cfg.model.encoder.num_layer
    assert getattr(cfg, "nothing", 3) == 3
    assert "nothing" not in cfg


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("model.encoder.num_layer", "num_layers"),
        ("model.encodr.num_layers", "encoder"),
        ("modl.encoder", "model"),
        ("optimizer.lr.x", "holds no 'x'"),
    ],
)
def test_an_option_must_exist(path, hint):
    with pytest.raises(ConfigError, match=hint):
        load_config(DEFORMABLE, {path: 1})


def test_options_override_by_path():
    cfg = load_config(DEFORMABLE, {"model.encoder.num_layers": 2, "optimizer.scale": {"backbone": 0.5}})
    assert cfg.model.encoder.num_layers == 2
    assert cfg.optimizer.scale.backbone == 0.5
    assert load_config(DEFORMABLE).model.encoder.num_layers == 6


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("True", True),
        ("false", False),
        ("None", None),
        ("(1, 2)", (1, 2)),
        ("{'a': 1}", {"a": 1}),
        ("frozen", "frozen"),
        ("data/coco-2017", "data/coco-2017"),
        ("'a b'", "a b"),
    ],
)
def test_option_values_are_literals(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["__import__('os').system('x')", "open('x')", "[1, os]", "1 + x", "(lambda: 1)()"])
def test_option_values_never_run(text):
    with pytest.raises(ConfigError, match="not a literal"):
        parse_value(text)


def test_an_option_needs_a_value():
    assert parse_options(["a.b=3", "c=x"]) == {"a.b": 3, "c": "x"}
    with pytest.raises(ConfigError, match="expected name=value"):
        parse_options(["a.b"])


def test_broken_files_are_named(write):
    with pytest.raises(ConfigError, match="no such config file"):
        load_config("config/no_such.py")
    with pytest.raises(ConfigError, match=r"bad.py: cannot be run as a config: NameError"):
        load_config(write("bad.py", "x = y\n"))
    with pytest.raises(ConfigError, match=r"f.py: x.y is a function"):
        load_config(write("f.py", "x = dict(y=lambda: 1)\n"))
    write("one.py", "_base_ = 'two.py'\n")
    with pytest.raises(ConfigError, match="leads back"):
        load_config(write("two.py", "_base_ = 'one.py'\n"))
    with pytest.raises(ConfigError, match="_base_ of"):
        load_config(write("three.py", "_base_ = 'absent.py'\n"))


def test_a_value_is_found_wherever_it_stands_the_outermost_first():
    node = {"a": {"x": None, "n": 2}, "n": 1, "b": {"c": {"n": 3, "m": 0}}}
    assert [find_value(node, name) for name in ("n", "m", "x", "y")] == [1, 0, None, None]
    assert find_value(3, "n") is None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_written_and_read_back(path, tmp_path):
    cfg = load_config(path)
    text = dump_config(cfg)
    (tmp_path / "config.py").write_text(text)
    assert load_config(tmp_path / "config.py").to_dict() == cfg.to_dict()
    assert parse_config(text, "a checkpoint").to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "x = __import__('os').getcwd()",
        "x = [open('f', 'w') for _ in (1,)]",
        "x.y = 1",
        "x = y = 1",
        "x += 1",
        "print(1)",
        "x = {1: b'bytes'}",
        "x = {[]: 1}",
        "x = (",
        "x = '\x00",
        "x = " + "[" * 400 + "]" * 400,
    ],
)
def test_a_parsed_config_holds_literals_only(text):
    with pytest.raises(ConfigError, match=r"evil\.pth: (its config is not what|x.1 is a bytes)"):
        parse_config(text, "evil.pth")


def test_a_parsed_config_names_its_place():
    cfg = parse_config("x = {'y': (1, None)}", "best.pth")
    assert cfg.x.y == (1, None)
    with pytest.raises(ConfigError, match=r"best\.pth: x: there is no key 'z'"):
        _ = cfg.x.z


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model.encoder.layer": {"type": "DeformableEncoderLayer", "ffn_dims": 3}},
            r"encoder.layer.*no option 'ffn_dims'.*'ffn_dim'",
        ),
        ({"model.encoder.type": "DeformableEncodr"}, r"model.encoder: no part is called.*'DeformableEncoder'"),
        ({"model.queries": {"type": "TopKProposals"}}, r"model.queries: TopKProposals needs 'num_queries'"),
        ({"model.backbone.depth": 51}, r"model.backbone: ResNet: depth=51 is none of"),
        ({"model.num_levels": 2}, r"model.neck: PyramidNeck: num_levels=2 is less than"),
        ({"model.decoder.refine": "twice"}, r"refine='twice' is none of none, iterative"),
        ({"model.neck": None}, r"expected a dict with a 'type', found None"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(options, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(load_config(DEFORMABLE, options))


def test_a_misspelt_shared_value_is_found(write):
    path = write("x.py", f"_base_ = '{DEFORMABLE}'\nmodel = dict(d_modl=128)\n")
    with pytest.raises(ConfigError, match=r"no part has an option 'd_modl'; did you mean 'd_model'"):
        build_detector(load_config(path))


def test_a_misspelt_criterion_is_found(write):
    path = write("x.py", f"_base_ = '{DEFORMABLE}'\ncriterion = dict(losses=dict(ce=dict(alfa=1)))\n")
    with pytest.raises(ConfigError, match=r"criterion.losses.ce: FocalLoss has no option 'alfa'"):
        build_criterion(load_config(path))


class TestLiteDETRsOwnCommands:
    """config/DINO/DINO_4scale.py takes the options that Lite-DETR's README prints."""

    @pytest.mark.parametrize(("expansion", "scale"), [(3, 2), (1, 3), (3, 3)])
    def test_short_names(self, expansion, scale):
        cfg = load_config(LITE, parse_options([f"num_expansion={expansion}", f"enc_scale={scale}"]))
        assert (cfg.model.encoder.num_blocks, cfg.model.encoder.high_levels) == (expansion, scale)
        assert cfg.model.attention.type == "KeyAwareDeformAttn"

    def test_plain_attention(self):
        cfg = load_config(LITE, parse_options(["key_aware=False"]))
        assert cfg.model.attention.type == "MSDeformAttnWithQueryProj"
        with pytest.raises(ConfigError, match="none of"):
            load_config(LITE, {"key_aware": 3})

    def test_blocks_must_divide_layers(self):
        with pytest.raises(ConfigError, match="num_blocks=4 must divide num_layers=6"):
            build_detector(load_config(LITE, {"num_expansion": 4}))

    @pytest.mark.parametrize(("high_levels", "fits"), [(0, False), (1, True), (4, True), (5, False)])
    def test_high_levels_are_some_or_all(self, high_levels, fits):
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="between 1 and num_levels=4"):
            InterleavedEncoder(nn.Identity, lambda high_levels: nn.Identity(), num_levels=4, high_levels=high_levels)

    def test_an_unknown_short_name_is_an_error(self):
        with pytest.raises(ConfigError, match="did you mean 'num_expansion'"):
            load_config(LITE, {"num_expansions": 3})
