"""Optimiser steps that notice when numbers go wrong, in all processes alike."""

import contextlib
import logging
import math

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from util.processes.distributed import gather_objects, mean_dict
from util.tensors.device import read_floats
from util.tensors.precision import Precision
from util.training.non_finite import Rewind, first_bad_module, gradients_not_finite
from util.training.state import TrainingState

log = logging.getLogger(__name__)

STOP = " stop"
"""Among the numbers that processes exchange at every batch: whether one of them was asked to stop."""
NORM = "grad_norm"
"""Of all gradients of a step together, before they are clipped."""


class TrainingDivergedError(ArithmeticError):
    """Losses or gradients stopped being finite; the message says which and where."""


class Stepper:
    """Takes optimiser steps, each from one batch or several. A step in which a number is not finite is skipped.

    Args:
        model, criterion, state, precision, clip_norm, accumulate, patience: see engine.train_one_epoch.

    Attributes:
        stopping: whether any process was asked to stop.
    """

    def __init__(self, model, criterion, state: TrainingState, precision: Precision, clip_norm, accumulate, patience):
        self.model, self.criterion, self.state, self.precision = model, criterion, state, precision
        self.clip_norm, self.accumulate, self.patience = clip_norm, accumulate, patience
        self.rewind = Rewind(state.model)
        self.stopping = False
        self.problem = ""  # of the step that is being gathered

    def take(self, batch, ends_step: bool, stop: bool) -> dict[str, float]:
        """Adds a batch's gradients, and steps if it is the last of its step.

        Returns:
            its losses and metrics, and the gradient norm of a step; nothing when they are not finite. Equal in all
            processes, so all do the same with them.
        """
        self.rewind.remember()
        with _unsynchronised(self.model, not ends_step):
            with self.precision.autocast():
                output = self.model(batch.images, batch.targets)
            losses, metrics = self.criterion(output, batch.targets)
            total = sum(losses.values())
            self.precision.backward(total / self.accumulate)
        means = mean_dict({"loss": total, **losses, **metrics, STOP: total.new_full((), float(stop))})
        steps = ends_step and not self.problem
        if steps:
            sound = means["loss"].isfinite()
            means[NORM] = self.precision.step(self.state.optimizer, self.state.model, self.clip_norm, sound)
        numbers = read_floats(means)  # here, and for its matching, a batch waits for the device
        self.stopping |= numbers.pop(STOP) > 0
        norm = numbers.pop(NORM, math.nan)
        finite = math.isfinite(numbers["loss"])
        if steps:
            self.precision.adapt(finite)
        if not finite and not self.problem:
            self.problem = self._what_is_wrong(numbers, batch)
        if finite and math.isfinite(norm):
            numbers[NORM] = norm
        if ends_step:
            self._conclude(batch, norm)
        return numbers if finite else {}

    def _conclude(self, batch, norm: float):
        """What follows from a step, which was taken if there was no problem and the gradients' norm is finite."""
        state = self.state
        if not self.problem and math.isfinite(norm):
            state.schedule.step()
            state.failures = 0
            if state.ema is not None:
                state.ema.update_parameters(state.model)
        elif not self.problem and not self.precision.overflows():
            where = gradients_not_finite(state.model)
            self.problem = f"not finite: {NORM}; {where}; images: {_image_ids(batch)}"
        state.optimizer.zero_grad()
        state.step += 1
        problem, self.problem = self.problem, ""
        if problem:
            state.skipped, state.failures = state.skipped + 1, state.failures + 1
            log.warning("step %d is skipped: %s", state.step, problem)
        if state.failures >= self.patience:
            remedy = "Lower optimizer.lr, lengthen schedule.warmup_steps, or train without --amp"
            raise TrainingDivergedError(f"{self.patience} steps in a row are skipped, the last: {problem}. {remedy}")

    def _what_is_wrong(self, numbers: dict[str, float], batch) -> str:
        """Which numbers, where in the model it began, and on which images; takes back what the forward changed."""

        def forward():
            with self.precision.autocast():
                self.state.model(batch.images, batch.targets)

        bad = ", ".join(name for name, value in numbers.items() if not math.isfinite(value))
        where = "; ".join(dict.fromkeys(gather_objects(first_bad_module(self.state.model, forward, self.rewind))))
        return f"not finite: {bad}; {where}; images: {_image_ids(batch)}"


def _image_ids(batch) -> str:
    """The ids of the images of all processes."""
    ids = gather_objects([int(target["image_id"]) for target in batch.targets])
    return ", ".join(str(image_id) for found in ids for image_id in found)


def _unsynchronised(model: nn.Module, active: bool):
    """While accumulating, processes need not exchange gradients."""
    if active and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
