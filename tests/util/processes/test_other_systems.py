"""What Windows lacks, by stand-ins: nothing here has run there."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from util.processes.preemption import SIGNALS, known_signals

ROOT = Path(__file__).parents[3]
WITHOUT = """
import signal, sys
del signal.SIGUSR1, signal.SIGCHLD, signal.SIGKILL
sys.modules["fcntl"] = sys.modules["resource"] = None
import main
from util.processes.ending import _kill_workers
from util.processes.preemption import StopRequest, ignore_requests
with StopRequest() as asked:
    assert not asked()
_kill_workers()
ignore_requests()
"""


def test_signals_that_are_not_there_are_not_listened_for():
    windows = SimpleNamespace(SIGTERM=signal.SIGTERM, SIGINT=signal.SIGINT)
    assert known_signals(windows) == {signal.SIGTERM: 1.0, signal.SIGINT: 0.2}
    assert {signal.SIGTERM, signal.SIGINT} <= set(SIGNALS)


def test_without_the_modules_and_signals_of_unix():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
