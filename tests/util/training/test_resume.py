"""A training that is stopped, crashes or loses a file goes on as if nothing had been."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import main as program
import util.training.state
from datasets.samplers import TrainSampler
from tests.harness.forked import prepare
from tests.harness.kill import equal, journal
from util.checkpoints.files import CheckpointError, read_checkpoint, save_checkpoint
from util.checkpoints.store import CheckpointStore
from util.cli.arguments import parse_arguments
from util.processes.preemption import EXIT_PREEMPTED, StopRequest
from util.training.optimizer import build_ema, build_schedule
from util.training.state import TrainingState

ROOT = Path(__file__).parents[3]
STATE = ("model", "ema", "optimizer", "schedule", "epoch", "step", "random", "best")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Arguments of a training of two epochs of three steps of two batches, with all that is random."""
    return prepare(tmp_path_factory.mktemp("base"), train=12, val=2)


def run(base, output, *more, workers=0):
    """main.py within this process."""
    return program.main(parse_arguments([*base, "--output_dir", str(output), "--num_workers", str(workers), *more]))


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The output of a training that nothing happened to."""
    output = tmp_path_factory.mktemp("whole")
    assert run(base, output) == 0
    return output


def assert_same(whole, output):
    ours, theirs = (read_checkpoint(path / "checkpoint.pth") for path in (whole, output))
    for key in STATE:
        assert equal(ours[key], theirs[key]), key
    assert journal(whole / "log.txt") == journal(output / "log.txt")


def signal_when(output, text, number):
    """Sends this process a signal as soon as the log says something."""

    def wait():
        log = output / "info.txt"
        while not (log.is_file() and text in log.read_text()):
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 2)])
def test_a_signal_ends_a_training_that_goes_on_exactly(base, whole, tmp_path, number, workers):
    handler = signal.getsignal(number)
    signal_when(tmp_path, "epoch 0 2/6", number)
    assert run(base, tmp_path, workers=workers) == EXIT_PREEMPTED
    assert signal.getsignal(number) == handler
    content = read_checkpoint(tmp_path / "checkpoint.pth")
    assert content["epoch"] == 0
    assert content["sampler"]["batch"] == 2 * content["step"] > 0
    assert run(base, tmp_path, workers=workers) == 0
    assert_same(whole, tmp_path)


def test_a_signal_during_an_evaluation(base, whole, tmp_path):
    signal_when(tmp_path, "epoch 0: loss", signal.SIGUSR1)
    assert run(base, tmp_path) == EXIT_PREEMPTED
    assert read_checkpoint(tmp_path / "checkpoint.pth")["epoch"] in (0, 1)
    assert run(base, tmp_path) == 0
    assert_same(whole, tmp_path)


def test_signals_that_come_together_are_one():
    with StopRequest() as stop:
        assert not stop()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert stop()


def test_what_listened_before_listens_again():
    before = signal.getsignal(signal.SIGTERM)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    outer = signal.set_wakeup_fd(theirs.fileno())
    try:
        with StopRequest():
            pass
        assert signal.set_wakeup_fd(outer) == theirs.fileno()
    finally:
        signal.set_wakeup_fd(outer)
        ours.close()
        theirs.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_at_once():
    code = """
import sys, time
from util.processes.preemption import StopRequest
with StopRequest() as stop:
    while not stop():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)  # also before it listens: then this ends it
        time.sleep(0.3)
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)


def test_an_evaluation_that_fails_loses_no_epoch(base, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(program.CocoEvaluator, "evaluate", lambda self, detections: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(base, tmp_path)
    content = read_checkpoint(tmp_path / "checkpoint.pth")
    assert content["epoch"] == 1
    assert content["pending"]["train_loss"] > 0
    assert run(base, tmp_path) == 0
    assert_same(whole, tmp_path)


def test_a_damaged_checkpoint_is_passed_over(base, whole, tmp_path, capsys):
    assert run(base, tmp_path, "--options", "schedule.epochs=1", "--save_every_steps", "1") == 0
    newest = bytearray((tmp_path / "checkpoint.pth").read_bytes())
    middle = slice(len(newest) // 2, len(newest) // 2 + 256)  # a single byte may only fill the space between tensors
    newest[middle] = bytes(byte ^ 1 for byte in newest[middle])
    (tmp_path / "checkpoint.pth").write_bytes(newest)
    previous = tmp_path / "checkpoint_previous1.pth"
    previous.write_bytes(previous.read_bytes()[:9999])
    capsys.readouterr()
    assert run(base, tmp_path) == 0
    said = capsys.readouterr().out
    assert "checkpoint.pth: damaged" in said
    assert "checkpoint_previous1.pth: damaged" in said
    assert "checkpoint_previous2.pth: going on after 0 epochs and 4 batches" in said
    assert_same(whole, tmp_path)


def test_what_a_checkpoint_holds(whole):
    content = read_checkpoint(whole / "checkpoint.pth")
    assert {*STATE, "scaler", "sampler", "config", "categories", "versions", "format"} <= content.keys()
    assert (content["epoch"], content["step"], content["sampler"]["batch"]) == (2, 6, 0)
    assert content["versions"].keys() - {"git"} == {"torch", "python"}
    assert ("git" in content["versions"]) == (ROOT / ".git").exists()
    names = {path.name for path in whole.glob("checkpoint*")}
    assert {"checkpoint.pth", "checkpoint_previous1.pth", "checkpoint_previous2.pth", "checkpoint0002.pth"} <= names


def test_an_epoch_in_another_order_begins_anew(base, tmp_path, capsys):
    signal_when(tmp_path, "epoch 0 2/6", signal.SIGTERM)
    assert run(base, tmp_path) == EXIT_PREEMPTED
    signal_when(tmp_path, "epoch 0 2/12", signal.SIGTERM)
    assert run(base, tmp_path, "--batch_size", "1") == EXIT_PREEMPTED
    said = capsys.readouterr().out
    assert "another order (batch_size was 2, is 1, steps_per_epoch was 3, is 6): the epoch begins anew" in said


def test_an_epoch_begins_anew_with_as_many_steps(base, tmp_path, capsys):
    cycle = ["--options", "schedule.kind='onecycle'"]
    signal_when(tmp_path, "epoch 0 2/6", signal.SIGTERM)
    assert run(base, tmp_path, *cycle) == EXIT_PREEMPTED
    taken = read_checkpoint(tmp_path / "checkpoint.pth")["step"]
    assert taken > 0
    assert run(base, tmp_path, *cycle, "training.accumulate=4", "--batch_size", "1") == 0
    assert "(batch_size was 2, is 1, accumulate was 2, is 4): the epoch begins anew" in capsys.readouterr().out
    content = read_checkpoint(tmp_path / "checkpoint.pth")
    assert (content["step"], content["schedule"]["last_epoch"]) == (6, 6)


def test_a_command_that_names_a_checkpoint_can_be_started_again(base, whole, tmp_path, capsys):
    more = ["--resume", str(whole / "checkpoint.pth"), "--options", "schedule.epochs=3"]
    assert run(base, tmp_path, *more) == 0
    assert "whole" in capsys.readouterr().out
    assert run(base, tmp_path, *more) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/checkpoint.pth went on from {whole}/checkpoint.pth already" in said
    assert "all 3 epochs are trained already" in said


# ------------------------------------------------------------------------------------------------------------- parts


def test_the_newest_few_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    assert store.newest() == (None, "")
    for number in range(5):
        store.save({"number": number}, *(["stays.pth"] if number == 1 else []))
    names = ("checkpoint.pth", "checkpoint_previous1.pth", "checkpoint_previous2.pth", "stays.pth")
    assert [read_checkpoint(tmp_path / name)["number"] for name in names] == [4, 3, 2, 1]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    for name in names[:3]:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint.pth: damaged.*previous2.pth: damaged.*Remove them"):
        store.newest()
    with pytest.raises(CheckpointError, match="keep_checkpoints=0"):
        CheckpointStore(tmp_path, 0)


def test_what_was_kept_once_is_found_where_fewer_are_kept(tmp_path):
    many, one = CheckpointStore(tmp_path, keep=4), CheckpointStore(tmp_path, keep=1)
    for number in range(4):
        many.save({"number": number})
    for name in ("checkpoint.pth", "checkpoint_previous1.pth", "checkpoint_previous2.pth"):
        (tmp_path / name).write_bytes(b"")
    content, path = one.newest()
    assert (content["number"], path) == (0, str(tmp_path / "checkpoint_previous3.pth"))


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(self, other):
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    store = CheckpointStore(tmp_path, keep=2)
    for number in range(3):
        store.save({"number": number})
    names = ("checkpoint.pth", "checkpoint_previous1.pth")
    assert [read_checkpoint(tmp_path / name)["number"] for name in names] == [2, 1]


def test_every_flipped_bit_is_noticed(tmp_path):
    save_checkpoint({"model": {"w": torch.randn(500)}, "epoch": 1}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    weights = read_checkpoint(tmp_path / "a.pth")["model"]["w"]
    for place in range(0, len(content), 97):
        (tmp_path / "b.pth").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            found = read_checkpoint(tmp_path / "b.pth")
        except CheckpointError:
            continue
        assert torch.equal(found["model"]["w"], weights)  # names and padding of the archive do not matter
        assert found["epoch"] == 1


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    save_checkpoint({"epoch": 1}, tmp_path / "a.pth")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"a.pth: cannot be written: .*No space left.*unchanged"):
        save_checkpoint({"epoch": 2}, tmp_path / "a.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert read_checkpoint(tmp_path / "a.pth")["epoch"] == 1


ORDER = {"dataset_size": 10, "world_size": 1, "batch_size": 2, "accumulate": 1, "steps_per_epoch": 5}


def training(kind, order=ORDER, epochs=4, **more):
    """A state of a training of one weight; `steps` takes steps of it."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), 0.5)
    schedule = build_schedule(optimizer, order["steps_per_epoch"], epochs, kind=kind, **more)
    return TrainingState(model, optimizer, schedule, torch.amp.GradScaler(enabled=False), None, {}, order)


def steps(state, count, skipped=()):
    """Takes steps and returns their learning rates."""
    rates = []
    for number in range(count):
        rates.append(state.optimizer.param_groups[0]["lr"])
        state.step, state.batch = state.step + 1, state.batch + 1
        if number not in skipped:
            state.optimizer.step()
            state.schedule.step()
        if state.batch == state.data_order["steps_per_epoch"]:
            state.finish_epoch()
    return rates


def gone_on(before, state):
    """The state after it has read what the one before wrote."""
    state.load_state_dict(before.state_dict(), "a.pth")
    return state


SCHEDULES = {"step": {"drop": (1, 2), "warmup_steps": 3}, "cosine": {}, "onecycle": {}}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("changed", [{"world_size": 2}, {"batch_size": 4}, {"accumulate": 2}])
@pytest.mark.parametrize("skipped", [(), (1, 6)])
def test_a_schedule_goes_back_with_its_epoch(kind, changed, skipped, recwarn):
    whole, before = training(kind, **SCHEDULES[kind]), training(kind, **SCHEDULES[kind])
    rates = steps(whole, 20)
    steps(before, 8, skipped)
    state = gone_on(before, training(kind, ORDER | changed, **SCHEDULES[kind]))
    assert (state.epoch, state.batch, state.step, state.schedule.last_epoch) == (1, 0, 5, 5)
    assert state.schedule.get_last_lr() == [rates[5]]
    assert steps(state, 15) == rates[5:]
    assert state.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("taken", [3, 5, 8, 20])
def test_a_schedule_goes_on_where_it_was(kind, taken):
    """Skipped steps hold it back, then as before; a checkpoint from before `accumulate` was written says no less."""
    whole, before = training(kind, **SCHEDULES[kind]), training(kind, **SCHEDULES[kind])
    rates = steps(whole, 20, skipped=(1,))
    steps(before, taken, skipped=(1,))
    content = before.state_dict()
    del content["sampler"]["accumulate"]
    state = training(kind, **SCHEDULES[kind])
    state.load_state_dict(content, "a.pth")
    assert (state.step, state.batch) == (taken, taken % 5)
    assert steps(state, 20 - taken) == rates[taken:]
    assert state.schedule.last_epoch == 19


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_first_step_after_a_change_of_the_schedule_is_of_the_new_one(kind):
    before = training(kind, **SCHEDULES[kind])
    steps(before, 10)
    longer = training(kind, epochs=9, **SCHEDULES[kind])
    expected = steps(training(kind, epochs=9, **SCHEDULES[kind]), 45)[10]
    assert gone_on(before, longer).optimizer.param_groups[0]["lr"] == expected
    halved = training(kind, ORDER | {"steps_per_epoch": 3}, **SCHEDULES[kind])
    expected = steps(training(kind, halved.data_order, **SCHEDULES[kind]), 12)[6]
    assert gone_on(before, halved).optimizer.param_groups[0]["lr"] == expected
    assert gone_on(before, training(kind, epochs=1, **SCHEDULES[kind])).epoch == 2  # nothing is left to do


@pytest.mark.parametrize(("kind", "other"), [("step", "onecycle"), ("onecycle", "cosine"), ("cosine", "step")])
def test_another_kind_of_schedule_starts_from_its_own_rates(kind, other):
    before = training(kind, **SCHEDULES[kind])
    steps(before, 8)
    state = gone_on(before, training(other, **SCHEDULES[other]))
    assert steps(state, 12) == steps(training(other, **SCHEDULES[other]), 20)[8:]


def test_the_scale_of_gradients_is_kept():
    before, state = training("step"), training("step")
    before.scaler, state.scaler = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (2.0, 65536.0))
    assert gone_on(before, state).scaler.get_scale() == 2.0


def test_an_average_that_a_checkpoint_lacks_starts_from_its_weights():
    before, state = training("step"), training("step")
    state.ema = build_ema(state.model, 0.9)
    state.model.load_state_dict(before.model.state_dict())  # as the caller does
    gone_on(before, state)
    assert equal(state.ema.module.state_dict(), before.model.state_dict())


@pytest.mark.parametrize(("main", "corrupt"), [(True, 3), (False, 0)])
def test_corrupt_images_go_on_being_counted_in_one_process(monkeypatch, main, corrupt):
    """A checkpoint holds those of all processes together."""
    before = training("step")
    steps(before, 2)
    before.corrupt_images = 3
    monkeypatch.setattr(util.training.state, "is_main", lambda: main)
    assert gone_on(before, training("step")).corrupt_images == corrupt


def test_a_checkpoint_with_the_former_names_goes_on():
    """Older ones speak of pictures, broken ones and processes."""
    before = training("step")
    steps(before, 2)
    before.corrupt_images = 3
    content = before.state_dict()
    content["broken"] = content.pop("corrupt_images")
    order = content["sampler"]
    content["sampler"] = {"processes": order.pop("world_size"), "pictures": order.pop("dataset_size"), **order}
    state = training("step")
    state.load_state_dict(content, "a.pth")
    assert (state.batch, state.corrupt_images) == (before.batch, 3)
    content["sampler"]["pictures"] += 1  # another data set: the epoch begins anew
    state = training("step")
    state.load_state_dict(content, "a.pth")
    assert state.batch == 0


def test_a_sampler_goes_on_where_it_was():
    sampler = TrainSampler(11, rank=1, world_size=2, seed=3)
    sampler.epoch = 4
    all_of_them = list(sampler)
    for start in range(7):
        sampler.start = start
        assert list(sampler) == all_of_them[start:]
        assert len(sampler) == 6


# --------------------------------------------------------------------------------------------------- whole processes


def harness(name, *words):
    """Runs one of tests/harness."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m", f"tests.harness.{name}", *words]
    done = subprocess.run(start, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-10000:]
    return done.stdout


def test_trainings_that_are_killed_go_on_exactly():
    said = harness("kill", "--kills", "1", "--processes", "1", "2", "--num_images", "12")
    assert said.count("bit for bit") == 2


def test_processes_stop_together():
    assert "stopped together" in harness("preempt")


def test_processes_that_see_different_files_stop_together():
    found = json.loads(harness("agree"))
    for case in ("url_of_one_machine", "url_of_two_machines_one_of_which_has_it"):
        assert found[case] == [5, 5], case
    assert found["url_that_one_process_reads_alone"] == [None, 5]
    assert found["killed_while_it_downloads"] == [None, 5]
    count = Counter(path.split("?")[-1] for path in found["requests"])
    assert count == {"one": 1, "two": 2, "alone": 1, "/absent.pth": 1, "/stall/model.pth": 2}
    assert found["gone_on"] == [7, 7]
    assert found["shapes"] == [2, 2]
    for case, who, said in (
        ("url_that_one_machine_cannot_reach", 0, r"absent.pth: cannot be downloaded.*404"),
        ("gone_on_unseen", 1, "output/checkpoint.pth: there is no such checkpoint"),
        ("newest_unseen", 1, "output/checkpoint.pth: there is no such checkpoint"),
        ("file_of_one", 1, "mine.pth: there is no such checkpoint"),
        ("full_disk", 0, "No space left"),
    ):
        assert re.search(said, found[case][who]), case
        assert re.match(rf"process {who}: .*{said}", found[case][1 - who]), case
    assert "All machines have to see the same output/checkpoint.pth" in found["gone_on_unseen"][0]
    assert found["file_that_differs"][0] == found["file_that_differs"][1]
    assert "process 1 finds another file" in found["file_that_differs"][0]
    assert found["any_error"] == ["process 1: division by zero. Divide by less", None]


def test_evaluation_does_not_depend_on_processes_and_batches():
    found = json.loads(harness("evaluate"))
    assert 0.05 < found["AP"] < 0.95
    assert found["processes"] == [1, 2, 3]
    assert found["batches"] == [1, 2, 4]
