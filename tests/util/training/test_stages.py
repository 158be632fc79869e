"""Trainings in two stages, and the averages, rates, groups and norms of the trainings that have such."""

import math
import signal

import pytest
import torch
from torch import nn

import main as program
import util.training.setup
from tests.harness.forked import prepare
from tests.harness.kill import equal, journal
from tests.util.training.test_resume import STATE, signal_when
from util.checkpoints.files import CheckpointError, read_checkpoint, save_checkpoint
from util.cli.arguments import parse_arguments
from util.processes.preemption import EXIT_PREEMPTED
from util.training.optimizer import StateEMA, build_ema, build_optimizer, build_schedule
from util.training.options import TrainingOptions
from util.training.restart import STAGE1, Restart
from util.training.setup import with_shared_statistics
from util.training.state import TrainingState

ORDER = {"dataset_size": 10, "world_size": 1, "batch_size": 2, "accumulate": 1, "steps_per_epoch": 5}


class Normed(nn.Module):
    """A tied weight, a norm, a constant that is not stored, and an integer that is."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second = self.first
        self.register_buffer("derived", torch.ones(2), persistent=False)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def moved(model):
    """Changes everything in a model a little."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(torch.randn(tensor.shape) if tensor.is_floating_point() else 1)


# ------------------------------------------------------------------------------------------------------- the average


@pytest.mark.parametrize("warmup", [2000, 3, 0])
def test_the_average_of_a_whole_state_follows_its_formula(warmup):
    torch.manual_seed(0)
    model = Normed()
    average = build_ema(model, 0.99, warmup)
    expected = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for step in range(1, 30):
        moved(model)
        average.update_parameters(model)
        kept = 0.99 * (1 - math.exp(-step / warmup)) if warmup else 0.99
        for name, tensor in model.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * tensor.double()
    found = average.module.state_dict()
    for name in ("first.weight", "second.bias", "norm.weight", "norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert found["count"] == found["norm.num_batches_tracked"] == 29
    assert torch.equal(average.module.derived, model.derived)
    assert average.module.first is average.module.second


def test_an_average_goes_on_where_it_was():
    torch.manual_seed(0)
    model = Normed()
    whole, half = build_ema(model, 0.9, 10), build_ema(model, 0.9, 10)
    for _ in range(5):
        moved(model)
        whole.update_parameters(model)
        half.update_parameters(model)
    resumed = build_ema(model, 0.9, 10)
    resumed.load_state_dict(half.state_dict())
    for _ in range(5):
        moved(model)
        whole.update_parameters(model)
        resumed.update_parameters(model)
    assert equal(whole.state_dict(), resumed.state_dict())


def test_other_averages_copy_running_statistics():
    model = Normed()
    for warmup in (True, False):
        average = build_ema(model, 0.9, warmup)
        assert not isinstance(average, StateEMA)
        moved(model)
        average.update_parameters(model)
        assert torch.equal(average.module.norm.running_mean, model.norm.running_mean)


@pytest.mark.parametrize(("options", "message"), [((1.5, 2), "decay=1.5 must lie"), ((0.9, -1), "warmup=-1 must be 0")])
def test_averages_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        build_ema(nn.Linear(1, 1), *options)


# -------------------------------------------------------------------------------------------------- rates and groups


def rates(epochs=10, steps=4, **more):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 2.0)
    schedule, seen = build_schedule(optimizer, steps, epochs, **more), []
    for _ in range(steps * epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_flat_then_a_cosine_then_flat():
    found = rates(kind="flat_cosine", gamma=0.5, warmup_steps=3, flat_epochs=4, final_epochs=2)
    assert found[:3] == pytest.approx([2 / 9, 8 / 9, 2.0])
    assert set(found[3:17]) == {2.0}
    assert found[24] == pytest.approx(1.5)
    falling = found[16:33]
    expected = [1 + 0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(17)]
    assert falling == pytest.approx(expected)
    assert found[32:] == pytest.approx([1.0] * 8)
    with pytest.raises(ValueError, match="flat_epochs=8 and final_epochs=2 must be 0 or more, and together leave some"):
        rates(kind="flat_cosine", flat_epochs=8, final_epochs=2)


def test_a_linear_warm_up_and_then_a_rate_that_stays():
    found = rates(warmup_steps=6)
    assert found == pytest.approx([2 * min(1, (step + 1) / 6) for step in range(40)])


class Named(nn.Module):
    """Parts as detectors have them."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
        self.encoder = nn.ModuleDict({"linear1": nn.Linear(1, 1), "norm1": nn.LayerNorm(1)})


def groups(**options):
    model = Named()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = build_optimizer(model, 1.0, 0.5, **options).param_groups
    return {(g["lr"], g["weight_decay"]): [names[id(p)] for p in g["params"]] for g in found}


def test_weight_decay_goes_by_names():
    found = groups(scale={"backbone": 0.1}, no_decay=(r"^encoder\..*(norm|bias)", r"^backbone\.1\.bias"))
    assert found == {
        (1.0, 0.5): ["encoder.linear1.weight"],
        (1.0, 0.0): ["encoder.linear1.bias", "encoder.norm1.weight", "encoder.norm1.bias"],
        (0.1, 0.5): ["backbone.0.weight", "backbone.0.bias", "backbone.1.weight"],
        (0.1, 0.0): ["backbone.1.bias"],
    }
    assert set(groups()) == {(1.0, 0.5)}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("bn",), "no_decay names 'bn', which is in no parameter's name"),
        (("(",), r"no_decay names '\(', which is no reg"),
    ],
)
def test_expressions_that_find_nothing(patterns, message):
    with pytest.raises(ValueError, match=message):
        groups(no_decay=patterns)


# ------------------------------------------------------------------------------------------------- shared statistics


def test_norms_share_statistics_where_there_are_several_processes(monkeypatch, caplog):
    model = Named()
    weights = [id(parameter) for parameter in model.parameters()]
    assert with_shared_statistics(model, "cuda") is model
    monkeypatch.setattr(util.training.setup, "world_size", lambda: 2)
    assert with_shared_statistics(model, "cpu") is model
    assert isinstance(model.backbone[1], nn.BatchNorm2d)
    assert "sync_bn: on a CPU, batch norms take the statistics of their own" in caplog.text
    shared = with_shared_statistics(model, "cuda")
    assert isinstance(shared.backbone[1], nn.SyncBatchNorm)
    assert [id(parameter) for parameter in shared.parameters()] == weights


# -------------------------------------------------------------------------------------------------------- two stages


def a_training():
    """One of a few weights, with all that goes with them."""
    torch.manual_seed(0)
    model = Normed()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    schedule, average = build_schedule(optimizer, 5, 9), build_ema(model, 0.99, 10)
    return TrainingState(model, optimizer, schedule, scaler, average, {}, ORDER)


def an_epoch(state):
    """Of five steps."""
    for _ in range(5):
        state.model(torch.randn(4, 3)).square().sum().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.schedule.step()
        state.ema.update_parameters(state.model)
    state.finish_epoch()


def weights(state):
    """Copies of what goes back together."""
    kept = state.model.state_dict(), state.ema.state_dict(), state.optimizer.state_dict()["state"]
    return [{key: torch.clone(value) for key, value in _flat(part)} for part in kept]


def _flat(part, path=""):
    for key, value in part.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", torch.as_tensor(value)


def judge(state, restart, folder, score):
    """What a Trainer does at the end of an epoch."""
    names = restart.after_evaluation(score)
    for name in names:
        save_checkpoint(state.state_dict(), folder / name)
    return names


def test_the_second_stage_begins_with_the_best_and_goes_back_to_it(tmp_path):
    state = a_training()
    restart = Restart(state, tmp_path, epoch=3, ema_decay=0.8, lower=0.1)
    best = None
    for score in (0.1, 0.3, 0.2):
        restart.before_epoch()
        an_epoch(state)
        kept = judge(state, restart, tmp_path, score) == [STAGE1]
        assert kept == (score != 0.2)
        best = weights(state) if kept else best
    assert not restart.second_stage
    assert state.ema.decay == 0.99
    last = weights(state)
    restart.before_epoch()
    assert equal(weights(state), best)
    assert not equal(weights(state), last)
    assert (state.epoch, state.schedule.last_epoch, state.ema.decay) == (3, 15, 0.8)
    restart.before_epoch()  # stage 2 begins once
    an_epoch(state)
    assert judge(state, restart, tmp_path, 0.4) == []
    assert not equal(weights(state), best)
    an_epoch(state)
    judge(state, restart, tmp_path, 0.4)  # as good is not better
    assert equal(weights(state), best)
    assert state.ema.decay == pytest.approx(0.7)
    an_epoch(state)
    judge(state, restart, tmp_path, 0.05)  # what was best is forgotten
    assert not equal(weights(state), best)
    an_epoch(state)
    judge(state, restart, tmp_path, 0.04)
    assert equal(weights(state), best)
    assert state.ema.decay == pytest.approx(0.6)
    assert read_checkpoint(tmp_path / STAGE1)["epoch"] == 2
    resumed = a_training()
    resumed.model.load_state_dict(state.model.state_dict())
    resumed.load_state_dict(state.state_dict(), "a.pth")
    assert resumed.ema.decay == 0.99
    Restart(resumed, tmp_path, epoch=3, ema_decay=0.8, lower=0.1)
    assert resumed.ema.decay == pytest.approx(0.6)
    assert resumed.restart == state.restart


def test_a_training_that_goes_on_past_the_first_stage_begins_the_second(tmp_path, caplog):
    state = a_training()
    for _ in range(3):
        an_epoch(state)
    state.batch = 2
    restart = Restart(state, tmp_path, epoch=2, ema_decay=0.8)
    restart.before_epoch()
    assert not restart.second_stage  # in the middle of an epoch
    state.batch, before = 0, weights(state)
    restart.before_epoch()
    assert "no epoch before stage 2 was evaluated" in caplog.text
    assert equal(weights(state), before)
    assert state.ema.decay == 0.8
    an_epoch(state)
    judge(state, restart, tmp_path, 0.5)
    an_epoch(state)
    judge(state, restart, tmp_path, 0.4)
    assert equal(weights(state), before)


def test_a_best_checkpoint_that_is_gone_or_another(tmp_path):
    state = a_training()
    restart = Restart(state, tmp_path, epoch=1, ema_decay=0.8)
    an_epoch(state)
    judge(state, restart, tmp_path, 0.5)
    content = read_checkpoint(tmp_path / STAGE1)
    (tmp_path / STAGE1).unlink()
    with pytest.raises(
        CheckpointError, match=rf"{STAGE1}: there is no such checkpoint\. training.restart goes back to"
    ):
        restart.before_epoch()
    save_checkpoint({**content, "epoch": 7}, tmp_path / STAGE1)
    with pytest.raises(CheckpointError, match=r"was saved after 7 epochs, and this training's best after 1"):
        restart.before_epoch()
    assert not restart.second_stage
    save_checkpoint(content, tmp_path / STAGE1)
    restart.before_epoch()
    assert restart.second_stage


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 0, "ema_decay": 0.9}, "epoch=0 must be 1 or more"),
        ({"epoch": 1, "ema_decay": 1.1}, "ema_decay=1.1 must lie between"),
        ({"epoch": 1, "ema_decay": 0.9, "lower": -1}, "lower=-1 must be 0 or more"),
    ],
)
def test_stages_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Restart(a_training(), tmp_path, **options)


def test_stages_need_an_average(tmp_path):
    with pytest.raises(ValueError, match="restart compares epochs by the AP of an EMA"):
        TrainingOptions(restart={"epoch": 1, "ema_decay": 0.9})


SCORES = {1: 0.3, 2: 0.2, 3: 0.1, 4: 0.05, 5: 0.4}
"""AP of the EMA by epoch: the first is the best of stage 1, from which epochs 3 and 4 begin."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Arguments of a training in two stages with all that is drawn by epoch and by batch."""
    arguments = prepare(tmp_path_factory.mktemp("base"), train=12, val=2)
    square = "{'type': 'DistortZoomCrop', 'height': 64, 'width': 64, 'stop_epoch': 2}"
    stage = "{'epoch': 2, 'ema_decay': 0.5, 'lower': 0.1}"
    options = [f"data.augment={square}", "data.multi_scale={'sides': (32, 64), 'stop_epoch': 2}", "data.normalize=none"]
    options += [f"training.restart={stage}", "training.ema={'decay': 0.9, 'warmup': 5}", "schedule.epochs=5"]
    options += ["data.mosaic={'side': 32, 'stop_epoch': 4}", "data.mixup={'start_epoch': 1}"]
    options += ["data.resize={'type': 'Stretch', 'height': 64, 'width': 64}", "training.save_every_steps=1"]
    return [*arguments, "--num_workers", "0", "--options", *options]


@pytest.fixture
def scored(monkeypatch):
    """Epochs are worth what SCORES says."""

    def scorer(run, *_):
        def score(model, name, best, draw):
            content = read_checkpoint(run.output_dir / "checkpoint.pth")
            return {"AP": SCORES[content["epoch"]]}

        return score

    monkeypatch.setattr(program.Run, "scorer", scorer)


def run(base, output):
    return program.main(parse_arguments([*base, "--output_dir", str(output)]))


@pytest.mark.usefixtures("scored")
def test_a_training_in_two_stages_goes_on_exactly(base, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(base, whole) == 0
    said = capsys.readouterr().out
    assert said.count("back to the weights of epoch 1") == 2
    assert "stage 2 begins: back to" in said
    assert "AP 0.1000 of the EMA is not above 0.3000: back to" in said
    content = read_checkpoint(whole / "checkpoint.pth")
    assert content["restart"] == {"best": 0.05, "kept": 1, "decay": pytest.approx(0.4)}
    assert content["best"] == {"regular": 0.4, "ema": 0.4}
    for moment in ("epoch 0 2/6", "epoch 2 2/6", "epoch 3 4/6"):
        signal_when(broken, moment, signal.SIGTERM)
        assert run(base, broken) == EXIT_PREEMPTED
    assert run(base, broken) == 0
    ours, theirs = (read_checkpoint(folder / "checkpoint.pth") for folder in (whole, broken))
    for key in (*STATE, "restart"):
        assert equal(ours[key], theirs[key]), key
    assert journal(whole / "log.txt") == journal(broken / "log.txt")
