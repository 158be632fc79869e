"""One epoch of training, and one evaluation. Knows no model, no loss and no data set by name."""

import logging
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader

from util.processes.distributed import gather_objects, world_size
from util.processes.preemption import PreemptedError
from util.reporting.progress import Progress
from util.tensors.device import read_floats
from util.tensors.precision import Precision
from util.training.state import TrainingState
from util.training.stepper import Stepper

log = logging.getLogger(__name__)


def never_stop() -> bool:
    """The answer where nobody asks to stop."""
    return False


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    loader: DataLoader,
    state: TrainingState,
    precision: Precision,
    *,
    clip_norm: float | None = None,
    accumulate: int = 1,
    patience: int = 10,
    print_every: int = 50,
    epochs: int = 0,
    stop: Callable[[], bool] = never_stop,
    after_step: Callable[[bool], object] = lambda stopping: None,
) -> dict[str, float]:
    """Runs over the loader once, or over what is left of it.

    Args:
        model: detector, or its wrapper for several processes.
        criterion: (output, targets) -> (losses, metrics); see models.criteria.criterion.
        loader: of datasets.loader.Batch; yields those after `state.batch`, its length is that of the whole epoch.
        state: is moved on with every batch and step.
        clip_norm: limit of the total gradient norm.
        accumulate: batches per optimiser step; their losses, each normalised by its own boxes, are averaged.
        patience: how many steps in a row may be skipped because a number in them is not finite.
        print_every: batches between two lines of progress.
        epochs: of the whole training, to tell how long it will take.
        stop: whether this process was asked to stop.
        after_step: called after every step, in all processes alike, with whether one of them was asked to stop.

    Returns:
        means over the epoch and over all processes: loss, every part of it, metrics, gradient norm; and how many
        images were corrupt and steps skipped.

    Raises:
        TrainingDivergedError: nothing finite came out for `patience` steps in a row.
    """
    model.train()
    criterion.train()
    stepper = Stepper(model, criterion, state, precision, clip_norm, accumulate, patience)
    following = max(0, epochs - state.epoch - 1)
    progress = Progress(f"epoch {state.epoch}", print_every, state.meters, state.batch, following)
    for batch in progress.over(loader, shown=("class_error", "lr")):
        state.batch += 1
        progress.images.update(len(batch.targets) * world_size())
        for message in batch.corrupt:
            state.corrupt_images += 1
            log.warning("skipped an image: %s", message)
        ends_step = state.batch % accumulate == 0 or state.batch == len(loader)
        rate = state.optimizer.param_groups[0]["lr"]
        numbers = stepper.take(batch.to(precision.device), ends_step, stop())
        if numbers:
            progress.update({**numbers, "lr": rate})
        if ends_step:
            after_step(stepper.stopping)
    return {**progress.means(), "corrupt_images": sum(gather_objects(state.corrupt_images)), "skipped": state.skipped}


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
    stop: Callable[[], bool] = never_stop,
) -> dict[str, float]:
    """Detects on every image of the loader and hands the detections to the evaluator.

    Args:
        criterion: None where there is no ground truth to compare with.
        postprocess: (output, sizes (B, 2)) -> results; see models.postprocess.
        evaluator: has update(results, targets); see datasets.coco_eval.
        stop: whether this process was asked to stop; it leaves after its batch, the others after their last one.

    Returns:
        means of the losses and metrics over the images of all processes, and how many images were corrupt.

    Raises:
        PreemptedError: in all processes, when one of them was asked to stop.
    """
    model.eval()
    progress = Progress(title, print_every)
    corrupt = 0
    for batch in progress.over(loader):
        progress.images.update(len(batch.targets) * world_size())
        for message in batch.corrupt:
            corrupt += 1
            log.warning("no detections for an image: %s", message)
        if batch.images is None:
            continue
        there = batch.to(precision.device)
        with precision.autocast():
            output = model(there.images, there.targets if criterion is not None else None)
        if criterion is not None:
            losses, metrics = criterion.eval()(output, there.targets)
            progress.update(read_floats({"loss": sum(losses.values()), **losses, **metrics} if losses else metrics))
        sizes = torch.stack([target["orig_size"] for target in batch.targets])
        evaluator.update(postprocess(output, sizes), batch.targets)
        if stop():
            break
    if any(gather_objects(stop())):
        raise PreemptedError(f"{title} was left; it begins anew when training goes on")
    return {**progress.means_over_processes(), "corrupt_images": sum(gather_objects(corrupt))}
