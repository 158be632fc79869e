"""Programs on a processor that has lesser instructions, as LEANDETR_CPU has the extension take this one for."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_with_instructions(instructions: str, program: str) -> str:
    """What a Python program prints in a process of its own; one that fails fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LEANDETR_CPU": instructions},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
