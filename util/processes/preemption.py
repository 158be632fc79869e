"""A training that is asked to make room: it finishes its step, saves, and leaves with a status that says so.

Imports nothing heavy: main.py listens before it imports PyTorch.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

EXIT_PREEMPTED = 75
"""Exit status of a training that was asked to stop and can go on from its checkpoint: EX_TEMPFAIL of sysexits.h."""
NAMES = {"SIGTERM": 1.0, "SIGUSR1": 1.0, "SIGINT": 0.2}
"""Of launchers, of clusters, and Ctrl-C at a terminal; and the time within which more of them are the same request."""


def known_signals(system: object = signal) -> dict[signal.Signals, float]:
    """Those of NAMES that there are: Windows has no SIGUSR1."""
    return {getattr(system, name): seconds for name, seconds in NAMES.items() if hasattr(system, name)}


SAME_SECONDS = known_signals()
"""Signals that come within this time are one request: a launcher and its cluster often both send one, and a launcher
hands on the Ctrl-C that its processes hear too. Sooner than that, nobody presses it again."""
SIGNALS = tuple(SAME_SECONDS)


class PreemptedError(Exception):
    """Training was asked to stop. All processes raise it together."""


class Listener:
    """Calls a function with the number of every signal of some kinds that comes while it is entered.

    It is called in a thread of its own: also while the main thread waits for another process or a GPU. Of two that are
    entered, the inner one hears.
    """

    def __init__(self, numbers: tuple[int, ...], heard: Callable[[int], object]):
        self.numbers, self.heard = numbers, heard

    def __enter__(self) -> "Listener":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets no other thread listen
        receiving, self._sending = socket.socketpair()
        self._sending.setblocking(False)
        # Python writes the signal's number there as it comes, whatever the main thread is doing.
        self._wakeup = signal.set_wakeup_fd(self._sending.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in self.numbers}
        threading.Thread(target=self._listen, args=(receiving,), daemon=True).start()
        return self

    def __exit__(self, *_):
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._sending.shutdown(socket.SHUT_RDWR)  # ends the thread; loading processes hold the socket open
        self._sending.close()

    def _listen(self, receiving: socket.socket):
        with receiving:
            while byte := receiving.recv(1):
                if byte[0] in self.numbers:
                    self.heard(byte[0])


class StopRequest:
    """Listens for SIGNALS while it is entered; called, it says whether one has come to this process.

    A second signal ends the process at once.
    """

    def __init__(self):
        self._since = None
        self._listener = Listener(SIGNALS, self._hear)

    def __call__(self) -> bool:
        return self._since is not None

    def __enter__(self) -> "StopRequest":
        self._listener.__enter__()
        return self

    def __exit__(self, *_):
        self._listener.__exit__()

    def _hear(self, number: int):
        if self._since is None:
            self._since = time.monotonic()
            log.warning("%s: finishing the step; a second one ends at once", signal.Signals(number).name)
        elif time.monotonic() - self._since > SAME_SECONDS[signal.Signals(number)]:
            os._exit(128 + number)


def ignore_requests():
    """In a process that only loads data, where the training has to answer, or that is leaving already."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # of a process that was forked, it is the training's
