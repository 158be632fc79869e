"""Dropout, and the sum with a residual that it mostly stands in."""

from torch import Tensor, nn

from models.layers.hooks import has_hooks
from models.ops.dropout import dropout as drop


class Dropout(nn.Dropout):
    """torch.nn.Dropout; on CPUs with random numbers of the extension's, see models.ops.dropout."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return drop(x, self.p) if self._drops() else x

    def _drops(self) -> bool:
        return self.training and self.p > 0


def add_dropped(dropout: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """residual + dropout(x), in one pass where it is our dropout and nobody looks into it."""
    if type(dropout) is Dropout and dropout._drops() and not has_hooks(dropout):
        return drop(x, dropout.p, residual)
    return residual + dropout(x)
