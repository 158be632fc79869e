"""The same numbers every time, also where PyTorch would take a faster kernel that adds up in changing order."""

import os
import re

import torch


def make_deterministic():
    """From now on, in this process. Call it before anything is computed on a GPU.

    An operation that has no deterministic kernel raises a RuntimeError; see `determinism_advice`.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def determinism_advice(error: RuntimeError) -> str | None:
    """Which operation is not deterministic, when an error says so; None when it says something else."""
    found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
    if found is None:
        return None
    return f"--deterministic: {found[1]} has no deterministic kernel on this device; train without it, or on the CPU"
