"""Steps whose numbers are not finite: taken back, and looked into."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from util.training.state import random_state, set_random_state


class Rewind:
    """Keeps what a forward changes beside its answer, the running statistics of batch norms and the random state.

    Args:
        model: in training.
    """

    def __init__(self, model: nn.Module):
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self.saved = [buffer.clone() for buffer in self.buffers]
        self.random = random_state()

    @torch.no_grad()
    def remember(self):
        """Takes down how things are now."""
        if self.buffers:
            torch._foreach_copy_(self.saved, self.buffers)
        self.random = random_state()

    @torch.no_grad()
    def statistics(self):
        """Brings the running statistics back."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.saved)

    def everything(self):
        """Brings the random state back too."""
        self.statistics()
        set_random_state(self.random)


@torch.no_grad()
def first_bad_module(model: nn.Module, forward: Callable[[], object], rewind: Rewind) -> str:
    """Runs a forward again as it was, and says where in it the first number came up that is not finite.

    A module that answers infinity may mean it, as masks do; so NaN is looked for first. Random state and running
    statistics are brought back to what `rewind` remembers.

    Args:
        model: whose modules are named.
        forward: calls `model`.
        rewind: remembers how things were before the forward.
    """
    rewind.everything()
    bad = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point() and not _finite(tensor)]
    if bad:
        return f"weights or statistics themselves are not finite: {_some(bad)}"
    found: dict[str, str] = {}

    def look(name: str, module: nn.Module) -> Callable:
        def hook(_, given, answer):
            tensors = [tensor for tensor in _tensors(answer) if tensor.is_floating_point()]
            kind = "NaN" if any(t.isnan().any() for t in tensors) else "infinity"
            if kind == "NaN" or any(t.isinf().any() for t in tensors):
                blame = "" if all(map(_finite, _tensors(given))) else ", as was given to it"
                found.setdefault(kind, f"{name or 'the model'} ({type(module).__name__}) answered {kind}{blame}")

        return hook

    hooks = [module.register_forward_hook(look(name, module)) for name, module in model.named_modules()]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
        rewind.everything()
    return (
        found.get("NaN") or found.get("infinity") or "no module: the forward is finite, the loss or its gradient is not"
    )


def gradients_not_finite(model: nn.Module) -> str:
    """Which parameters have a gradient that is not finite."""
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"gradients of {len(bad)} parameters: {_some(bad)}" if bad else "no gradient, but their total norm"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _tensors(value) -> Iterator[Tensor]:
    """All tensors in what a module takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
