"""Stage 5: training steps: how many images a second, where the time goes, who waits for whom."""

import os
import statistics
import time
from collections.abc import Callable

import torch

from datasets.loader import Batch, build_dataset, build_loader
from datasets.shapes import make_shapes
from models import build_criterion, build_detector
from tools.dev.gpu.models import TINY, config_of, image_size
from tools.dev.gpu.results import Results
from tools.dev.gpu.stages import Setting
from tools.dev.gpu.waiting import profiled, synchronisations, waits_of_a_step
from util.config.registry import call_with_config
from util.measuring.benchmark import measure_training, peak_megabytes, time_repeats
from util.tensors.image_batch import ImageBatch
from util.tensors.precision import Precision
from util.training.benchmark import OBJECTS, training_step
from util.training.noise import noise_batch
from util.training.optimizer import build_optimizer, build_schedule
from util.training.state import TrainingState
from util.training.stepper import Stepper

NAMES = ("deformable_detr_r50", "dino_4scale_r50", "lite_dino_r50_h3l1_2p1x3_kda")
REPEATS = {2: 6, 8: 3}
"""Of each size of batch."""
ALLOWED = 2
"""Places of a step at which the host waits: the matching, and the reading of its numbers."""
BATCHES_READ = 30


def run(setting: Setting, results: Results):
    """The larger batch last: by then the smaller one is on record, should memory run out."""
    tiny = setting.dry_run
    for count in (2,) if tiny else REPEATS:
        for amp in (True, False):
            for name in TINY if tiny else NAMES:
                with results.attempt(f"{name}, N={count}, {'bfloat16' if amp else 'float32'}"):
                    Steps(setting, name, count, amp).measure(results)
    with results.attempt("data"):
        data(setting, results)


class Steps:
    """Training steps of one model on images of noise, as main.py takes them.

    Args:
        setting: of the stage.
        name: of a config.
        count: images of a step.
        amp: whether to autocast.
    """

    def __init__(self, setting: Setting, name: str, count: int, amp: bool):
        self.setting, self.name, self.count, self.cfg = setting, name, count, config_of(name)
        self.precision = Precision(setting.device, amp)
        self.model = build_detector(self.cfg).to(setting.device).train()
        self.criterion = build_criterion(self.cfg).train()
        self.optimizer = call_with_config(
            build_optimizer, self.cfg.optimizer, where=name, model=self.model, batch_size=count
        )
        self.clip_norm = self.cfg.training.get("clip_norm", 0.1)

    def measure(self, results: Results):
        """Writes down whole steps, parts of steps, and places at which the host waits."""
        device, repeats = self.setting.device, 1 if self.setting.dry_run else REPEATS[self.count]
        which = {"model": self.name, "format": self.precision.name, "N": self.count}
        step = self.whole_step()
        ms = 1e3 * statistics.median(time_repeats(step, device, repeats))
        busy, waits = profiled(step) if device == "cuda" else (float("nan"), [])
        figures = {"ms": ms, "images a second": 1e3 * self.count / ms, "peak MB": peak_megabytes(step, device)}
        more = {"share of it that the GPU is busy": busy, "waits of the host, ms": ", ".join(f"{x:.1f}" for x in waits)}
        results.row("whole steps", **which, **figures, **more)
        parts = measure_training(self.step_by_parts(), self.count, 1, device, repeats)["parts_ms"]
        results.row("parts of a step in ms, each waited for", **which, **parts)
        found = synchronisations(step)
        for place, often in found.items():
            results.row("where the host waits in a step", **which, place=place, often=often)
        total = found.total()
        if total > ALLOWED and device == "cuda":  # not always: an event for every operator takes seconds to read
            for name, ms in waits_of_a_step(step):
                results.row("who waits in a step that waits too often", **which, who=name, ms=ms)
        results.check(f"{', '.join(map(str, which.values()))}: waits", total <= ALLOWED, f"{total}, at most {ALLOWED}")

    def whole_step(self) -> Callable[[], object]:
        """A step from a batch in page-locked memory to the numbers of the log."""
        sizes = [image_size(self.setting)] * self.count
        images, targets = noise_batch(sizes, OBJECTS, self.cfg.model.num_classes, "cpu")
        targets = [target | {"image_id": torch.tensor(i)} for i, target in enumerate(targets)]
        batch = Batch(ImageBatch.of(images), targets, [])
        if self.setting.device == "cuda":
            batch = batch.pin_memory()
        schedule = call_with_config(
            build_schedule, self.cfg.schedule, where=self.name, optimizer=self.optimizer, steps_per_epoch=100
        )
        state = TrainingState(self.model, self.optimizer, schedule, self.precision.scaler, None, {}, {})
        stepper = Stepper(self.model, self.criterion, state, self.precision, self.clip_norm, 1, 10)
        return lambda: stepper.take(batch.to(self.setting.device), True, False)

    def step_by_parts(self) -> Callable:
        """The same on images that are on the device, part by part."""
        noise = noise_batch(
            [image_size(self.setting)] * self.count, OBJECTS, self.cfg.model.num_classes, self.setting.device
        )
        return training_step(self.model, self.criterion, self.optimizer, self.precision, self.clip_norm, *noise)


def data(setting: Setting, results: Results):
    """How many images a second can be read, cropped and resized as in a training, by all cores together."""
    folder, tiny = setting.work / "images", setting.dry_run
    make_shapes(folder, train=8 if tiny else 256, val=1)
    cfg = config_of(NAMES[0], {"data.root": str(folder)})
    dataset, workers = build_dataset(cfg, "train"), min(2 if tiny else 16, os.cpu_count())
    loader = build_loader(dataset, 2, workers, pin_memory=setting.device == "cuda")
    batches = iter(loader)
    next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        batch.to(setting.device)
        count += len(batch.targets)
        if count >= 2 * BATCHES_READ:
            break
    rate = count / (time.perf_counter() - start)
    results.row("reading images", processes=workers, images=count, **{"images a second": rate})
