"""main.py with something wrong in it: `python -m tests.harness.faulty FAULT [arguments of main.py]`."""

import sys

from util.cli.arguments import parse_arguments
from util.processes.ending import Ending

if __name__ == "__main__":  # as main.py begins
    ENDING, ARGUMENTS = Ending(), parse_arguments(sys.argv[2:])
    print("begins", flush=True)

import os
import threading
import time

import main as program
import util.processes.ending
from datasets.coco import DetectionDataset
from util.training.stepper import Stepper

TAKE = Stepper.take


def fail(*_, **__):
    """Fails, in a way that nobody foresees."""
    raise AssertionError("on purpose")


def wait(*_, **__):
    """Waits for what never comes."""
    print("here it waits", flush=True)
    time.sleep(3600)


def take_and_fail_later(self, *arguments):
    """Fails in the second process at the third batch, as long as torchrun has not started it anew."""
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], self.state.batch) == ("1", "0", 3):
        fail()
    return TAKE(self, *arguments)


def training_fails():
    """An uncaught error in the first step."""
    Stepper.take = fail


def training_waits():
    """A step that never ends."""
    Stepper.take = wait


def loading_waits():
    """An image that a worker never has read."""
    DetectionDataset.__getitem__ = wait


def one_process_fails():
    """An uncaught error in one of two processes, while the other waits for it; started again, it comes later."""
    Stepper.take = take_and_fail_later
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "1"):
        time.sleep(2)


def evaluation_fails():
    """An uncaught error when all is detected."""
    program.CocoEvaluator.evaluate = fail


def evaluation_waits():
    """An image on which detection never ends."""
    program.CocoEvaluator.update = wait


def thread_lingers():
    """A thread that never ends, which Python waits for."""
    util.processes.ending.PATIENCE = 1.0
    threading.Thread(target=time.sleep, args=(3600,)).start()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    ENDING.run(program.main, ARGUMENTS)
