"""How processes end: soon and with their status, whatever else still runs in them or beside them.

Imports nothing heavy: main.py begins with it before it imports PyTorch.
"""

import atexit
import contextlib
import faulthandler
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from util.processes.preemption import Listener, ignore_requests

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C where there is nothing to save: what a shell says of it."""
PATIENCE = 5.0
"""Seconds that the threads and exit functions of a program have after its work is done."""


class Ending:
    """The end of a program, made as its first object: of exit functions, the first to be registered runs last.

    Ctrl-C ends it at once with EXIT_INTERRUPTED and a line; a training listens for itself, see StopRequest.

    Attributes:
        status: the program's; None until its work begins.
    """

    def __init__(self):
        self.status = None
        atexit.register(self._last)
        Listener((signal.SIGINT,), _interrupted).__enter__()

    def run(self, work: Callable[..., int], *arguments):
        """Does the work and leaves with the status that it returns, or with 1 and a traceback after an error."""
        self.status = 1
        try:
            self.status = work(*arguments)
        finally:
            # Whoever sees another process leave may ask this one to, and its status must not change.
            ignore_requests()
            threading.Thread(target=self._hurry, daemon=True).start()
        sys.exit(self.status)

    def _hurry(self):
        time.sleep(PATIENCE)
        os.write(2, f"leaving with status {self.status}, without what still runs:\n".encode())
        faulthandler.dump_traceback()
        os._exit(self.status)

    def _last(self):
        """Leaves before Python takes its modules apart: a process group whose peers are gone, or its threads that wait
        for Python, can keep that from ending."""
        if self.status is None:
            return
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed pipe, a closed stream, none
                stream.flush()
        os._exit(self.status)


def _interrupted(number: int):
    log.warning("interrupted; nothing was being trained")
    os._exit(EXIT_INTERRUPTED)


@functools.cache
def kill_workers_at_exit():
    """Has this process kill what still loads data for it when it ends, where a traceback keeps a loader alive.

    `multiprocessing` would send SIGTERM, which workers ignore (a launcher sends it to them too, while training still
    needs their images), and would then wait for them for ever.
    """
    atexit.register(_kill_workers)  # later than multiprocessing's own, so it runs before


def _kill_workers():
    import multiprocessing

    if hasattr(signal, "SIGCHLD"):  # Windows has none
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error for each of them
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def end_with_parent():
    """Has a worker end as soon as the process that started it is gone, killed or not."""
    import multiprocessing

    def follow():
        multiprocessing.parent_process().join()
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()
