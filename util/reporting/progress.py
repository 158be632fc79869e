"""How a loop gets on: one line with its numbers, its rate, its memory and the time that it will take."""

import logging
import sys
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from util.processes.distributed import gather_objects, is_main

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


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
        more: how many loops of this length are to follow.

    Attributes:
        images: how many an item holds, with those of all other processes; told by who runs the loop.
    """

    def __init__(
        self, title: str, every: int = 50, meters: dict[str, Meter] | None = None, done: int = 0, more: int = 0
    ):
        self.title, self.every, self.done, self.more = title, every, done, more
        self.meters = {} if meters is None else meters
        self.images = Meter()

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
        for meters in gather_objects({name: (meter.total, meter.count) for name, meter in self.meters.items()}):
            for name, (total, count) in meters.items():
                before = sums.get(name, (0.0, 0))
                sums[name] = (before[0] + total, before[1] + count)
        return {name: total / count for name, (total, count) in sums.items()}

    def over(self, items: Collection, shown: tuple[str, ...] = ()) -> Iterator:
        """Passes the items on and shows the numbers named in `shown`, each loss, the rate, what of the time was
        waiting for items, memory, and the time left."""
        if is_main() and sys.stdout.isatty():
            yield from self._with_bar(items, shown)
        else:
            yield from self._with_lines(items, shown)

    def _timed(self, items: Collection) -> Iterator:
        start = time.perf_counter()
        for item in items:
            waited = time.perf_counter() - start
            yield item
            self.update({"seconds": time.perf_counter() - start, "waiting": waited})
            start = time.perf_counter()

    def _has_times(self) -> bool:
        """Not at the first item: an item's time is known when the next one is asked for."""
        return "seconds" in self.meters and bool(self.meters["seconds"].recent)

    def line(self, done: int, total: int, shown: tuple[str, ...] = ()) -> str:
        """What is to be said after `done` of `total` items. A terminal cuts its end: what is looked for comes first."""
        seconds, waiting = (self.meters[name].smooth for name in ("seconds", "waiting"))
        names = ["loss", *main_losses(self.meters), *shown]
        parts = [f"{self.title} {done}/{total}"]
        if self.images.count:
            parts.append(f"{self.images.smooth / max(seconds, 1e-9):.3g} images/s")
        left = (total - done) * seconds
        in_all = f", {format_duration(left + self.more * total * seconds)} in all" if self.more else ""
        parts.append(f"{format_duration(left)} left{in_all}")
        parts += [f"{name} {self.meters[name].smooth:.4g}" for name in names if name in self.meters]
        parts.append(f"{seconds:.3g} s/it")
        parts.append(f"{100 * waiting / max(seconds, 1e-9):.0f} % waiting")
        parts.append(f"peak {peak_memory() / 1e9:.1f} GB")
        return "  ".join(parts)

    def _with_bar(self, items: Collection, shown: tuple[str, ...]) -> Iterator:
        total = len(items)
        layout = {"bar_format": "{bar:8} {desc}", "dynamic_ncols": True, "leave": False, "file": sys.stdout}
        with (
            logging_redirect_tqdm(),
            tqdm(total=total, initial=self.done, desc=f"{self.title} {self.done}/{total}", **layout) as bar,
        ):
            for done, item in enumerate(self._timed(items), self.done):
                yield item
                if self._has_times():
                    bar.set_description_str(self.line(done + 1, total, shown), refresh=False)
                bar.update()

    def _with_lines(self, items: Collection, shown: tuple[str, ...]) -> Iterator:
        for done, item in enumerate(self._timed(items), self.done):
            yield item
            if self._has_times() and (done % self.every == 0 or done + 1 == len(items)):
                log.info("%s", self.line(done + 1, len(items), shown))


def main_losses(names: Iterable[str]) -> list[str]:
    """The losses that stand for all: those of earlier layers and of other places have longer names of the same kind."""
    losses = [name for name in names if name.startswith("loss_")]
    return [name for name in losses if not any(name.startswith(f"{shorter}_") for shorter in losses)]


def peak_memory() -> float:
    """The most bytes held so far: on the GPU where one is at work, else by this process. 0 where nothing tells."""
    if torch.cuda.is_initialized() and (held := torch.cuda.max_memory_allocated()):
        return held
    if resource is None:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def format_duration(seconds: float) -> str:
    """A time for people."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
