"""From which epoch of a training to which something happens to its images."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Epochs in which something happens.

    Attributes:
        start_epoch: finished epochs after which it begins.
        stop_epoch: finished epochs after which it has ended; None for never.
    """

    start_epoch: int = 0
    stop_epoch: int | None = None

    def __post_init__(self):
        if self.start_epoch < 0:
            raise ValueError(f"start_epoch={self.start_epoch} must be 0 or more")
        if self.stop_epoch is not None and self.stop_epoch < 0:
            raise ValueError(f"stop_epoch={self.stop_epoch} must be 0 or more, or None")
        if self.stop_epoch is not None and self.start_epoch > self.stop_epoch:
            raise ValueError(f"start_epoch={self.start_epoch} lies after stop_epoch={self.stop_epoch}; lower it, too")

    def __contains__(self, epoch: int) -> bool:
        """Whether it happens in the epoch after so many finished ones."""
        return self.start_epoch <= epoch and (self.stop_epoch is None or epoch < self.stop_epoch)

    def __str__(self) -> str:
        """In words that follow others; none for a whole training."""
        begins = f" from epoch {self.start_epoch}" if self.start_epoch else ""
        ends = "" if self.stop_epoch is None else f" until epoch {self.stop_epoch}"
        return f"{begins}{ends}"
