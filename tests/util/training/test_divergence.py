"""Numbers gone wrong, memory run out, kernels that are not deterministic: noticed, explained, and nothing is spoilt."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import main as program
from tests.harness.forked import prepare
from util.checkpoints.files import read_checkpoint
from util.cli.arguments import parse_arguments
from util.tensors.determinism import determinism_advice
from util.tensors.precision import Precision
from util.training import memory_check
from util.training.memory_check import check_memory, memory_advice
from util.training.noise import noise_batch
from util.training.non_finite import Rewind, first_bad_module, gradients_not_finite
from util.training.optimizer import build_ema, build_schedule
from util.training.state import TrainingState, random_state
from util.training.stepper import Stepper, TrainingDivergedError

ORDER = {"steps_per_epoch": 4}


class Model(nn.Module):
    """The least that has dropout, running statistics and an answer for a batch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 2)

    def forward(self, images, targets=None):
        stacked = torch.stack(list(images)) if isinstance(images, list) else images
        return self.head(self.stem(stacked).mean((2, 3)))


class Criterion(nn.Module):
    """The mean of what comes out, times a factor."""

    factor = 1.0

    def forward(self, output, targets):
        return {"loss_mean": (output * self.factor).square().mean()}, {}


class Batch:
    """What the stepper reads of a batch."""

    def __init__(self, images, first=1):
        self.images = images
        self.targets = [{"image_id": torch.tensor(first + i)} for i in range(len(images))]


def stepper(patience=3, accumulate=1, scaler=None):
    torch.manual_seed(0)
    model, precision = Model().train(), Precision("cpu", False)
    if scaler is not None:
        precision.scaler = scaler
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    schedule = build_schedule(optimizer, 4, 2, warmup_steps=4)
    state = TrainingState(model, optimizer, schedule, precision.scaler, build_ema(model, 0.9), {}, ORDER)
    return Stepper(model, Criterion(), state, precision, 0.1, accumulate, patience)


def snapshot(state):
    tensors = {**state.model.state_dict(), **{f"ema {k}": v for k, v in state.ema.state_dict().items()}}
    return {name: value.clone() for name, value in tensors.items()}


def unchanged(before, state):
    return all(torch.equal(value, before[name]) for name, value in snapshot(state).items())


def test_an_image_that_is_not_finite_spoils_nothing(caplog, recwarn):
    """Weights, average, running statistics and schedule stay; ids, terms and the first module are named."""
    steps = stepper()
    before, bad = snapshot(steps.state), torch.randn(2, 3, 8, 8)
    bad[1, 0, 0, 0] = float("nan")
    assert steps.take(Batch(bad, first=41), True, False) == {}
    assert unchanged(before, steps.state)
    assert steps.state.schedule.last_epoch == 0
    assert (steps.state.skipped, steps.state.failures, steps.state.step) == (1, 1, 1)
    expected = "step 1 is skipped: not finite: loss, loss_mean; stem.0 (Conv2d) answered NaN, as was given to it"
    assert f"{expected}; images: 41, 42" in caplog.text
    assert steps.take(Batch(torch.randn(2, 3, 8, 8)), True, False)["grad_norm"] > 0
    assert not unchanged(before, steps.state)
    assert steps.state.failures == 0
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


def test_a_step_of_several_batches_is_skipped_whole():
    steps = stepper(accumulate=2)
    before = snapshot(steps.state)
    assert steps.take(Batch(torch.full((2, 3, 8, 8), float("inf"))), False, False) == {}
    assert "loss" in steps.take(Batch(torch.randn(2, 3, 8, 8)), True, False)
    assert all(torch.equal(p, before[name]) for name, p in steps.state.model.named_parameters())
    assert all(p.grad is None for p in steps.state.model.parameters())
    assert "grad_norm" in steps.take(Batch(torch.randn(2, 3, 8, 8)), True, False)


def test_a_step_of_several_batches_is_of_their_mean():
    norms = []
    for accumulate in (1, 2):
        steps, batch = stepper(accumulate=accumulate), Batch(torch.linspace(-1, 1, 384).view(2, 3, 8, 8))
        steps.state.model.stem[2].p = 0.0  # equal batches are to have equal gradients
        numbers = [steps.take(batch, last, False) for last in [False] * (accumulate - 1) + [True]]
        norms.append(numbers[-1]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0])


def test_processes_exchange_gradients_once_a_step():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        steps, exchanged = stepper(accumulate=3), []
        steps.model = DistributedDataParallel(steps.state.model)
        steps.state.model.register_forward_hook(lambda *_: exchanged.append(steps.model.require_backward_grad_sync))
        for last in (False, False, True):
            steps.take(Batch(torch.randn(2, 3, 8, 8)), last, False)
    finally:
        torch.distributed.destroy_process_group()
    assert exchanged == [False, False, True]


def test_steps_are_clipped():
    moved = []
    for clip_norm in (None, 1e-3):
        steps = stepper()
        steps.clip_norm = clip_norm
        steps.state.optimizer = torch.optim.SGD(steps.state.model.parameters(), 1.0)
        steps.state.schedule = build_schedule(steps.state.optimizer, 4, 2)
        before = [p.detach().clone() for p in steps.state.model.parameters()]
        norm = steps.take(Batch(torch.randn(2, 3, 8, 8)), True, False)["grad_norm"]
        changes = [p - old for p, old in zip(steps.state.model.parameters(), before, strict=True)]
        moved.append(torch.nn.utils.get_total_norm(changes).item())
        assert norm > 0.01  # as it was before
    assert moved == pytest.approx([norm, 1e-3], rel=1e-2)


def test_a_gradient_that_is_not_finite(caplog):
    steps = stepper(patience=2)
    before = snapshot(steps.state)
    steps.state.model.head.weight.register_hook(lambda grad: grad * float("inf"))
    steps.take(Batch(torch.randn(2, 3, 8, 8), first=7), True, False)
    assert "not finite: grad_norm; gradients of 1 parameters: head.weight; images: 7, 8" in caplog.text
    with pytest.raises(TrainingDivergedError, match=r"2 steps in a row are skipped, the last: .*head.weight.*Lower"):
        steps.take(Batch(torch.randn(2, 3, 8, 8)), True, False)
    assert all(torch.equal(p, before[name]) for name, p in steps.state.model.named_parameters())


def test_float16_may_overflow_until_its_scale_is_found():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1000)
    steps = stepper(scaler=scaler)
    steps.criterion.factor = 1e3
    before = snapshot(steps.state)
    for _ in range(20):
        steps.take(Batch(torch.randn(2, 3, 8, 8)), True, False)
    assert steps.state.skipped == steps.state.failures == 0
    assert 0 < steps.state.schedule.last_epoch < 20
    assert not all(torch.equal(p, before[name]) for name, p in steps.state.model.named_parameters())
    scaler.update(0.25)  # below one, it is not the format any more
    steps.state.model.head.weight.register_hook(lambda grad: grad * float("nan"))
    steps.patience = 1
    with pytest.raises(TrainingDivergedError, match="head.weight"):
        steps.take(Batch(torch.randn(2, 3, 8, 8)), True, False)


def test_the_first_bad_module_is_found_without_a_trace():
    model, images = Model().train(), torch.randn(2, 3, 8, 8)
    rewind = Rewind(model)
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, random_state()["cpu"]
    assert first_bad_module(model, lambda: model(images), rewind).startswith("no module")
    model.stem[2].register_forward_hook(lambda module, given, answer: answer / 0)
    assert first_bad_module(model, lambda: model(images), rewind).startswith("stem.2 (Dropout) answered")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random_state()["cpu"], random)
    with torch.no_grad():
        model.head.bias[0] = float("inf")
    assert first_bad_module(model, lambda: model(images), rewind) == (
        "weights or statistics themselves are not finite: head.bias"
    )
    assert "no gradient" in gradients_not_finite(model)


def test_no_number_is_looked_for_before_infinity():
    """A module may mean infinity, as masks do."""
    model, images = nn.Sequential(nn.Identity(), nn.ReLU()), torch.ones(2, 3)
    model[0].register_forward_hook(lambda module, given, answer: answer / 0)
    found = first_bad_module(model, lambda: model(images), Rewind(model))
    assert found == "0 (Identity) answered infinity"
    model[1].register_forward_hook(lambda module, given, answer: answer * 0)
    found = first_bad_module(model, lambda: model(images), Rewind(model))
    assert found == "1 (ReLU) answered NaN, as was given to it"


def test_a_memory_check_leaves_nothing_behind():
    steps = stepper()
    state, before, random = steps.state, snapshot(steps.state), random_state()["cpu"]
    noise = noise_batch([(8, 9)] * 2, objects=3, classes=5, device="cpu")
    assert [target["boxes"].shape for target in noise[1]] == [(3, 4)] * 2
    check_memory(state.model, steps.criterion, state.optimizer, steps.precision, *noise)
    assert unchanged(before, state)
    assert torch.equal(random_state()["cpu"], random)
    assert all(p.grad is None for p in state.model.parameters())
    assert not state.optimizer.state


# --------------------------------------------------------------------------------------------------- the whole program


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return [*prepare(folder, train=8, val=1), "--num_workers", "0", "--options", "schedule.epochs=1"]


def run(base, output, *more, flags=()):
    return program.main(parse_arguments([*base, *more, "--output_dir", str(output), *flags]))


def test_a_training_that_diverges_leaves_its_last_sound_state(base, tmp_path, capsys, monkeypatch):
    build = program.build_criterion

    def spoilt(cfg):
        criterion = build(cfg)
        criterion.register_forward_hook(lambda *args: ({n: v * float("nan") for n, v in args[-1][0].items()}, {}))
        return criterion

    monkeypatch.setattr(program, "build_criterion", spoilt)
    assert run(base, tmp_path, "training.patience=2") == 2
    said = capsys.readouterr().out
    assert "2 steps in a row are skipped" in said
    assert "the last sound state is saved" in said
    content = read_checkpoint(tmp_path / "checkpoint.pth")
    assert all(value.isfinite().all() for value in content["model"].values())
    assert content["skipped"] == 2


def test_memory_that_runs_out_is_said_before_training(base, tmp_path, capsys, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.")

    monkeypatch.setattr(memory_check, "check_memory", fail)
    assert run(base, tmp_path, "training.warm_up_step=True") == 2
    said = capsys.readouterr().out
    assert "out of memory: CUDA out of memory. Tried to allocate 7 GiB" in said
    assert all(word in said for word in ("--batch_size", "training.accumulate", "--amp", "checkpointing", "scales"))
    assert memory_advice(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert memory_advice(RuntimeError("something else")) is None
    assert run(base, tmp_path, "training.warm_up_step='perhaps'") == 2
    assert "none of True, False, 'auto'" in capsys.readouterr().out


def test_deterministic_training_with_a_memory_check(base, tmp_path, capsys):
    try:
        for name in ("one", "two"):
            assert run(base, tmp_path / name, "training.warm_up_step=True", flags=["--deterministic"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    said = capsys.readouterr().out
    assert "the largest step fits: images of [(64, 96), (96, 64)] with" in said
    one, two = (read_checkpoint(tmp_path / name / "checkpoint.pth")["model"] for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    text = "put_ does not have a deterministic implementation, but you set"
    assert determinism_advice(RuntimeError(text)).startswith("--deterministic: put_ has no deterministic kernel")
    assert determinism_advice(RuntimeError("else")) is None
