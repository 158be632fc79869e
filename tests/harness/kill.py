"""Kills trainings at random moments and compares what comes out with trainings that nobody touched.

usage: python -m tests.harness.kill [--kills 30] [--processes 1 2] [--num_images 24] [--workers 0] [--seed 0]

Half of the kills come while a checkpoint is being written. In two processes, half of them hit one process alone, which
the other one has to notice. After every kill the same command is started again, as torchrun --max_restarts does.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.harness.forked import Forked, prepare
from util.checkpoints.files import read_checkpoint
from util.checkpoints.store import CheckpointStore

EVERY = 2
"""Steps between saves."""
ACCUMULATE = 2
"""Batches of a step, in the config."""
MEASURED = ("seconds", "train_seconds", "train_waiting", "test_seconds", "test_waiting", "ema_test_seconds",
            "ema_test_waiting")  # fmt: skip


class Trial:
    """Kills one kind of run, over and over, until enough kills are counted.

    Args:
        folder: for everything that is written.
        arguments: of main.py, without the output folder.
        processes: how many train together.
        seed: of the moments.
    """

    def __init__(self, folder: Path, arguments: list[str], processes: int, seed: int):
        self.folder, self.arguments, self.processes = folder, arguments, processes
        self.random = random.Random(seed)
        self.kills = self.inside_saves = self.trainings = self.lost = 0
        self.whole = folder / "whole"
        start = time.monotonic()
        status = self.run(self.whole).wait()
        self.seconds = time.monotonic() - start
        expect(set(status) == {0}, f"the uninterrupted training ended with {status}", self.whole)

    def run(self, output: Path) -> Forked:
        """Starts, or goes on with, the training in a folder."""
        output.mkdir(exist_ok=True)
        return Forked([*self.arguments, "--output_dir", str(output)], self.processes, output / "said.txt")

    def until(self, kills: int):
        """Trains and kills until there were so many kills, and compares every training when it is through."""
        while self.kills < kills:
            output = self.folder / f"killed{self.trainings}"
            while True:
                run = self.run(output)
                done = not self.kill(run, output) if self.kills < kills else True
                status = run.wait()
                if done:
                    expect(set(status) == {0}, f"it ended with {status}", output)
                    break
                self.kills += 1
                self.inside_saves += (output / "checkpoint.tmp").exists()
                self.count_lost(output)
            self.compare(output)
            self.trainings += 1

    def kill(self, run: Forked, output: Path) -> bool:
        """Kills at a random moment; whether there was anything left to kill."""
        if self.random.random() < 0.5:
            end = time.monotonic() + self.random.uniform(0, self.seconds)
            while time.monotonic() < end and run.alive():
                time.sleep(0.001)
        else:
            self.wait_for_save(run, output)
        if not run.alive():
            return False
        some = None if self.random.random() < 0.5 else [self.random.randrange(self.processes)]
        run.send(signal.SIGKILL, some)
        return True

    def wait_for_save(self, run: Forked, output: Path):
        """Until the training is within one of its next few saves, or has ended."""
        for _ in range(self.random.randint(1, 6)):
            while not (output / "checkpoint.tmp").exists():
                if not run.alive():
                    return
            time.sleep(self.random.uniform(0, 0.01))

    def count_lost(self, output: Path):
        """Compares what is saved with how far the training had come."""
        content, _ = CheckpointStore(output, 3).newest()
        lines = re.findall(r" epoch (\d+) (\d+)/(\d+)  ", (output / "info.txt").read_text())
        if not lines:
            return
        epoch, batch, length = map(int, lines[-1])
        saved = content["epoch"] * length + content["sampler"]["batch"] if content else 0
        steps = -(-(epoch * length + batch - saved) // ACCUMULATE)
        self.lost = max(self.lost, steps)
        expect(steps <= EVERY, f"{steps} steps were lost, at epoch {epoch}, batch {batch}", output)

    def compare(self, output: Path):
        """A training that was killed and the one that was not."""
        ours, theirs = (read_checkpoint(path / "checkpoint.pth") for path in (self.whole, output))
        for key in ("model", "ema", "optimizer", "schedule", "epoch", "step", "random", "best"):
            expect(equal(ours[key], theirs[key]), f"{key} differs from that of the uninterrupted training", output)
        mine, other = (journal(path / "log.txt") for path in (self.whole, output))
        expect(mine == other, "the journals differ", output)


def journal(path: Path) -> dict[int, dict]:
    """What is said of each epoch, without what is measured with a clock."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return {entry["epoch"]: {k: v for k, v in entry.items() if k not in MEASURED} for entry in entries}


def equal(one, other) -> bool:
    """Bit for bit, in whatever containers."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def expect(ground_truth: bool, message: str, output: Path):
    """Ends the harness with what went wrong, and what was said last."""
    if not ground_truth:
        said = (output / "said.txt").read_text()[-3000:]
        sys.exit(f"{output}: {message}\n{said}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--num_images", type=int, default=24, help="of an epoch")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for processes in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            base = prepare(Path(folder), args.num_images)
            more = ["--num_workers", str(args.workers), "--save_every_steps", str(EVERY)]
            trial = Trial(Path(folder), [*base, *more], processes, args.seed)
            trial.until(args.kills)
            print(
                f"{processes} processes: {trial.kills} kills, {trial.inside_saves} of them inside a save; "
                f"{trial.trainings} trainings equal to the one of {trial.seconds:.1f} s that nobody touched, bit for "
                f"bit; at most {trial.lost} steps lost at a kill, saved every {EVERY}",
                flush=True,
            )


if __name__ == "__main__":
    main()
