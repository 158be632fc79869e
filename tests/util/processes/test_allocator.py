"""What is freed is kept for the tensors to come."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from util.processes.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
layers = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64), torch.nn.ReLU())
tokens = torch.ones(200_000, 64)


@torch.inference_mode()
def passes(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        layers(tokens) + tokens
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


passes(10)
print(passes(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_memory_that_is_kept_is_not_asked_for_again():
    mapped = {
        how: int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)
        for how in ("kept", "left")
    }
    assert mapped["kept"] < 0.1 * mapped["left"]
