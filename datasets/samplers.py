"""Which image comes when, and to which process."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class TrainSampler(Sampler):
    """Every image once an epoch in random order, equally many for every process.

    Yields (index, epoch), which fixes the image's augmentation too. The order depends on seed and epoch alone.
    Processes get neighbouring blocks of it; where the images do not divide, the first ones come again.

    Args:
        length: of the data set.
        rank, world_size: this process and how many there are.
        seed: of the order.

    Attributes:
        epoch: which order comes next.
        start: how many of this process's images it leaves out at its beginning, in a training that goes on from the
            middle of an epoch. The length stays that of a whole epoch.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1, seed: int = 0):
        self.length, self.rank, self.world_size, self.seed = length, rank, world_size, seed
        self.epoch = self.start = 0

    def start_at(self, epoch: int, images: int = 0):
        """The next pass is that of an epoch, after so many of this process's images."""
        self.epoch, self.start = epoch, images

    def __len__(self) -> int:
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        for place in range(self.rank * len(self) + self.start, (self.rank + 1) * len(self)):
            yield order[place % self.length], self.epoch


class EvalSampler(Sampler):
    """Every image exactly once over all processes, in order; some processes may get one more than others."""

    def __init__(self, length: int, rank: int = 0, world_size: int = 1):
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
