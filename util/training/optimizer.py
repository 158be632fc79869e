"""Optimiser, schedule and EMA."""

import math
import re

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel

BACKBONE = r"^backbone\."
SCALINGS = {None: lambda ratio: 1.0, "sqrt": math.sqrt, "linear": float}
"""What becomes of learning rates that are used with `ratio` times the images a step that they are meant for."""


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float = 1e-4,
    scale: dict[str, float] | None = None,
    lr_backbone: float | None = None,
    total_batch_size: int | None = None,
    scale_lr: str | None = None,
    batch_size: int | None = None,
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, grouped by learning rate.

    Args:
        model: its parameters are named as in its state dict; tied ones count once.
        lr: learning rate.
        weight_decay: of every parameter, norms and biases too, as in the papers.
        scale: {regular expression: factor}; the first that is found in a parameter's name multiplies its learning rate.
        lr_backbone: the backbone's own learning rate, whatever `scale` says; None leaves it to `scale`.
        total_batch_size: images of an optimiser step that the learning rates are meant for.
        scale_lr: what learning rates are multiplied by when a step has other than `total_batch_size` images: "sqrt", by
            the root of the ratio, as Sparse DETR's code; "linear", by the ratio; None, by nothing.
        batch_size: images of an optimiser step, all processes and accumulated batches together; only for `scale_lr`.

    Raises:
        ValueError: an expression that no parameter's name contains, a rate for a backbone that does not train, an
            unknown scaling, or one without the numbers that it takes.
    """
    factor = lr_factor(scale_lr, total_batch_size, batch_size)
    rules = [(None, lr), *((pattern, lr * share) for pattern, share in (scale or {}).items())]
    if lr_backbone is not None:
        if not any(p.requires_grad and re.search(BACKBONE, name) for name, p in model.named_parameters()):
            raise ValueError(f"lr_backbone={lr_backbone}: nothing in this model's backbone trains")
        rules.insert(1, (BACKBONE, lr_backbone))
    groups = {pattern: [] for pattern, _ in rules}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            patterns = (pattern for pattern, _ in rules[1:] if pattern is not None)
            pattern = next((pattern for pattern in patterns if re.search(pattern, name)), None)
            groups[pattern].append(parameter)
    for pattern in groups:
        if pattern is not None and not any(re.search(pattern, name) for name, _ in model.named_parameters()):
            raise ValueError(f"scale names '{pattern}', which is in no parameter's name")
    listed = [{"params": groups[pattern], "lr": rate * factor} for pattern, rate in rules if groups[pattern]]
    return torch.optim.AdamW(listed, lr=lr * factor, weight_decay=weight_decay, fused=True)


def lr_factor(scale_lr: str | None, total_batch_size: int | None, batch_size: int | None) -> float:
    """What learning rates are multiplied by; arguments and errors as of `build_optimizer`."""
    if scale_lr not in SCALINGS:
        raise ValueError(f"scale_lr={scale_lr!r} is none of {', '.join(map(repr, SCALINGS))}")
    if total_batch_size is not None and total_batch_size < 1:
        raise ValueError(f"total_batch_size={total_batch_size} must be 1 or more")
    if scale_lr is None:
        return 1.0
    if total_batch_size is None or batch_size is None:
        raise ValueError(f"scale_lr={scale_lr!r} needs total_batch_size: the images a step that lr is meant for")
    return SCALINGS[scale_lr](batch_size / total_batch_size)


KINDS = ("step", "cosine", "onecycle")
RISE = 0.2
"""Share of a "onecycle" in which the learning rate rises."""


def build_schedule(
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: int,
    epochs: int,
    kind: str = "step",
    drop: tuple[int, ...] | int = (),
    gamma: float = 0.1,
    warmup_steps: int = 0,
) -> LambdaLR | OneCycleLR:
    """What the learning rates become; to be stepped after every optimiser step.

    Args:
        steps_per_epoch: optimiser steps.
        epochs: length of the training.
        kind: "step": times gamma after each epoch in `drop`, as in the papers; "cosine": to zero along a half wave;
            "onecycle": up for a fifth of the training, then down to almost nothing (Smith and Topin, 2018);
            with fewer than five steps in all it begins at the peak.
        drop: finished epochs after which a "step" falls.
        gamma: by how much.
        warmup_steps: linear rise from zero; not in "onecycle", which has its own.
    """
    if kind not in KINDS:
        raise ValueError(f"kind='{kind}' is none of {', '.join(KINDS)}")
    if epochs < 1:
        raise ValueError(f"epochs={epochs} must be 1 or more")
    total = max(1, steps_per_epoch * epochs)
    if kind == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=total + 1, pct_start=_rise(total), cycle_momentum=False)
    drops = (drop,) if isinstance(drop, int) else tuple(drop)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        if kind == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
        return rise * gamma ** sum(step >= epoch * steps_per_epoch for epoch in drops)

    return LambdaLR(optimizer, factor)


def _rise(total: int) -> float:
    """Share of `total` steps of a "onecycle" in which the learning rate rises.

    PyTorch lets it rise until step `share * (total + 1) - 1`, which must not be the step at which it begins.
    """
    if RISE * (total + 1) > 1:
        return RISE
    return (1 - 1e-9) / (total + 1)  # begins at the peak


def build_ema(model: nn.Module, decay: float, warmup: bool = True) -> "EMA":
    """An exponential moving average (EMA) of a model's parameters; tied ones are averaged once, buffers are copied.

    Args:
        model: what is averaged, after every optimiser step, by `update_parameters(model)`.
        decay: share of the old average that is kept.
        warmup: keep less at first, (1 + n) / (10 + n) after n steps, so that the average forgets how it began.
    """

    return EMA(model, decay, warmup)


class EMA(AveragedModel):
    """PyTorch's averaged model, whose count of steps stays on the host; see `build_ema`."""

    def __init__(self, model: nn.Module, decay: float, warmup: bool):
        super().__init__(model)
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def update_parameters(self, model: nn.Module):
        """After an optimiser step. PyTorch's own copies the count to the device and reads it there."""
        averages: list[Tensor] = list(self.parameters())
        currents: list[Tensor] = list(model.parameters())
        n = int(self.n_averaged)
        if n == 0:
            torch._foreach_copy_(averages, currents)
        else:
            kept = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
            torch._foreach_lerp_(averages, currents, 1 - kept)
        for average, current in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(current)
        self.n_averaged += 1
