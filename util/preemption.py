"""A training that is asked to make room: it finishes its step, saves, and leaves with a status that says so."""

import logging
import os
import signal
import socket
import threading
import time

log = logging.getLogger(__name__)

EXIT_PREEMPTED = 75
"""Exit status of a training that was asked to stop and can go on from its checkpoint: EX_TEMPFAIL of sysexits.h."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_SECONDS = 1.0
"""Signals that come within this time are one request: a launcher and its cluster often both send one."""


class PreemptedError(Exception):
    """Training was asked to stop. All processes raise it together."""


class StopRequest:
    """Listens for SIGTERM and SIGUSR1 while it is entered; called, it says whether one has come to this process.

    A second signal ends the process at once, also while the main thread waits for another process or a GPU: a thread of
    its own hears the signals.
    """

    def __init__(self):
        self._since = None

    def __call__(self) -> bool:
        return self._since is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets no other thread listen
        self._heard, self._sending = socket.socketpair()
        self._sending.setblocking(False)
        # Python writes the signal's number there as it comes, whatever the main thread is doing.
        self._wakeup = signal.set_wakeup_fd(self._sending.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        threading.Thread(target=self._listen, args=(self._heard,), daemon=True).start()
        return self

    def __exit__(self, *_):
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._sending.close()  # ends the thread

    def _listen(self, heard: socket.socket):
        with heard:
            while byte := heard.recv(1):
                if byte[0] not in SIGNALS:
                    continue
                if self._since is None:
                    self._since = time.monotonic()
                    log.warning("%s: finishing the step; a second one ends at once", signal.Signals(byte[0]).name)
                elif time.monotonic() - self._since > SAME_SECONDS:
                    os._exit(128 + byte[0])


def ignore_requests():
    """In a process that only loads data, where the training has to answer, or that is leaving already."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
