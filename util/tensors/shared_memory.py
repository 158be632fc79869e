"""Memory that processes share: how much of it there is, and what helps where there is too little."""

import errno
import os
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path("/dev/shm")
"""Where Linux has it."""
PAGE = 4096
LOCKS = 16
"""Pages that the locks and queues of a loading process take, and a few more."""
REMEDY = "a container gets more with --shm-size=8g; less is needed with fewer --num_workers (0: none)"
SIGNS = ("unable to allocate shared memory", "unable to mmap", "killed by signal: Bus error", "out of shared memory")
"""What PyTorch says where it ran out."""


class SharedMemoryError(RuntimeError):
    """Too little shared memory; the message says how much there is and what helps."""


def free_shared_memory() -> int | None:
    """Bytes that are free; None where nothing tells."""
    if not (hasattr(os, "statvfs") and FOLDER.is_dir()):
        return None
    found = os.statvfs(FOLDER)
    return found.f_bavail * found.f_frsize


def _check(num_bytes: int, purpose: str, remedy: str):
    free = free_shared_memory()
    if free is not None and free < num_bytes:
        raise SharedMemoryError(f"{purpose} {num_bytes / 1e6:.2f} MB of shared memory, {_described(free)}; {remedy}")


def _described(free: int | None) -> str:
    return "which is used up" if free is None else f"and {FOLDER} has {free / 1e6:.2f} MB free"


def check_space_for_workers(workers: int):
    """Raises SharedMemoryError where there is no space for what loading processes need before they load anything."""
    _check(PAGE * LOCKS * workers, f"{workers} loading processes need at least", REMEDY)


def shared_bytes(num_bytes: int, purpose: str) -> Tensor:
    """(num_bytes,) uint8 that other processes see too.

    Args:
        purpose: what it is for, as the beginning of a message: "... needs".

    Raises:
        SharedMemoryError: there is not as much.
    """
    remedy = "a container gets more with --shm-size=8g; nothing is needed without --cache_mode"
    _check(num_bytes, purpose, remedy)
    try:
        return torch.empty(num_bytes, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise SharedMemoryError(f"{purpose} {num_bytes / 1e6:.2f} MB of shared memory; {remedy}") from error


def shared_memory_problem(error: Exception) -> str | None:
    """What is to be said of an error of a data loader that ran out of shared memory; None for one of another kind."""
    is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if not is_full and not any(sign in str(error) for sign in SIGNS):
        return None
    return f"loading processes need more shared memory, {_described(free_shared_memory())}; {REMEDY}"
