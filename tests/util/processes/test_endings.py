"""Whatever ends a run, its processes are gone soon, with a status that says why, and none is left behind."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from datasets.loader import build_dataset, build_loader
from tests.harness.forked import prepare
from tests.harness.kill import equal, journal
from util.checkpoints.files import read_checkpoint
from util.config import load_config
from util.processes.distributed import agree_on_start
from util.processes.ending import EXIT_INTERRUPTED
from util.processes.preemption import EXIT_PREEMPTED, SAME_SECONDS

ROOT = Path(__file__).parents[3]
LIMIT = 120
"""Seconds for a run. It takes a few; one that hangs takes for ever."""
HURRIED = "without what still runs"
STATE = ("model", "ema", "optimizer", "schedule", "epoch", "step", "random", "best")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Arguments of a training of two epochs of three steps of two batches, with all that is random."""
    return [*prepare(tmp_path_factory.mktemp("base"), train=12, val=2), "--num_workers", "2"]


class Started:
    """A run in a process group of its own, read as it speaks."""

    def __init__(self, module, *words):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        start = [sys.executable, "-m", module, *map(str, words)]
        self.process = subprocess.Popen(start, cwd=ROOT, env=environment, start_new_session=True, **pipe)
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def send(self, number):
        """Sends a signal to all processes of the run, as launchers and terminals do."""
        os.killpg(self.process.pid, number)

    def until(self, text):
        """Waits until it has said something."""
        end = time.monotonic() + LIMIT
        while text not in self.said:
            assert self.reader.is_alive(), f"it ended before it said {text!r}:\n{self.said[-5000:]}"
            assert time.monotonic() < end, f"it did not say {text!r}:\n{self.said[-5000:]}"
            time.sleep(0.002)
        return self

    def ends(self) -> int:
        """Its status, once the last process that can write what is read here is gone."""
        self.reader.join(LIMIT)
        hangs = self.reader.is_alive()
        if hangs:
            self.send(signal.SIGKILL)
        assert not hangs, f"it hangs:\n{self.said[-5000:]}"
        return self.process.wait(LIMIT)


def run(fault, base, output, *more):
    """main.py, with something wrong in it or without."""
    start = ["tests.harness.faulty", fault] if fault else ["main"]
    return Started(*start, *base, "--output_dir", output, *more)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The output of a training that nothing happened to; where TensorBoard is installed, it has been written to."""
    output = tmp_path_factory.mktemp("whole")
    training = run(None, base, output)
    assert training.ends() == 0
    assert HURRIED not in training.said
    assert (output / "tensorboard").exists() == (importlib.util.find_spec("tensorboard") is not None)
    return output


@pytest.mark.parametrize(
    ("fault", "workers", "more"),
    [
        ("training_fails", 2, ()),
        ("training_fails", 0, ()),
        ("evaluation_fails", 2, ()),
        ("evaluation_fails", 2, ("--dry_run",)),
    ],
)
def test_an_error_nobody_foresaw(base, tmp_path, fault, workers, more):
    training = run(fault, base, tmp_path, "--num_workers", workers, *more)
    assert training.ends() == 1
    assert training.said.rstrip().endswith("AssertionError: on purpose")


def test_too_many_corrupt_images(tmp_path):
    base = prepare(tmp_path, train=8, val=1)
    for path in sorted((tmp_path / "data/train2017").iterdir())[:3]:
        path.write_bytes(b"")
    with (tmp_path / "tiny.py").open("a") as config:
        config.write("data['corrupt'] = dict(files=1, in_a_row=8)\n")
    training = run(None, base, tmp_path / "out", "--num_workers", 2)
    assert training.ends() == 2
    assert "2 images cannot be read" in training.said
    assert "Traceback" not in training.said
    assert HURRIED not in training.said


@pytest.mark.parametrize("task", ["--eval", "--dry_run"])
def test_what_ends_well(base, whole, tmp_path, task):
    resume = ("--resume", whole / "checkpoint.pth") if task == "--eval" else ()
    done = run(None, base, tmp_path, task, *resume)
    assert done.ends() == 0
    assert HURRIED not in done.said


def test_a_signal_to_all_processes_ends_a_training_that_goes_on_exactly(base, whole, tmp_path):
    for number, place in ((signal.SIGTERM, "epoch 0 2/6"), (signal.SIGINT, "epoch 1 2/6")):
        training = run(None, base, tmp_path).until(place)
        training.send(number)
        assert training.ends() == EXIT_PREEMPTED
        assert f"{number.name}: finishing the step" in training.said
        assert "the same command goes on from there" in training.said.splitlines()[-1]
        assert "Traceback" not in training.said
    assert run(None, base, tmp_path).ends() == 0
    ours, theirs = (read_checkpoint(path / "checkpoint.pth") for path in (whole, tmp_path))
    for key in STATE:
        assert equal(ours[key], theirs[key]), key
    assert journal(whole / "log.txt") == journal(tmp_path / "log.txt")


def test_a_second_interrupt_ends_a_training_at_once(base, tmp_path):
    training = run("training_waits", base, tmp_path).until("here it waits")
    training.send(signal.SIGINT)
    training.until("SIGINT: finishing the step; a second one ends at once")
    time.sleep(2 * SAME_SECONDS[signal.SIGINT])
    training.send(signal.SIGINT)
    assert training.ends() == EXIT_INTERRUPTED
    assert "Traceback" not in training.said


@pytest.mark.parametrize(
    ("fault", "place", "more"),
    [
        ("training_waits", "begins", ()),  # while PyTorch is imported
        ("evaluation_waits", "here it waits", ("--eval",)),
        ("training_waits", "here it waits", ("--dry_run",)),
    ],
)
def test_an_interrupt_where_nothing_is_to_be_saved(base, whole, tmp_path, fault, place, more):
    resume = ("--resume", whole / "checkpoint.pth") if "--eval" in more else ()
    interrupted = run(fault, base, tmp_path, *more, *resume).until(place)
    before = len(interrupted.lines)
    interrupted.send(signal.SIGINT)
    assert interrupted.ends() == EXIT_INTERRUPTED
    (line,) = interrupted.lines[before:]
    assert "interrupted; nothing was being trained" in line


def test_loaders_of_a_training_that_is_killed(base, tmp_path):
    training = run("loading_waits", base, tmp_path).until("here it waits")
    training.process.kill()  # the training alone
    assert training.ends() == -signal.SIGKILL


def test_what_does_not_end_is_left_and_the_status_stays(base, whole, tmp_path):
    done = run("thread_lingers", base, tmp_path, "--eval", "--resume", tmp_path / "none.pth")
    assert done.ends() == 2
    assert HURRIED in done.said


def test_loaders_go_on_when_a_launcher_asks_all_processes_to_stop(base):
    cfg = load_config(base[1], {"data.root": base[3]})
    loader = build_loader(build_dataset(cfg, "train"), 1, workers=2)
    batches = iter(loader)
    found = [next(batches), next(batches)]  # one of each worker: both are at work
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for worker in workers:
            os.kill(worker.pid, number)
    found += list(batches)
    assert len(found) == 12
    assert set(multiprocessing.active_children()) == set(workers)
    del batches, loader
    for worker in workers:
        worker.join(10)
    assert not multiprocessing.active_children()


# ------------------------------------------------------------------------------------------------------- two processes


def two_processes(base, output, *more, restarts):
    """torchrun on two processes, of which one fails the first time."""
    launcher = ["--standalone", "--nproc_per_node=2", f"--max_restarts={restarts}", "-m", "tests.harness.faulty"]
    words = ["one_process_fails", *base, "--output_dir", output, "--batch_size", 1, *more]
    return Started("torch.distributed.run", *launcher, *words)


def test_an_error_in_one_of_two_processes_ends_both_and_torchrun_starts_them_again(base, tmp_path):
    training = two_processes(base, tmp_path, "--save_every_steps", 1, "--options", "schedule.epochs=1", restarts=1)
    assert training.ends() == 0
    said = (tmp_path / "info.txt").read_text()
    assert "AssertionError: on purpose" in training.said
    assert "checkpoint.pth: going on after 0 epochs and 2 batches" in said
    assert "epoch 0 6/6" in said
    assert HURRIED not in training.said


def test_a_start_is_not_mistaken_for_an_earlier_one():
    """Whichever process comes late, and although the store remembers."""
    store, names = dist.HashStore(), []
    for late in (None, 0, 1, 2):
        found = {}

        def start(number, late=late, found=found):
            time.sleep(0.1 * (number == late))
            found[number] = agree_on_start(store, number, 3)

        threads = [threading.Thread(target=start, args=(number,), daemon=True) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert len(found) == 3
        assert len(set(found.values())) == 1
        names.append(found[0])
    assert len(set(names)) == 4


def test_an_error_in_one_of_two_processes_without_a_restart(base, tmp_path):
    training = two_processes(base, tmp_path, "--num_workers", 0, restarts=0)
    assert training.ends() == 1
    assert "AssertionError: on purpose" in training.said
