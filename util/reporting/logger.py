"""What training says: to the terminal, to info.txt, to log.txt, and to who else keeps its numbers."""

import json
import logging
import math
import sys
from contextlib import suppress
from pathlib import Path

from util.files.console import show_any_character
from util.files.writing import append_line, storage_problem, storing
from util.processes.distributed import is_main
from util.reporting.trackers import close_trackers, open_trackers

log = logging.getLogger(__name__)


class TerminalHandler(logging.StreamHandler):
    """Goes on at standard error when nobody reads its stream any more: Ctrl-C ends the `tee` of `main.py | tee` too."""

    def handleError(self, record: logging.LogRecord):  # noqa: N802 (logging calls it)
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
        elif self.stream is not sys.stderr:
            self.stream = sys.stderr
            self.emit(record)


class InfoHandler(logging.FileHandler):
    """Writes to info.txt; where that cannot be done, a full disk say, it is said once, and what is said goes on."""

    def __init__(self, path: Path):
        with storing(path):
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.told = False

    def handleError(self, record: logging.LogRecord):  # noqa: N802 (logging calls it)
        problem = storage_problem(sys.exc_info()[1])
        if problem is None:
            super().handleError(record)
        elif not self.told:
            self.told = True  # before it is said, which comes here too
            log.warning("%s: cannot be written, and lacks what is said from here on: %s", self.baseFilename, problem)

    def close(self):
        """Lets go of the file; what it could not take has been said."""
        with suppress(OSError):
            super().close()


def setup_logging(output_dir: Path | None):
    """Messages of the main process go to the terminal and to info.txt; other processes say warnings only.

    Raises:
        UnwritableError: there can be no info.txt.
    """
    show_any_character()
    handlers: list[logging.Handler] = [TerminalHandler(sys.stdout)]
    if output_dir is not None and is_main():
        handlers.append(InfoHandler(output_dir / "info.txt"))
    level = logging.INFO if is_main() else logging.WARNING
    logging.basicConfig(
        level=level, handlers=handlers, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    logging.captureWarnings(True)
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)


def read_journal(path: Path) -> tuple[list[dict], list[str]]:
    """The epochs in a log.txt, in their order; of an epoch that was run twice, the later entry.

    Returns:
        the entries, each with its "epoch"; and a line about everything in the file that is none, a line torn by a crash
        say, which is left out. Nothing of either where there is no file.
    """
    if not path.is_file():
        return [], []
    entries, problems = {}, []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("epoch"), int):
            entries[entry["epoch"]] = entry
        else:
            what = "its epoch is left out of curves and of the best so far; remove the line to be rid of this message"
            problems.append(f"{path}, line {number}: no entry of an epoch ({line[:20]!r}...): {what}")
    return [entry for _, entry in sorted(entries.items())], problems


def journal_points(entries: list[dict], name: str) -> list[tuple[int, float]]:
    """(epoch, number) of the epochs that have a number of this name; an AP of -1 is none."""
    found = [(entry["epoch"], entry[name]) for entry in entries if isinstance(entry.get(name), int | float)]
    return [point for point in found if math.isfinite(point[1]) and not ("AP" in name and point[1] < 0)]


class Journal:
    """One JSON object an epoch in log.txt, and the same numbers wherever `track` says.

    Does nothing in other processes than the main one.
    """

    def __init__(self, output_dir: Path):
        self.folder = output_dir
        self.file = output_dir / "log.txt" if is_main() else None
        self.trackers = []
        self.said = set()

    def track(self, wandb: str | None, config: dict):
        """From now on TensorBoard and Weights & Biases get the numbers too, as far as they are there.

        Args:
            wandb: project at Weights & Biases, or None.
            config: of the training, plain values.
        """
        if self.file is not None:
            self.trackers = open_trackers(self.folder, wandb, config)

    def write(self, entry: dict):
        """Appends an epoch; its key "epoch" is the step elsewhere.

        Raises:
            UnwritableError: the disk is full, say.
        """
        if self.file is None:
            return
        append_line(self.file, json.dumps(entry))
        numbers = {name: value for name, value in entry.items() if isinstance(value, int | float) and name != "epoch"}
        for tracker in list(self.trackers):
            try:
                tracker.write(numbers, entry["epoch"])
            except Exception as error:  # whatever a tracker stumbles over, training goes on
                problem = storage_problem(error)
                reason = f"{self.folder}: {problem}" if problem else error or type(error).__name__
                log.warning("%s is left: %s", type(tracker).__name__, reason)
                self.trackers.remove(tracker)

    def close(self):
        """Nobody else gets numbers any more; the file stays open to more."""
        close_trackers(self.trackers)

    def read(self) -> list[dict]:
        """All epochs so far, see `read_journal`. What is damaged is said once."""
        entries, problems = read_journal(self.file) if self.file is not None else ([], [])
        for problem in problems:
            if problem not in self.said:
                log.warning("%s", problem)
                self.said.add(problem)
        return entries

    def best(self, prefix: str) -> dict | None:
        """The epoch so far with the best AP among those whose numbers have this prefix: its numbers, without it."""
        scored = [entry for entry in self.read() if f"{prefix}AP" in entry]
        if not scored:
            return None
        best = max(scored, key=lambda entry: entry[f"{prefix}AP"])
        return {name.removeprefix(prefix): value for name, value in best.items() if name.startswith(prefix)}
