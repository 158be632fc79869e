"""Optimiser, schedule and EMA."""

import math
import re
from collections.abc import Iterable

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
    no_decay: tuple[str, ...] = (),
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, grouped by learning rate and weight decay.

    Args:
        model: its parameters are named as in its state dict; tied ones count once.
        lr: learning rate.
        weight_decay: of every parameter that `no_decay` does not spare, norms and biases too, as in most papers.
        scale: {regular expression: factor}; the first that is found in a parameter's name multiplies its learning rate.
        lr_backbone: the backbone's own learning rate, whatever `scale` says; None leaves it to `scale`.
        total_batch_size: images of an optimiser step that the learning rates are meant for.
        scale_lr: what learning rates are multiplied by when a step has other than `total_batch_size` images: "sqrt", by
            the root of the ratio, as Sparse DETR's code; "linear", by the ratio; None, by nothing.
        batch_size: images of an optimiser step, all processes and accumulated batches together; only for `scale_lr`.
        no_decay: regular expressions; a parameter in whose name one of them is found has no weight decay.

    Raises:
        ValueError: an expression that no parameter's name contains, a rate for a backbone that does not train, an
            unknown scaling, or one without the numbers that it takes.
    """
    factor = lr_factor(scale_lr, total_batch_size, batch_size)
    rules = {pattern: lr * share for pattern, share in (scale or {}).items()}
    if lr_backbone is not None:
        if not any(p.requires_grad and re.search(BACKBONE, name) for name, p in model.named_parameters()):
            raise ValueError(f"lr_backbone={lr_backbone}: nothing in this model's backbone trains")
        rules = {BACKBONE: lr_backbone} | {pattern: rate for pattern, rate in rules.items() if pattern != BACKBONE}
    check_patterns(model, "scale", rules)
    check_patterns(model, "no_decay", no_decay)
    rates = {"": lr, **rules}  # the first is of what no pattern is found in
    groups = {(pattern, spared): [] for pattern in rates for spared in (False, True)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pattern = next((pattern for pattern in rules if re.search(pattern, name)), "")
            groups[pattern, any(re.search(one, name) for one in no_decay)].append(parameter)
    listed = [
        {"params": group, "lr": rates[pattern] * factor, "weight_decay": 0.0 if spared else weight_decay}
        for (pattern, spared), group in groups.items()
        if group
    ]
    return torch.optim.AdamW(listed, lr=lr * factor, weight_decay=weight_decay, fused=True)


def check_patterns(model: nn.Module, option: str, patterns: Iterable[str]):
    """Raises ValueError for a regular expression that is none, or that is in no parameter's name."""
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        try:
            found = any(re.search(pattern, name) for name in names)
        except (re.error, TypeError) as error:
            raise ValueError(f"{option} names {pattern!r}, which is no regular expression: {error}") from error
        if not found:
            raise ValueError(f"{option} names '{pattern}', which is in no parameter's name")


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


KINDS = ("step", "cosine", "onecycle", "flat_cosine")
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
    flat_epochs: int = 0,
    final_epochs: int = 0,
) -> LambdaLR | OneCycleLR:
    """What the learning rates become; to be stepped after every optimiser step.

    Args:
        steps_per_epoch: optimiser steps.
        epochs: length of the training.
        kind: "step": times gamma after each epoch in `drop`, as in the papers; "cosine": to zero along a half wave;
            "onecycle": up for a fifth of the training, then down to almost nothing (Smith and Topin, 2018);
            with fewer than five steps in all it begins at the peak; "flat_cosine": flat, then along a half wave to
            gamma times as much, and flat again (DEIM).
        drop: finished epochs after which a "step" falls; none for a rate that stays.
        gamma: by how much it falls.
        warmup_steps: rise from zero, linear, in a "flat_cosine" quadratic; not in "onecycle", which has its own.
        flat_epochs, final_epochs: before and after the fall of a "flat_cosine".
    """
    if kind not in KINDS:
        raise ValueError(f"kind='{kind}' is none of {', '.join(KINDS)}")
    if epochs < 1:
        raise ValueError(f"epochs={epochs} must be 1 or more")
    if kind == "flat_cosine" and not (flat_epochs >= 0 <= final_epochs and flat_epochs + final_epochs < epochs):
        given = f"flat_epochs={flat_epochs} and final_epochs={final_epochs}"
        raise ValueError(f"{given} must be 0 or more, and together leave some of epochs={epochs} for the fall")
    total = max(1, steps_per_epoch * epochs)
    if kind == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=total + 1, pct_start=_rise(total), cycle_momentum=False)
    drops = (drop,) if isinstance(drop, int) else tuple(drop)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        if kind == "cosine":
            return rise * half_wave(step / total)
        if kind == "flat_cosine":
            fallen = (step / max(1, steps_per_epoch) - flat_epochs) / (epochs - flat_epochs - final_epochs)
            return rise**2 * (gamma + (1 - gamma) * half_wave(max(0.0, fallen)))
        return rise * gamma ** sum(step >= epoch * steps_per_epoch for epoch in drops)

    return LambdaLR(optimizer, factor)


def half_wave(share: float) -> float:
    """From 1 to 0 along a cosine, as a share of its way from 0 to 1; 0 beyond."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _rise(total: int) -> float:
    """Share of `total` steps of a "onecycle" in which the learning rate rises.

    PyTorch lets it rise until step `share * (total + 1) - 1`, which must not be the step at which it begins.
    """
    if RISE * (total + 1) > 1:
        return RISE
    return (1 - 1e-9) / (total + 1)  # begins at the peak


def build_ema(model: nn.Module, decay: float, warmup: bool | int = True) -> "EMA":
    """An exponential moving average (EMA) of a model; tied parameters are averaged once.

    Args:
        model: what is averaged, after every optimiser step, by `update_parameters(model)`.
        decay: share of the old average that is kept.
        warmup: keep less at first, so that the average forgets how it began. True: (1 + n) / (10 + n) after n steps.
            A number of steps, as in RT-DETR and D-FINE: decay * (1 - exp(-t / warmup)) in step t = 1, 2, ...; with 0,
            decay from the first step on. Under True and False parameters are averaged and buffers copied; with a
            number running statistics are averaged too.

    Raises:
        ValueError: a decay that is no share, a negative number of steps.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay={decay} must lie between 0 and 1")
    if isinstance(warmup, bool):
        return EMA(model, decay, warmup)
    if warmup < 0:
        raise ValueError(f"warmup={warmup} must be 0 steps or more, True or False")
    return StateEMA(model, decay, warmup)


class EMA(AveragedModel):
    """PyTorch's averaged model, whose count of steps stays on the host; see `build_ema`.

    Attributes:
        decay: may change in the course of a training.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool | int):
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


class StateEMA(EMA):
    """The average of all floating-point entries of a state dict, running statistics too; the rest is copied."""

    def __init__(self, model: nn.Module, decay: float, warmup: int):
        super().__init__(model, decay, warmup)
        entries = {id(t) for t in self.module.state_dict(keep_vars=True).values() if t.is_floating_point()}
        self.averaged = [id(tensor) in entries for tensor in _tensors(self.module)]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module):
        """After an optimiser step."""
        self.n_averaged += 1
        steps = int(self.n_averaged)
        kept = self.decay * (1 - math.exp(-steps / self.warmup)) if self.warmup else self.decay
        averages, currents = [], []
        for average, current, averaged in zip(_tensors(self.module), _tensors(model), self.averaged, strict=True):
            if averaged:
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        torch._foreach_lerp_(averages, currents, 1 - kept)


def _tensors(model: nn.Module) -> list[Tensor]:
    """All parameters and buffers, each once."""
    return [*model.parameters(), *model.buffers()]
