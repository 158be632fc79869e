"""What a stage finds, written down as soon as it is there: one line of JSON each, in a file of the stage's own."""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch


class Results:
    """Appends to a stage's file; each line is complete when the call returns.

    Args:
        path: the file, which is begun anew.

    Attributes:
        failed: how many checks did not hold.
    """

    def __init__(self, path: Path):
        self.path, self.failed = path, 0
        path.write_text("", encoding="utf-8")

    def _write(self, kind: str, **content):
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **content}) + "\n")
        print(kind, *content.values(), file=sys.stderr, flush=True)

    def note(self, text: str):
        """Something to be known beside the figures, such as what was left out and why."""
        self._write("note", text=text)

    def row(self, table: str, **cells):
        """A row of a table; all rows of one table have the same columns."""
        self._write("row", table=table, cells={name: _shown(value) for name, value in cells.items()})

    def check(self, what: str, good: bool, said: str = ""):
        """Something that has to hold."""
        self.failed += not good
        self._write("check", what=what, good=bool(good), said=said)

    def goal(self, what: str, figure: float, limit: float, *, at_least: bool = False):
        """A figure beside what it should be, at most or at least; a goal that is missed is no failure."""
        met = figure >= limit if at_least else figure <= limit
        words = f"{'at least' if at_least else 'at most'} {limit:g}"
        self._write("goal", what=what, figure=f"{figure:.3g}", wanted=words, met=bool(met))

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What fails within is written down as a check that does not hold, and the stage goes on."""
        try:
            yield
        except Exception as error:  # whatever it is: the others are still to be tried
            traceback.print_exc()
            self.check(what, False, f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}")


def _shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def distance(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference over the norm of what it should be, in float64 on the CPU; infinite where not finite."""
    ours, exact = ours.detach().double().cpu(), exact.detach().double().cpu()
    if not ours.numel():
        return 0.0
    difference = ((ours - exact).norm() / exact.norm().clamp(min=1e-30)).item()
    return difference if torch.isfinite(ours).all() else float("inf")


def read_results(path: Path) -> list[dict]:
    """The lines of a stage's file; the last one may be cut off."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries
