"""What training steps cost, by part."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from util.config import ConfigDict
from util.measuring.benchmark import measure_training
from util.tensors.precision import Precision
from util.training.noise import noise_batch
from util.training.options import TrainingOptions
from util.training.setup import build_training_optimizer

OBJECTS = 7
"""In an image of COCO, on average."""


def benchmark_training(
    detector: nn.Module,
    criterion: nn.Module,
    cfg: ConfigDict,
    options: TrainingOptions,
    precision: Precision,
    size: tuple[int, int],
) -> dict:
    """Measures a config's training steps on noise of one (height, width). Returns what `measure_training` does."""
    batch_size, device = cfg.data.batch_size, precision.device
    noise = noise_batch([size] * batch_size, OBJECTS, cfg.model.num_classes, device)
    optimizer = build_training_optimizer(detector, cfg, options)
    step = training_step(detector.train(), criterion, optimizer, precision, options.clip_norm, *noise)
    return measure_training(step, batch_size, cfg.schedule.epochs, device)


def training_step(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    clip_norm: float | None,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> Callable[[], Iterator[str]]:
    """A whole step for util.measuring.benchmark.measure_training: names each part of it that is done."""

    def step():
        with precision.autocast():
            output = model(images, targets)
        yield "forward"
        losses, _ = criterion(output, targets)
        total = sum(losses.values())
        yield "loss"
        precision.backward(total)
        yield "backward"
        precision.step(optimizer, model, clip_norm)
        precision.adapt()
        optimizer.zero_grad()
        yield "optimiser"

    return step
