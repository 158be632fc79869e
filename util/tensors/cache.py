"""Answers that are given again instead of being computed anew."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from util.tensors.device import is_traced

_OWNED: ContextVar[dict | None] = ContextVar("owned", default=None)
"""Where answers go whose owner is known."""


def cached(function: Callable) -> Callable:
    """Decorates functions of plain numbers and a device alone: in inference their last answers are given again.

    Not where gradients are taken or somebody watches the operators, who may compile, export or count them. Nobody may
    write into an answer.
    """
    kept = lru_cache(maxsize=16)(function)

    @wraps(function)
    def answer(*numbers):
        if torch.is_grad_enabled() or is_traced() or is_in_torch_dispatch_mode():
            return function(*numbers)
        owned = _OWNED.get()
        if owned is None:
            return kept(*numbers)
        if (function, numbers) not in owned:
            owned[function, numbers] = function(*numbers)
        return owned[function, numbers]

    return answer


@contextmanager
def cached_in(owned: dict) -> Iterator[None]:
    """Within this, `cached` functions give answers out of `owned` alone, and put there what they had to compute.

    For whoever needs the very same tensors for longer than others ask for other numbers: a CUDA graph reads their
    memory at every replay.
    """
    token = _OWNED.set(owned)
    try:
        yield
    finally:
        _OWNED.reset(token)
