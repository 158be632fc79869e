"""Steps on noise: to see before a training whether its largest step fits, and to measure."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from util.tensors.precision import Precision
from util.training.non_finite import Rewind

OBJECTS = 7
"""In a picture of COCO, on average."""
REMEDIES = (
    "Take less memory with --amp, with a smaller --batch_size and training.accumulate to make up for it, with "
    "--options \"checkpointing=['backbone', 'encoder']\" (their layers are then computed twice instead of kept), or "
    "with smaller data.augment.scales and data.augment.max_size"
)


def noise_batch(
    sizes: list[tuple[int, int]], objects: int, classes: int, device: str
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures of noise of these (height, width), each with so many objects. Draws from a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, *size, generator=generator).to(device) for size in sizes]
    targets = [
        {
            "labels": torch.randint(classes, (objects,), generator=generator).to(device),
            "boxes": (torch.rand(objects, 4, generator=generator) * 0.4 + 0.1).to(device),
        }
        for _ in sizes
    ]
    return images, targets


def largest_sizes(count: int, scale: int, max_size: int) -> list[tuple[int, int]]:
    """(height, width) of the pictures of the largest batch: lying and standing ones together are padded to squares."""
    return [(scale, max_size) if number % 2 == 0 else (max_size, scale) for number in range(count)]


def rehearse(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
):
    """A forward and a backward, and nothing of them stays: no gradient, random number or running statistic.

    Args:
        model: detector, or its wrapper for several processes.
        optimizer: room for what AdamW will keep of every weight is held meanwhile, where it holds nothing yet.
    """
    model.train()
    criterion.train()
    rewind = Rewind(model)
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    reserved = [] if optimizer.state else [torch.empty_like(weight) for weight in weights for _ in range(2)]
    with precision.autocast():
        output = model(images, targets)
    losses, _ = criterion(output, targets)
    precision.backward(sum(losses.values()))
    del reserved
    optimizer.zero_grad()
    rewind.everything()


def training_step(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    clip_norm: float | None,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> Callable[[], Iterator[str]]:
    """A whole step to be measured: names each part of it that is done, as util.measuring.benchmark.measure_training wants it."""

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


def memory_advice(error: RuntimeError) -> str | None:
    """What helps, when an error says that memory ran out; None when it says something else."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        return f"out of memory: {text.splitlines()[0]} {REMEDIES}"
    return None
