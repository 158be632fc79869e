"""How a command begins and ends: devices and processes before it, an exit status after it."""

import logging
from argparse import Namespace
from collections.abc import Callable

import torch

from util.checkpoints.files import CheckpointError
from util.config import ConfigError
from util.files.writing import UnwritableError, storage_problem
from util.processes.allocator import keep_freed_memory
from util.processes.distributed import init_processes, leave_processes
from util.processes.preemption import EXIT_PREEMPTED, PreemptedError
from util.reporting.logger import setup_logging
from util.tensors.determinism import determinism_advice, make_deterministic
from util.tensors.precision import allow_tf32
from util.tensors.shared_memory import SharedMemoryError
from util.training.memory_check import memory_advice
from util.training.stepper import TrainingDivergedError

log = logging.getLogger(__name__)

EXIT_REFUSED = 2
"""Exit status where what was asked for cannot be done; a line says why."""


def begin_program(args: Namespace):
    """Chooses the device (`args.device` where none is named), joins the other processes, sets PyTorch up."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    init_processes(args.device)
    if args.device == "cpu":
        keep_freed_memory()
    allow_tf32(args.tf32 and args.device == "cuda")
    setup_logging(None)
    if args.deterministic:
        make_deterministic()


def exit_status(work: Callable[[], object], *refusals: type[Exception]) -> int:
    """Does the work and leaves the other processes; returns the exit status.

    Args:
        refusals: errors whose message says all that a user needs, beside those of util.

    Raises:
        Exception: what nobody foresaw; it comes with a traceback.
    """
    foreseen: tuple[type[Exception], ...] = (
        ConfigError,
        CheckpointError,
        SharedMemoryError,
        TrainingDivergedError,
        UnwritableError,
        *refusals,
    )
    status = 0
    try:
        work()
    except foreseen as error:
        log.error("%s", error)
        return EXIT_REFUSED
    except PreemptedError as request:
        log.warning("%s; the same command goes on from there", request)
        status = EXIT_PREEMPTED
    except RuntimeError as error:
        advice = memory_advice(error) or determinism_advice(error)
        if advice is None:
            raise
        log.error("%s", advice)
        return EXIT_REFUSED
    except OSError as error:
        problem = storage_problem(error)
        if problem is None:
            raise
        log.error("%s: %s", error.filename or "a file", problem)
        return EXIT_REFUSED
    leave_processes()
    return status
