"""One epoch of training, and one evaluation. Knows no model, no loss and no data set by name."""

import contextlib
import logging
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader

from util.distributed import gather, mean_dict
from util.logger import Progress
from util.precision import Precision

log = logging.getLogger(__name__)

PATIENCE = 10
"""How many steps in a row may be thrown away because a number in them is not finite."""


class TrainingDivergedError(ArithmeticError):
    """Losses or gradients stopped being finite; the message says which and where."""


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    schedule,
    precision: Precision,
    *,
    epoch: int,
    clip_norm: float | None = None,
    accumulate: int = 1,
    average: nn.Module | None = None,
    print_every: int = 50,
) -> dict[str, float]:
    """Runs over the loader once.

    Args:
        model: detector, or its wrapper for several processes.
        criterion: (output, targets) -> (losses, metrics); see models.criteria.criterion.
        loader: of datasets.loader.Batch.
        schedule: stepped after every optimiser step.
        epoch: for the log.
        clip_norm: limit of the total gradient norm.
        accumulate: batches per optimiser step; their losses, each normalised by its own boxes, are averaged.
        average: moving average of the model, updated after every optimiser step.
        print_every: batches between two lines of progress.

    Returns:
        means over the epoch and over all processes: loss, every part of it, metrics, gradient norm; and how many
        pictures were broken and steps skipped.

    Raises:
        TrainingDivergedError: nothing finite came out for PATIENCE steps in a row.
    """
    model.train()
    criterion.train()
    device = precision.device
    progress = Progress(f"epoch {epoch}", print_every)
    broken = skipped = in_a_row = 0
    for number, batch in enumerate(progress.over(loader, shown=("loss", "class_error", "lr")), 1):
        for message in batch.broken:
            broken += 1
            log.warning("skipped a picture: %s", message)
        batch = batch.to(device)
        ends_step = number % accumulate == 0 or number == len(loader)
        with _unsynchronised(model, not ends_step):
            with precision.autocast():
                output = model(batch.images, batch.targets)
            losses, metrics = criterion(output, batch.targets)
            total = sum(losses.values())
            precision.backward(total / accumulate)

        numbers = mean_dict({"loss": total, **losses, **metrics})
        finite = math.isfinite(numbers["loss"])
        if finite and ends_step:
            numbers["grad_norm"] = precision.step(optimizer, model, clip_norm)
            finite = math.isfinite(numbers["grad_norm"]) or precision.scaler.is_enabled()
        if finite:
            in_a_row = 0
            progress.update({**numbers, "lr": optimizer.param_groups[0]["lr"]})
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            _report_divergence(numbers, batch.targets, in_a_row)
        if ends_step or not finite:
            optimizer.zero_grad()
        if ends_step:
            schedule.step()
            if average is not None and finite:
                average.update_parameters(_unwrapped(model))
    return {**progress.means(), "broken": sum(gather(broken)), "skipped": skipped}


def _report_divergence(numbers: dict[str, float], targets: list[dict], in_a_row: int):
    """Says which numbers of a step are not finite, and gives up after too many such steps."""
    bad = ", ".join(name for name, value in numbers.items() if not math.isfinite(value))
    pictures = ", ".join(str(int(target["image_id"])) for target in targets)
    message = f"a step was thrown away: not finite: {bad}; pictures of this process: {pictures}"
    log.warning(message)
    if in_a_row >= PATIENCE:
        remedy = "Lower optimizer.lr, lengthen schedule.warmup_steps, or train without --amp"
        raise TrainingDivergedError(f"{PATIENCE} steps in a row: {message}. {remedy}")


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _unsynchronised(model: nn.Module, active: bool):
    """While accumulating, processes need not exchange gradients."""
    if active and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    criterion: nn.Module | None,
    postprocess: Callable,
    loader: DataLoader,
    evaluator,
    precision: Precision,
    *,
    title: str = "eval",
    print_every: int = 50,
) -> dict[str, float]:
    """Detects on every picture of the loader and hands the detections to the evaluator.

    Args:
        criterion: None where there is no truth to compare with.
        postprocess: (output, sizes (B, 2)) -> results; see models.postprocess.
        evaluator: has update(results, targets); see datasets.coco_eval.

    Returns:
        means of the losses and metrics over the pictures of all processes, and how many pictures were broken.
    """
    model.eval()
    progress = Progress(title, print_every)
    broken = 0
    for batch in progress.over(loader, shown=("loss",)):
        for message in batch.broken:
            broken += 1
            log.warning("no detections for a picture: %s", message)
        if batch.images is None:
            continue
        batch = batch.to(precision.device)
        with precision.autocast():
            output = model(batch.images, batch.targets if criterion is not None else None)
        if criterion is not None:
            losses, metrics = criterion.eval()(output, batch.targets)
            numbers = {"loss": sum(losses.values()), **losses, **metrics} if losses else metrics
            progress.update({name: value.item() for name, value in numbers.items()})
        sizes = torch.stack([target["orig_size"] for target in batch.targets])
        evaluator.update(postprocess(output, sizes), batch.targets)
    return {**progress.means_over_processes(), "broken": sum(gather(broken))}
