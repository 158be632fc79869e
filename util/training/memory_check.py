"""Whether the largest step of a training fits into memory, tried on noise before it begins."""

import logging

import torch
from torch import Tensor, nn

from util.tensors.precision import Precision
from util.training.noise import noise_batch
from util.training.non_finite import Rewind

log = logging.getLogger(__name__)

REMEDIES = (
    "Take less memory with --amp, with a smaller --batch_size and training.accumulate to make up for it, with "
    "--options \"checkpointing=['backbone', 'encoder']\" (their layers are then computed twice instead of kept), or "
    "with smaller images: data.augment.scales and data.augment.max_size, or height and width and data.multi_scale.sides"
)


def check_memory(
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


def check_largest_step(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    sizes: list[tuple[int, int]],
    objects: int,
    classes: int,
):
    """Tries the largest step that the data can ask for, so that memory runs out now or never.

    Args:
        sizes: (height, width) of the images of the largest batch.
        objects: of the image with the most.
        classes: of the model.
    """
    noise = noise_batch(sizes, max(1, objects), classes, precision.device)
    check_memory(model, criterion, optimizer, precision, *noise)
    log.info("the largest step fits: images of %s with %d objects each", sizes, max(1, objects))


def memory_advice(error: RuntimeError) -> str | None:
    """What helps, when an error says that memory ran out; None when it says something else."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        return f"out of memory: {text.splitlines()[0]} {REMEDIES}"
    return None
