"""What training says: to the terminal, to info.txt, to log.txt, to TensorBoard."""

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from util.distributed import gather, is_main

log = logging.getLogger(__name__)


def setup_logging(output_dir: Path | None):
    """Messages of the main process go to the terminal and to info.txt; other processes say warnings only."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if output_dir is not None and is_main():
        handlers.append(logging.FileHandler(output_dir / "info.txt"))
    level = logging.INFO if is_main() else logging.WARNING
    logging.basicConfig(
        level=level, handlers=handlers, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    logging.captureWarnings(True)
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)


class Meter:
    """A series of numbers: the mean of the last ones, and of all."""

    def __init__(self, window: int = 20):
        self.recent = deque(maxlen=window)
        self.total, self.count = 0.0, 0

    def update(self, value: float):
        """Takes one more."""
        self.recent.append(value)
        self.total += value
        self.count += 1

    @property
    def smooth(self) -> float:
        """Mean of the last ones."""
        return sum(self.recent) / max(1, len(self.recent))

    @property
    def mean(self) -> float:
        """Mean of all."""
        return self.total / max(1, self.count)


class Progress:
    """Shows how a loop gets on: a bar on a terminal, a line every now and then elsewhere.

    Args:
        title: what the loop does.
        every: items between two plain lines.
        meters: numbers of the part of the loop that is done already; updated in place.
        done: how many items that was. The others' length is that of the whole loop.
    """

    def __init__(self, title: str, every: int = 50, meters: dict[str, Meter] | None = None, done: int = 0):
        self.title, self.every, self.done = title, every, done
        self.meters = {} if meters is None else meters

    def update(self, values: dict[str, float]):
        """Takes the numbers of one item."""
        for name, value in values.items():
            self.meters.setdefault(name, Meter()).update(value)

    def means(self) -> dict[str, float]:
        """The mean of every number over the whole loop."""
        return {name: meter.mean for name, meter in self.meters.items()}

    def means_over_processes(self) -> dict[str, float]:
        """The mean of every number over the loops of all processes, which may differ in length."""
        sums = {}
        for meters in gather({name: (meter.total, meter.count) for name, meter in self.meters.items()}):
            for name, (total, count) in meters.items():
                before = sums.get(name, (0.0, 0))
                sums[name] = (before[0] + total, before[1] + count)
        return {name: total / count for name, (total, count) in sums.items()}

    def over(self, items: Iterable, shown: tuple[str, ...] = ()) -> Iterator:
        """Passes the items on and shows the numbers named in `shown`, the time per item and what of it was waiting."""
        if is_main() and sys.stdout.isatty():
            yield from self._with_bar(items, shown)
        else:
            yield from self._with_lines(items, shown)

    def _timed(self, items: Iterable) -> Iterator:
        start = time.perf_counter()
        for item in items:
            waited = time.perf_counter() - start
            yield item
            self.update({"seconds": time.perf_counter() - start, "waiting": waited})
            start = time.perf_counter()

    def _numbers(self, shown: tuple[str, ...]) -> dict[str, str]:
        return {name: f"{self.meters[name].smooth:.4g}" for name in (*shown, "waiting") if name in self.meters}

    def _with_bar(self, items: Iterable, shown: tuple[str, ...]) -> Iterator:
        with (
            logging_redirect_tqdm(),
            tqdm(total=len(items), initial=self.done, desc=self.title, file=sys.stdout, leave=False) as bar,
        ):
            for item in self._timed(items):
                yield item
                bar.set_postfix(self._numbers(shown), refresh=False)
                bar.update()

    def _with_lines(self, items: Iterable, shown: tuple[str, ...]) -> Iterator:
        for done, item in enumerate(self._timed(items), self.done):
            yield item
            if "seconds" in self.meters and (done % self.every == 0 or done + 1 == len(items)):
                left = (len(items) - done - 1) * self.meters["seconds"].smooth
                numbers = "  ".join(f"{name} {value}" for name, value in self._numbers(shown).items())
                seconds = self.meters["seconds"].smooth
                log.info(
                    "%s %d/%d  %s  %.3g s/it  %.0f s left", self.title, done + 1, len(items), numbers, seconds, left
                )


class Journal:
    """One JSON object an epoch in log.txt, and the same numbers in TensorBoard where it is installed.

    Does nothing in other processes than the main one.
    """

    def __init__(self, output_dir: Path):
        self.file = output_dir / "log.txt" if is_main() else None
        self.board = _tensorboard(output_dir / "tensorboard") if is_main() else None

    def write(self, entry: dict):
        """Appends an epoch; its key "epoch" is the step in TensorBoard."""
        if self.file is None:
            return
        with self.file.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if self.board is not None:
            for name, value in entry.items():
                if isinstance(value, int | float) and name != "epoch":
                    self.board.add_scalar(name, value, entry["epoch"])
            self.board.flush()

    def read(self) -> list[dict]:
        """All epochs so far; of an epoch that was run twice, the later entry."""
        if self.file is None or not self.file.is_file():
            return []
        entries = [json.loads(line) for line in self.file.read_text().splitlines() if line.strip()]
        return [entry for _, entry in sorted({entry["epoch"]: entry for entry in entries}.items())]


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
