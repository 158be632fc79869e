"""Whatever programs have wrapped weights in is found, said and loaded; between two candidates nothing is guessed."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

import hubconf
import main as program
from models import build_detector
from models.restore import restore_detector
from models.weights import load_checkpoint, load_for_finetuning, load_trained_weights
from tests.golden import make_image
from tests.harness.forked import prepare
from tests.harness.wrapped import noisy, official, prefixed, variants
from tests.tiny import shrunk
from tools.convert_checkpoint import convert
from util.checkpoints.files import (
    CheckpointError,
    ema_weights,
    model_weights,
    read_checkpoint,
    save_checkpoint,
    with_key,
)
from util.checkpoints.wrappers import find_weights
from util.cli.arguments import parse_arguments
from util.config import dump_config, load_config
from util.training.optimizer import build_schedule
from util.training.state import TrainingState

ROOT = Path(__file__).parents[3]
NAME, FAMILY = "deformable_detr_r50_single_scale", "deformable_detr"
W = {"backbone.n": torch.tensor(1), **{f"encoder.{i}.w": torch.full((2,), i / 2) for i in range(9)}}
SMALLER = {"model.encoder.num_layers": 1, "model.backbone.depth": 18}
KINDS = sorted(variants(W))


@cache
def config():
    return shrunk(f"config/{FAMILY}/{NAME}.py", **SMALLER)


@cache
def own_weights():
    torch.manual_seed(0)
    return build_detector(config()).state_dict()


@cache
def detector():
    return build_detector(config())


@cache
def weights_of(names):
    """The same weights under our names or under the paper's."""
    if names == "ours":
        return own_weights()
    detector().load_state_dict(own_weights())
    return official(detector(), f"{FAMILY}/{NAME}", FAMILY)


def spoil(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)


def assert_loaded(model):
    wrong = [k for k, v in model.state_dict().items() if not torch.equal(v, own_weights()[k]) and "tracked" not in k]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("names", ["ours", "theirs"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_wrapping_is_taken_off(kind, names, tmp_path):
    torch.save(variants(weights_of(names))[kind], tmp_path / "x.pth")
    spoil(detector())
    passes = load_trained_weights(detector(), read_checkpoint(tmp_path / "x.pth"), FAMILY, "x.pth")
    assert next(passes) == "regular"
    assert_loaded(detector())
    # An average that has the form of ours and these names is one, whoever made it; no other is.
    assert list(passes) == []
    spoil(detector())
    load_for_finetuning(detector(), str(tmp_path / "x.pth"), FAMILY, [])
    assert_loaded(detector())


@pytest.mark.parametrize("names", ["ours", "theirs"])
@pytest.mark.parametrize("kind", ["module_twice", "lightning_with_an_average", "rtdetr", "rtdetr_released", "bare"])
def test_tools_and_hub_take_them_too(kind, names, tmp_path):
    """The model's own file holds its config; a foreign one is given it."""
    file, tool = tmp_path / "x.pth", tmp_path / "x.safetensors"
    torch.save(variants(weights_of(names))[kind], file)
    (tmp_path / f"{NAME}.py").write_text(dump_config(config()))
    convert(file, tool)
    for path in (file, tool):
        restored = restore_detector(path, tmp_path / f"{NAME}.py").detector
        assert_loaded(restored)
        assert_loaded(hubconf._load(tmp_path / f"{NAME}.py", path))
    images = [make_image(64, 96)]
    detector().load_state_dict(own_weights())
    with torch.inference_mode():
        wanted, found = detector().eval()(images), restored(images)
    assert torch.equal(wanted.logits, found.logits)
    assert torch.equal(wanted.boxes, found.boxes)


def test_an_average_of_our_form_is_evaluated_under_official_names_too():
    weights = weights_of("theirs")
    average = {"n_averaged": torch.tensor(3), **prefixed(noisy(weights), "module.")}
    content = {"model": prefixed(weights, "module."), "ema": average}
    passes = load_trained_weights(detector(), content, FAMILY, "x.pth")
    assert next(passes) == "regular"
    assert_loaded(detector())
    assert next(passes) == "ema"
    name = "encoder.layers.0.norm1.bias"
    assert torch.equal(detector().state_dict()[name], noisy(own_weights())[name])


@pytest.mark.parametrize(("name", "family"), [("rtdetr_r18vd", "rt_detr"), ("dfine_hgnetv2_n", "d_fine")])
def test_official_names_of_which_most_are_ours(name, family, caplog):
    """Those of these backbones."""
    caplog.set_level("INFO")
    model = build_detector(load_config(f"config/{family}/{name}.py"))
    wanted = {key: value.clone() for key, value in model.state_dict().items()}
    theirs = {key: value.clone() for key, value in official(model, f"{family}/{name}", family).items()}
    assert len(theirs.keys() & wanted.keys()) > len(theirs) / 4
    for weights, said in ((theirs, f"an official {family} checkpoint"), (wanted, "a checkpoint of this project")):
        spoil(model)
        load_checkpoint(model, {"model": weights}, family, "x.pth")
        assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items() if "tracked" not in k)
        assert said in caplog.text


SAID = {
    "bare": "x.pth: takes '.' (its top level) of 10 weights",
    "module_twice": "x.pth: takes 'model' of 10 weights, without 'module.module.' before their names",
    "compiled_in_parallel": "x.pth: takes 'model' of 10 weights, without 'module._orig_mod.' before their names",
    "lightning_net": "x.pth: takes 'state_dict' of 10 weights, without 'net._orig_mod.' before their names",
    "lightning_with_a_loss": "'state_dict.model' of 10 weights, without 'model.' before their names; left out beside "
    "them: 'criterion.empty_weight', 'map.total'",
    "lightning_with_an_average": "x.pth: takes 'state_dict.model' of 10 weights, without 'model.' before their names; "
    "leaves out 'state_dict.ema_model' of 10 weights, which --checkpoint_key state_dict.ema_model would take",
    "rtdetr": "x.pth: takes 'model' of 10 weights; leaves out 'ema.module' of 10 weights, which --checkpoint_key "
    "ema.module would take",
    "rtdetr_released": "x.pth: takes 'ema.module' of 10 weights",
    "ema_is_a_number": "x.pth: what it holds as 'ema' is not an EMA of its weights and is left out",
    "timm": "x.pth: takes 'state_dict' of 10 weights; leaves out 'state_dict_ema' of 10 weights",
    "unknown_key": "x.pth: takes 'my_detector' of 10 weights",
}


@pytest.mark.parametrize("kind", SAID)
def test_what_is_taken_is_said(kind, caplog):
    caplog.set_level("INFO")
    assert model_weights(variants(W)[kind], "x.pth") == W
    assert SAID[kind] in caplog.text


def test_nothing_is_said_of_what_is_as_always(caplog):
    caplog.set_level("INFO")
    ours = {"model": W, "ema": {"n_averaged": torch.tensor(1), **prefixed(W, "module.")}, "format": "leandetr-1"}
    for content in (ours, {"model": W, "ema": None}, variants(W)["papers"]):
        assert model_weights(content, "x.pth") == W
    assert ema_weights(ours) == W
    assert caplog.text == ""


def test_a_person_chooses_by_key():
    other = noisy(W)
    files = variants(W)
    for kind, key in (
        ("rtdetr", "ema.module"),
        ("rtdetr", "ema"),
        ("lightning_with_an_average", "state_dict.ema_model"),
        ("an_average_beside_bare_weights", "ema_model"),
        ("timm", "state_dict_ema"),
        ("dino", "ema_model"),
    ):
        chosen = with_key(files[kind], key, "x.pth")
        assert chosen.keys() == {"model"}, kind
        assert all(torch.equal(chosen["model"][name], value) for name, value in other.items()), (kind, key)
    for kind, key in (("bare", "."), ("module", "module"), ("lightning_net", "state_dict.net"), ("rtdetr", "model")):
        assert with_key(files[kind], key, "x.pth") == {"model": W}
    ours = {"model": W, "ema": prefixed(other, "module."), "config": "x = 1", "optimizer": {}, "epoch": 3}
    for key in ("ema", "ema.module"):
        chosen = with_key(ours, key, "x.pth")
        assert chosen.keys() == {"model", "config"}
        assert torch.equal(chosen["model"]["encoder.1.w"], other["encoder.1.w"])


@pytest.mark.parametrize("key", ["ema.modul", "optimizer", "epoch", ""])
def test_a_wrong_key_is_answered_with_those_that_there_are(key):
    with pytest.raises(CheckpointError) as error:
        with_key(variants(W)["rtdetr"], key, "x.pth")
    there = "there are no weights of that name; there are 'model' of 10 weights, 'ema.module' of 10 weights"
    assert str(error.value) == f"x.pth: checkpoint key '{key}': {there}"


def test_a_key_of_several_is_no_choice():
    content = {"nets": {"a": W, "b": noisy(W)}}
    with pytest.raises(
        CheckpointError, match=r"'nets': holds several; there are 'nets.a' of 10 weights, 'nets.b' of 10"
    ):
        with_key(content, "nets", "x.pth")


def test_names_of_transformers_keep_their_model():
    names = {
        "model.backbone.conv_encoder.model.conv1.weight": torch.ones(1),
        "model.decoder.class_embed.0.bias": torch.ones(2),
    }
    for content in (names, {"state_dict": prefixed(names, "model.")}, prefixed(names, "module.", "model.")):
        (found,) = find_weights(content)
        assert found.weights == names


def test_optimisers_and_counters_are_no_weights():
    content = {"optimizer": {"state": {"a": {"exp_avg": torch.ones(3)}}}, "random": {"cpu": torch.get_rng_state()}}
    with pytest.raises(CheckpointError, match=r"x.pth: holds no weights; at its top level there is optimizer, random"):
        model_weights(content, "x.pth")


def test_why_weights_do_not_fit(tmp_path):
    own = own_weights()
    seven = build_detector(shrunk(f"config/{FAMILY}/{NAME}.py", **SMALLER, **{"model.num_classes": 7}))
    resnet18 = {k: v for k, v in own.items() if not k.startswith("backbone.body.layer4")}
    for weights, said in (
        ({"model": seven.state_dict()}, "likely reason: another number of classes: --options model.num_classes"),
        (
            {"model": {"a.b": torch.ones(2), "c": torch.ones(2)}},
            "official deformable_detr checkpoint: a.b, c; likely reason: it is of another",
        ),
        ({"model": resnet18}, r"missing \(\d+\): .* and \d+ more\n  likely reason: another backbone"),
        ({"model": {k: v for k, v in own.items() if "input" not in k and not k.startswith("neck.proj")}}, "neck"),
        ({"model": prefixed(own, "queries.")}, "likely reason: not one of its names is of this model"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(detector(), weights, FAMILY, "x.pth")
    with pytest.raises(
        CheckpointError, match=r"not keys of an official detr .*their names|its names are those of deform"
    ):
        load_checkpoint(detector(), {"model": weights_of("theirs")}, "detr", "x.pth")


# -------------------------------------------------------------------------------------------------------- non-finite


def spoilt(weights, name="encoder.layers.0.norm1.weight"):
    value = weights[name].clone()
    value[:3] = torch.tensor([torch.nan, torch.nan, torch.inf])
    return {**weights, name: value}


NOT_FINITE = (
    r"x\.pth: non-finite values in 1 of \d+ weights \(encoder\.layers\.0\.norm1\.weight: 2 NaN, 1 infinite of 32\); "
    "a training that diverged leaves such: take an earlier checkpoint"
)


def test_weights_that_are_not_finite_are_named_however_they_are_loaded(tmp_path):
    bad, cfg = spoilt(own_weights()), dump_config(config())
    file = tmp_path / "x.pth"
    save_checkpoint({"model": bad, "config": cfg}, file)
    for load in (
        lambda: load_checkpoint(detector(), read_checkpoint(file), FAMILY, str(file)),
        lambda: load_for_finetuning(detector(), str(file), FAMILY, []),
        lambda: restore_detector(file),
        lambda: hubconf.deformable_detr_r50_single_scale(file),
        lambda: convert(file, tmp_path / "out.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=NOT_FINITE):
            load()
    assert not (tmp_path / "out.safetensors").exists()
    load_for_finetuning(detector(), str(file), FAMILY, ["norm1"])  # what is left out may be anything


def test_a_spoilt_average_leaves_the_weights_and_the_other_way_round(tmp_path, caplog):
    good, cfg = own_weights(), dump_config(config())
    file = tmp_path / "x.pth"
    save_checkpoint({"model": good, "ema": prefixed(spoilt(good), "module."), "config": cfg}, file)
    content = read_checkpoint(file)
    assert list(load_trained_weights(detector(), content, FAMILY, "x.pth")) == ["regular"]
    said = "its EMA has non-finite values in 1 of"
    assert said in caplog.text
    assert "is left out; its weights themselves are taken" in caplog.text
    caplog.clear()
    assert_loaded(restore_detector(file).detector)
    assert said in caplog.text
    with pytest.raises(CheckpointError, match="non-finite"):
        convert(file, tmp_path / "out.safetensors", averaged=True)
    save_checkpoint({"model": spoilt(good), "ema": prefixed(good, "module."), "config": cfg}, file)
    assert_loaded(restore_detector(file).detector)  # takes the EMA, as ever
    with pytest.raises(CheckpointError, match="non-finite.*its EMA is finite: --checkpoint_key ema takes that"):
        next(load_trained_weights(detector(), read_checkpoint(file), FAMILY, "x.pth"))
    load_checkpoint(detector(), with_key(read_checkpoint(file), "ema", "x.pth"), FAMILY, "x.pth")
    assert_loaded(detector())


# ------------------------------------------------------------------------------------------------------ command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Arguments of main.py, and the output of a training of one epoch."""
    root = tmp_path_factory.mktemp("trained")
    base = [*prepare(root, train=4, val=2), "--num_workers", "0"]
    assert (
        program.main(parse_arguments([*base, "--output_dir", str(root / "out"), "--options", "schedule.epochs=1"])) == 0
    )
    return base, root / "out"


def run(base, output, *more):
    return program.main(parse_arguments([*base, "--output_dir", str(output), *more]))


def test_evaluation_by_key(trained, tmp_path, capsys):
    base, out = trained
    weights = read_checkpoint(out / "checkpoint.pth")["model"]
    save_checkpoint({"model": weights, "ema": prefixed(noisy(weights), "module.")}, tmp_path / "ours.pth")
    torch.save({"model": weights, "ema": {"module": noisy(weights), "updates": 3}}, tmp_path / "foreign.pth")
    flags = ["--eval", "--resume", str(tmp_path / "foreign.pth")]
    assert run(base, tmp_path / "a", *flags) == 0
    assert "leaves out 'ema.module'" in capsys.readouterr().out
    assert run(base, tmp_path / "b", *flags, "--checkpoint_key", "ema.module") == 0
    assert run(base, tmp_path / "c", *flags, "--checkpoint_key", "emma") == 2
    assert "checkpoint key 'emma': there are no weights of that name; there are 'model'" in capsys.readouterr().out
    assert not (tmp_path / "c" / "eval.json").exists()
    assert run(base, tmp_path / "d", "--eval", "--resume", str(tmp_path / "ours.pth")) == 0
    foreign, by_key, whole = (json.loads((tmp_path / name / "eval.json").read_text()) for name in "abd")
    assert foreign.keys() == by_key.keys() == {"regular"}
    assert foreign["regular"]["loss"] == whole["regular"]["loss"] != whole["ema"]["loss"]
    assert by_key["regular"]["loss"] == whole["ema"]["loss"]


def test_weights_alone_start_a_training_at_its_first_epoch(trained, tmp_path, capsys):
    base, out = trained
    file = next(out.glob("checkpoint_best_*.pth"))
    assert run(base, tmp_path / "a", "--resume", str(file), "--options", "schedule.epochs=1") == 0
    said = capsys.readouterr().out
    assert f"{file}: holds weights alone: training begins at epoch 0" in said
    assert "epoch 0: loss" in said
    content = read_checkpoint(out / "checkpoint.pth")
    foreign = {"model": content["model"], "optimizer": "adam", "lr_scheduler": {}, "ema": 0.9, "epoch": 3}
    torch.save(foreign, tmp_path / "foreign.pth")
    more = ["--resume", str(tmp_path / "foreign.pth"), "--options", "schedule.epochs=1"]
    assert run(base, tmp_path / "b", *more) == 0
    said = capsys.readouterr().out
    assert (
        "(its optimizer, lr_scheduler are not a training's of ours and are left out): training begins at epoch 0"
        in said
    )


FOREIGN = {
    "optimizer": [1, {"state": {}}],
    "schedule": ["x", {"milestones": [3]}],
    "random": [{}, [None], [{"numpy": 1}]],
    "epoch": ["last", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FOREIGN.items() for value in values])
def test_a_state_of_another_program_is_left_out(name, value, caplog):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule, scaler = build_schedule(optimizer, 5, 4, kind="cosine"), torch.amp.GradScaler(enabled=False)
    state = TrainingState(model, optimizer, schedule, scaler, None, {}, {"steps_per_epoch": 5})
    state.resume({**state.state_dict(), "epoch": 2, name: value}, "x.pth")
    assert state.epoch == 0
    assert "x.pth: holds weights alone (its optimizer, schedule, scaler are not a training's of ours" in caplog.text
    state.resume({**state.state_dict(), "epoch": 2}, "x.pth")
    assert state.epoch == 2


def test_tied_weights_may_be_saved_once():
    """As safetensors' save_model and accelerate save them."""
    tied = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    bias = {"0.bias": torch.ones(2), "1.bias": torch.ones(2)}
    for name in ("0.weight", "1.weight"):
        load_checkpoint(tied, {"model": {**bias, name: torch.full((2, 2), 3.0)}}, None, "x.pth")
        assert tied[1].weight.eq(3).all()
        torch.nn.init.zeros_(tied[0].weight)


def test_an_official_backbone_alone_is_no_checkpoint_of_ours():
    backbone = {name: value for name, value in weights_of("theirs").items() if name.startswith("backbone.")}
    with pytest.raises(CheckpointError, match=r"missing \(\d+\): neck"):
        load_checkpoint(detector(), {"model": backbone}, FAMILY, "x.pth")


def test_a_key_needs_a_checkpoint(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["-c", "x.py", "--checkpoint_key", "ema"])
    assert "--checkpoint_key: of which checkpoint? Give --resume or --pretrain_model_path" in capsys.readouterr().err
    assert parse_arguments(["-c", "x.py", "--checkpoint_key", "ema", "--eval"]).checkpoint_key == "ema"


@pytest.mark.parametrize("average", [0.9, {"module": {"w": torch.ones(2)}, "updates": 3}, "spoilt"])
def test_a_training_goes_on_without_a_foreign_or_spoilt_average(trained, tmp_path, capsys, average):
    base, out = trained
    content = read_checkpoint(out / "checkpoint.pth")
    reason = "not an EMA of its weights"
    if isinstance(average, str):
        name = next(name for name in content["ema"] if name.endswith("norm1.bias"))
        average = {**content["ema"], name: content["ema"][name] * torch.nan}
        reason = "non-finite values in 1 of"
    save_checkpoint({**content, "ema": average}, tmp_path / "x.pth")
    more = ["--resume", str(tmp_path / "x.pth"), "--options", "schedule.epochs=2"]
    assert run(base, tmp_path / "a", *more) == 0
    said = capsys.readouterr().out
    assert "going on after 1 epochs" in said
    assert f"its 'ema' is left out ({reason}" in said
    assert "the EMA starts anew from the weights" in said
    assert load_config(tmp_path / "a" / "config.py").schedule.epochs == 2
