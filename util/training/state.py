"""What a training is made of and where it stands: all that a resumed one needs."""

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from util.checkpoints.files import EMA, CheckpointError, ema_weights, library_versions, load_strictly
from util.checkpoints.fitting import describe_non_finite, non_finite
from util.processes.distributed import gather_objects, is_main, rank, world_size
from util.reporting.progress import Meter

log = logging.getLogger(__name__)

WHERE = ("last_epoch", "base_lrs", "_step_count", "_last_lr")
"""Of a schedule of PyTorch: what changes as it is stepped."""
RATES = ("initial_lr", "max_lr", "min_lr")
"""Of a group of an optimiser: what a schedule of PyTorch reckons from."""
PARTS = {"optimizer": ("state", "param_groups"), "schedule": ("last_epoch",), "scaler": (), "best": ()}
"""What a checkpoint of ours holds of a training beside weights, and what is in it in any case."""
FORMER_KEYS = {"pictures": "dataset_size", "processes": "world_size"}
"""What older checkpoints call these."""


class TrainingState:
    """A model in training, with everything that changes beside it.

    Args:
        model: the detector, without any wrapper.
        optimizer, schedule, scaler: of the training.
        ema: of the model, or None.
        metadata: plain values that are stored beside the state: config, categories, resumed_from.
        data_order: dataset_size, batch_size, accumulate, world_size, seed, steps_per_epoch: on these it depends what a
            number of batches of an epoch means. A checkpoint from the middle of an epoch that was saved with other
            ones cannot be continued there: that epoch begins anew, with a warning.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule,
        scaler: torch.amp.GradScaler,
        ema: AveragedModel | None,
        metadata: dict,
        data_order: dict,
    ):
        self.model, self.ema = model, ema
        self.optimizer, self.schedule, self.scaler = optimizer, schedule, scaler
        self.metadata, self.data_order = metadata, data_order
        self.epoch = 0
        """Finished epochs."""
        self.step = 0
        """Steps so far, in all epochs; those that were skipped count, those of an epoch that begins anew do not."""
        self.batch = 0
        """Batches of the running epoch that this process has seen."""
        self.meters: dict[str, Meter] = {}
        """The numbers of the running epoch."""
        self.corrupt_images = self.skipped = 0
        """In the running epoch: images of this process that could not be read, and steps without finite numbers."""
        self.failures = 0
        """Skipped steps since the last sound one."""
        self.pending: dict | None = None
        """What is to be said of the last epoch, until its evaluation is done."""
        self.best: dict[str, float] = {}
        """Best AP so far, of "regular" and of "ema"."""
        self.restart: dict = {}
        """Of a training in two stages; see util.training.restart."""

    def candidates(self) -> dict[str, nn.Module]:
        """What is evaluated: the model as "regular", and its EMA as "ema"."""
        return {"regular": self.model} | ({"ema": self.ema.module} if self.ema is not None else {})

    def finish_epoch(self):
        """Moves on to the next epoch."""
        self.epoch, self.batch, self.meters, self.corrupt_images, self.skipped = self.epoch + 1, 0, {}, 0, 0

    def is_finite(self) -> bool:
        """Whether every weight and every running statistic is."""
        return all(bool(t.isfinite().all()) for t in self.model.state_dict().values() if t.is_floating_point())

    def state_dict(self) -> dict:
        """Tensors and plain values. To be called by all processes together: each adds its random state."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sampler": {"batch": self.batch, **self.data_order},
            "meters": {name: [meter.total, meter.count] for name, meter in self.meters.items()},
            "corrupt_images": sum(gather_objects(self.corrupt_images)),
            "skipped": self.skipped,
            "pending": self.pending,
            "best": dict(self.best),
            "restart": dict(self.restart),
            "random": gather_objects(random_state()),
            "versions": library_versions(),
            **self.metadata,
        }

    def resume(self, content: dict, source: str):
        """Goes on from a checkpoint, if it is one of a training of ours: weights alone start at the first epoch.

        Args:
            content: of the checkpoint, whose weights the model has already.
            source: where it comes from, for messages.
        """
        if _is_training(content):
            self.load_state_dict(content, source)
            log.info("%s: going on after %d epochs and %d batches", source, self.epoch, self.batch)
            return
        foreign = [name for name in content if re.search("optim|sched|scaler", str(name))]
        others = (
            f" (its {', '.join(map(str, foreign))} are not a training's of ours and are left out)" if foreign else ""
        )
        text = (
            "%s: holds weights alone%s: training begins at epoch 0; to go on with a training, give its checkpoint.pth"
        )
        log.warning(text, source, others)

    def load_state_dict(self, content: dict, source: str):
        """Goes back to where a checkpoint of ours stood, weights aside, which the caller has loaded.

        Raises:
            CheckpointError: the checkpoint was made with another optimiser or another set of trainable weights.
        """
        own = [{name: group[name] for name in RATES if name in group} for group in self.optimizer.param_groups]
        self._load_optimizer(content, source)
        # How long the schedule is, is this config's to say; where in it we are, the checkpoint's.
        where = {name: content["schedule"][name] for name in WHERE if name in content["schedule"]}
        if ("total_steps" in content["schedule"]) != hasattr(self.schedule, "total_steps"):
            # To or from a one-cycle: what a schedule starts from means something else there.
            where.pop("base_lrs", None)
            for group, rates in zip(self.optimizer.param_groups, own, strict=True):
                group.update(rates)
        self.schedule.load_state_dict({**self.schedule.state_dict(), **where})
        self.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            _load_ema(self.ema, self.model, content, source)
        self.epoch, self.best = content["epoch"], dict(content["best"])
        self.restart = dict(content.get("restart") or {})
        self.step, self.pending = content.get("step", 0), content.get("pending")
        self._load_position(content, source)
        self._set_learning_rates()
        if len(content["random"]) == world_size():
            set_random_state(content["random"][rank()])
        else:
            log.warning("%s: was saved by %d processes: random numbers differ", source, len(content["random"]))

    def go_back(self, content: dict, source: str):
        """Takes weights, EMA, optimiser and scaler of an earlier checkpoint of this training; all else goes on.

        Raises:
            CheckpointError: it is of another model or optimiser.
        """
        load_strictly(self.model, content["model"], source)
        self._load_optimizer(content, source)
        self.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            _load_ema(self.ema, self.model, content, source)
        self._set_learning_rates()

    def _load_optimizer(self, content: dict, source: str):
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except ValueError as error:
            remedy = "To start anew from its weights, give it as --pretrain_model_path"
            raise CheckpointError(f"{source}: its optimiser does not fit this config: {error}. {remedy}") from error

    def _load_position(self, content: dict, source: str):
        """Where in the epoch it stood."""
        order = self.data_order
        sampler = {FORMER_KEYS.get(name, name): value for name, value in content.get("sampler", {}).items()}
        batch, steps = sampler.pop("batch", 0), order["steps_per_epoch"]
        changed = [
            f"{name} was {sampler[name]}, is {order[name]}"
            for name in order
            if sampler.get(name, order[name]) != order[name]  # older checkpoints do not tell all
        ]
        if batch and changed:
            text = "%s: saved in the middle of an epoch with another order (%s): the epoch begins anew"
            log.warning(text, source, ", ".join(changed))
        if (batch and changed) or sampler.get("steps_per_epoch", steps) != steps:
            # Where the epoch begins by this config's steps; earlier ones that were skipped no longer hold it back.
            self.step = self.schedule.last_epoch = self.epoch * steps
        elif batch:
            self.batch, self.skipped = batch, content["skipped"]
            self.corrupt_images = content.get("corrupt_images", content.get("broken", 0)) if is_main() else 0
            for name, (total, count) in content["meters"].items():
                self.meters[name] = Meter()
                self.meters[name].total, self.meters[name].count = total, count

    def _set_learning_rates(self):
        """Those of the next step, by this config's schedule; the optimiser's are those of where it was saved."""
        schedule = self.schedule
        if schedule.last_epoch > getattr(schedule, "total_steps", math.inf):
            return  # a training that is now shorter takes no step any more
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch expects step(), which would move on
            rates = schedule.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule.load_state_dict({**schedule.state_dict(), "_last_lr": rates})


def _is_training(content: dict) -> bool:
    """Whether a checkpoint holds a training's state as ours do; what other programs keep under these names is none."""
    random, parts = content.get("random"), [(content.get(name), keys) for name, keys in PARTS.items()]
    return (
        all(isinstance(part, Mapping) and part.keys() >= set(keys) for part, keys in parts)
        and isinstance(content.get("epoch"), int)
        and isinstance(random, list)
        and all(isinstance(state, Mapping) and isinstance(state.get("cpu"), torch.Tensor) for state in random)
    )


def _load_ema(ema: AveragedModel, model: nn.Module, content: dict, source: str):
    """The EMA in a checkpoint; one that is missing, foreign or not finite starts anew from the model's weights."""
    average = ema_weights(content)
    spoilt = non_finite(average or {})
    if average is not None and not spoilt:
        ema.module.load_state_dict(average)
        ema.n_averaged.fill_(int(content[EMA].get("n_averaged", 1)))
        return
    if content.get(EMA) is not None:
        reason = describe_non_finite(spoilt, len(average)) if average else "not an EMA of its weights"
        log.warning("%s: its '%s' is left out (%s); the EMA starts anew from the weights", source, EMA, reason)
    ema.module.load_state_dict(model.state_dict())


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever is drawn within this, what is drawn after it does not depend on."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def random_state() -> dict:
    """Of PyTorch's generators; nothing else draws."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict):
    """Goes back to what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
