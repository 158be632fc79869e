"""A training in small: shows within a minute or so that a set-up works, before a cluster is booked for it."""

import logging
import math
import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from util.checkpoints.store import NEWEST
from util.processes.distributed import barrier, is_main, world_size
from util.processes.preemption import PreemptedError
from util.reporting.progress import format_duration, peak_memory
from util.training.options import TrainingOptions

log = logging.getLogger(__name__)

STEPS = 2
"""Optimiser steps before training is left, and again after it went on."""
EVALUATED = 4
"""Images that each process evaluates."""


class StopAfter:
    """Asks to stop after so many batches, in a StopRequest's place. Listens for no signal: there is nothing to save."""

    def __init__(self, batches: float):
        self.left = batches

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0

    def __enter__(self) -> "StopAfter":
        return self

    def __exit__(self, *_):
        pass


def shorten_training(options: TrainingOptions) -> TrainingOptions:
    """Every step is shown, the epoch is evaluated, no step may be spoilt, and there is one stage."""
    return replace(options, eval_every=1, print_every=1, save_every_steps=None, patience=1, restart=None)


def dry_run_images(training: bool, batch_size: int, accumulate: int) -> int:
    """How many images of a split all processes take together."""
    return world_size() * (2 * STEPS * accumulate * batch_size if training else EVALUATED)


def dry_run(args: Namespace, folder: Path, begin: Callable[[Namespace], Any]):
    """Trains a few steps, saves, goes on from there, evaluates; says whether all of that works.

    Args:
        args: the command line.
        folder: where everything is written. It is emptied first; the log stays there.
        begin: makes a Run of main.py for a command line.
    """
    start = time.perf_counter()
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)
    barrier()
    args = Namespace(**{**vars(args), "output_dir": str(folder), "cache_mode": False})
    doing = "training"
    try:
        stopped = begin(args)
        stopped.stop = StopAfter(STEPS * stopped.options.accumulate)
        with suppress(PreemptedError):
            stopped.train()
        del stopped
        doing = "going on from a checkpoint and evaluating"
        run = begin(args)
        run.stop = StopAfter(math.inf)
        state = run.train(introduced=True)
    except Exception:
        log.error("dry run: FAILED while %s, after %s; why:", doing, format_duration(time.perf_counter() - start))
        raise
    if is_main():
        found = verdict(run, state.step, (folder / NEWEST).stat().st_size)
        for path in folder.glob("*.pth"):
            path.unlink()
        log.info("dry run: PASSED in %s: %s", format_duration(time.perf_counter() - start), found)


def verdict(run, steps: int, size: int) -> str:
    """What a dry run found, in a sentence.

    Args:
        run: that went on from a checkpoint.
        steps: that were taken.
        size: of the checkpoint, in bytes.
    """
    entry, epochs = run.journal.read()[-1], run.cfg.schedule.epochs
    batches = run.splits.num_images["train"] // (run.cfg.data.batch_size * world_size())
    seconds = batches * entry["train_seconds"]
    corrupt = entry["train_corrupt_images"] + entry["test_corrupt_images"]
    evaluated = min(EVALUATED * world_size(), run.splits.num_images["val"])
    return (
        f"{steps} steps, loss {entry['train_loss']:.4g}; went on from a checkpoint of {size / 1e6:.0f} MB; "
        f"{evaluated} images evaluated; {corrupt} corrupt ones; {peak_memory() / 1e9:.1f} GB of memory at most. "
        f"At this pace the {batches} batches of an epoch take {format_duration(seconds)}, {epochs} epochs "
        f"{format_duration(epochs * seconds)}, evaluations aside"
    )
