"""Which stages there are, and what each is told."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Stage:
    """One process with a time limit of its own.

    Attributes:
        title: what it is about.
        limit: seconds that it may take.
    """

    title: str
    limit: float


STAGES = {
    "build": Stage("The op is built for the GPUs of this machine", 90),
    "op": Stage("The op is right", 90),
    "speed": Stage("The op is fast", 60),
    "detectors": Stage("Detectors", 130),
    "training": Stage("Training steps", 110),
    "learning": Stage("Trainings", 150),
    "resume": Stage("A training that goes on", 80),
    "profile": Stage("Memory, races, counters", 90),
}
"""By name, in their order; each is the module of its name in this folder, with a function `run`."""
TOTAL = 480
"""Seconds for all of them."""


@dataclass(frozen=True)
class Setting:
    """What a stage is told.

    Attributes:
        device: "cuda"; or "cpu" for a dry run, in which all is as small as can be.
        out: folder of the results; what a stage makes lies in its subfolder `work`.
        limit: seconds that the stage has.
        data: folder of BCCD in COCO's layout, or None.
    """

    device: str
    out: Path
    limit: float
    data: Path | None = None

    @property
    def dry_run(self) -> bool:
        """Whether this is to show that the code runs, and measures nothing."""
        return self.device == "cpu"

    @property
    def work(self) -> Path:
        """A folder for what a stage makes."""
        folder = self.out / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
