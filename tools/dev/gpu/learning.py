"""Stage 6: trainings: the quickstart on the GPU in bfloat16 and in float32 beside the CPU, and blood cells."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tools.dev.gpu.results import Results
from tools.dev.gpu.stages import ROOT, Setting

QUICK, CELLS = "config/small/lite_dino_r18_shapes.py", "config/small/lite_dino_r18_bccd.py"
TINY = ("schedule.epochs=1", "data.batch_size=2", "training.warm_up_step=True")
BELOW = 0.05
"""How much less AP than on the CPU is taken for the luck of a short training."""
MARGIN = 45.0
"""Seconds before the stage's limit at which trainings are asked to stop, to be evaluated as they are."""


@dataclass
class Training:
    """A process of main.py, and what it is to be called.

    Attributes:
        name: of its row.
        words: its command line behind `python main.py`.
        out: its output.
        begun: when, by time.monotonic.
        stopped: whether it was asked to stop before its end.
    """

    name: str
    words: list[str]
    out: Path
    begun: float = field(default_factory=time.monotonic)
    stopped: bool = False

    def __post_init__(self):
        self.process = self._start()

    def _start(self, *more: str) -> subprocess.Popen:
        command = [sys.executable, "main.py", *self.words, "--output_dir", str(self.out), *more]
        return subprocess.Popen(command, cwd=ROOT)

    def stop(self, deadline: float):
        """Waits until the deadline at most, and then asks it to stop."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stopped = True
            self.process.send_signal(signal.SIGTERM)

    def conclude(self):
        """Waits for its end, however it ends, and has what was stopped evaluated."""
        self.process.wait()
        if self.stopped:
            self.process = self._start("--eval")

    def result(self, results: Results) -> float | None:
        """Waits for its end; writes down and returns the AP."""
        status = self.process.wait()
        seconds = time.monotonic() - self.begun
        if status:
            results.check(self.name, False, f"main.py ended with {status}")
            return None
        numbers, epochs = self._numbers()
        figures = {"finished epochs": epochs, "seconds": seconds, "AP": numbers["AP"], "AP50": numbers["AP50"]}
        results.row("trainings, side by side", training=self.name, **figures)
        return numbers["AP"]

    def _numbers(self) -> tuple[dict[str, float], int]:
        """The numbers of the last evaluation, and the finished epochs."""
        journal = self.out / "log.txt"
        entries = (
            [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()] if journal.is_file() else []
        )
        if self.stopped:
            return json.loads((self.out / "eval.json").read_text(encoding="utf-8"))["regular"], len(entries)
        last = entries[-1]
        return {name: last[f"test_{name}"] for name in ("AP", "AP50")}, len(entries)


def run(setting: Setting, results: Results):
    """All trainings at once: they need little of a GPU, and their speed is not what is asked."""
    deadline = time.monotonic() + setting.limit - MARGIN
    tiny = setting.dry_run
    images = setting.work / "shapes"
    if tiny:
        make_images(images)
    options = ["--coco_path", str(images), "--options", *TINY, "--num_workers", "0"] if tiny else []
    wanted = {
        "quickstart, bfloat16": ["-c", QUICK, "--device", setting.device, "--amp", *options],
        "quickstart, float32": ["-c", QUICK, "--device", setting.device, *options],
        "quickstart, float32, on the CPU": ["-c", QUICK, "--device", "cpu", *options],
    }
    if setting.data is not None:
        cells = ["-c", CELLS, "--coco_path", str(setting.data), "--device", setting.device, "--amp"]
        wanted["blood cells, bfloat16"] = cells
    else:
        results.note("No folder of BCCD was given (--data): blood cells were not trained.")
    begun = [Training(name, words, setting.work / f"training{i}") for i, (name, words) in enumerate(wanted.items())]
    for training in begun:
        training.stop(deadline)
    for training in begun:
        training.conclude()
    found = {training.name: training.result(results) for training in begun}
    beside = found["quickstart, float32, on the CPU"]
    for name in ("quickstart, bfloat16", "quickstart, float32"):
        if found[name] is not None and beside is not None:
            said = f"{found[name]:.3f}, {beside:.3f}"
            results.check(f"{name}: AP beside the CPU's", found[name] >= beside - BELOW, said)


def make_images(folder: Path):
    """A few images for a dry run."""
    from datasets.shapes import make_shapes

    make_shapes(folder, train=4, val=2)
