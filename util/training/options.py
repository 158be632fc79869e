"""How a training goes, beside its optimizer and schedule: the section `training` of a config."""

from collections.abc import Mapping
from dataclasses import dataclass

from util.processes.distributed import world_size


def images_per_step(cfg: Mapping, accumulate: int) -> int:
    """Images of an optimiser step: a batch of every process, as many times as gradients are accumulated."""
    return cfg["data"]["batch_size"] * world_size() * accumulate


@dataclass(frozen=True)
class TrainingOptions:
    """How a training goes, beside its optimiser and schedule.

    Attributes:
        clip_norm: limit of the total gradient norm; None for none.
        accumulate: batches of an optimiser step.
        patience: how many steps in a row may be skipped because a number in them is not finite.
        ema: None, or what util.training.optimizer.build_ema takes.
        restart: None, or a second stage that begins with the best of the first: what util.training.restart.Restart
            takes. Needs an EMA.
        sync_bn: whether batch norms take the mean and variance of the images of all processes, on GPUs.
        eval_every, save_every: epochs between evaluations, and between checkpoints that are kept.
        save_every_steps: steps between checkpoints within epochs; None for none.
        keep_checkpoints: how many of the newest checkpoints there are at a time.
        warm_up_step: whether the largest step is tried first; "auto": on a GPU.
        print_every: batches between lines of progress.
        drawn_images: how many are drawn in vis/detections.png.
        wandb: project at Weights & Biases that gets the numbers too; None for none.
    """

    clip_norm: float | None = 0.1
    accumulate: int = 1
    ema: dict | None = None
    restart: dict | None = None
    sync_bn: bool = False
    eval_every: int = 1
    save_every: int = 10
    save_every_steps: int | None = None
    keep_checkpoints: int = 3
    patience: int = 10
    warm_up_step: bool | str = "auto"
    print_every: int = 50
    drawn_images: int = 12
    wandb: str | None = None

    def __post_init__(self):
        if self.warm_up_step not in (True, False, "auto"):
            raise ValueError(f"warm_up_step={self.warm_up_step!r} is none of True, False, 'auto'")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be above 0, or None")
        if self.restart and not self.ema:
            raise ValueError("restart compares epochs by the AP of an EMA, and `ema` asks for none")
        for name in ("accumulate", "eval_every", "save_every", "keep_checkpoints", "patience", "print_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")

    def warms_up(self, device: str) -> bool:
        """Whether the largest step is tried first on this device."""
        return device != "cpu" if self.warm_up_step == "auto" else bool(self.warm_up_step)
