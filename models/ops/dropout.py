"""Dropout whose random numbers are computed by place, on CPUs, where PyTorch's own draws them one after the other.

Which numbers are dropped follows from a seed, drawn from PyTorch's generator of random numbers for each call: a
training that goes on, or a layer that is computed anew, drops the same. Where linear layers are left to PyTorch
(LEANDETR_LINEAR), so is this.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops.extension import has_compiled_kernels
from models.ops.linear import serves

LIBRARY = torch.library.Library("leandetr", "FRAGMENT")
LIBRARY.define("dropout(Tensor x, Tensor? residual, float p, int seed) -> Tensor")
HAS_KERNELS = has_compiled_kernels("CPU", "dropout")


@torch.library.register_fake("leandetr::dropout")
def _(x, residual, p, seed):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _remember(ctx, inputs, output):
    _, residual, ctx.p, ctx.seed = inputs
    ctx.adds = residual is not None


def _gradients(ctx, grad):
    by_x = torch.ops.leandetr.dropout(grad, None, ctx.p, ctx.seed) if ctx.needs_input_grad[0] else None
    return by_x, grad if ctx.adds else None, None, None


torch.library.register_autograd("leandetr::dropout", _gradients, setup_context=_remember)


def has_dropout(x: Tensor, p: float, residual: Tensor | None = None) -> bool:
    """Whether `dropout` has kernels for these, which draws the numbers of a whole tensor at once."""
    served = HAS_KERNELS and 0 < p < 1 and x.dtype in (torch.float32, torch.bfloat16)
    return served and serves(x, residual)


def dropout(x: Tensor, p: float, residual: Tensor | None = None) -> Tensor:
    """torch.nn.functional.dropout in training, plus a residual.

    Args:
        x: (...), of any shape.
        p: the share that is dropped, from 0 to 1.
        residual: as x, or None.

    Returns:
        As x.
    """
    if not has_dropout(x, p, residual):
        y = F.dropout(x, p)
        return y if residual is None else residual + y
    seed = int(torch.empty((), dtype=torch.int64).random_())
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        return residual + torch.ops.leandetr.dropout(x, None, p, seed)
    return torch.ops.leandetr.dropout(x, residual, p, seed)
