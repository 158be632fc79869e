"""Batches of noise: for steps of which only the cost matters."""

import torch
from torch import Tensor


def noise_batch(
    sizes: list[tuple[int, int]], objects: int, classes: int, device: str
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of noise of these (height, width), each with so many objects. Draws from a generator of its own."""
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
