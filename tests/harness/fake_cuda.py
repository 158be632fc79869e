"""Runs code on CUDA tensors that have shapes and no values, without a GPU, and sees where it would wait for one.

What stands on the host is computed for real. What a GPU would hand to the host is made up: random numbers, or 1.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from models.ops import library
from models.ops.ms_deform_attn import BACKENDS, Backend

ROOT = Path(__file__).parents[2]
aten = torch.ops.aten

SIZED_BY_DATA = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "nms"}
"""Operators whose answer is as large as its values say: the host has to ask."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
LIFTING = {"where", *INDEXING}
"""Operators that copy a number on the host to the device as a tensor, where all others hand it to the kernel."""
PRODUCTS = {"prod", "cumprod"}
"""Operators whose gradient asks whether a factor is zero, unless the tensors are fake."""


@dataclass(frozen=True)
class Synchronisation:
    """Where the host waits for the device.

    Attributes:
        operator: of PyTorch, and why it waits.
        place: file:line and function, the innermost ones of this repository.
    """

    operator: str
    place: str


@contextmanager
def fake_cuda() -> Iterator[list[Synchronisation]]:
    """Within this, tensors may be brought to "cuda", and modules by `move`; yields what is found, which grows.

    Gradients are computed by `backward` below, since autograd's own engine asks the driver for streams. The compiled
    operators stand for CUDA's. cuDNN's own are not called, since no shapes are known of them.

    Raises:
        RuntimeError: from the code within, where the size of a tensor depends on values, or devices are mixed.
    """
    fake, seen = FakeTensorMode(allow_non_fake_inputs=True), _Watch()
    compiled = Backend(lambda value, locations: value.is_cuda, library.ms_deform_attn, library.key_aware_deform_attn)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(BACKENDS, {"cuda": compiled, **BACKENDS}, clear=True))
        stack.enter_context(mock.patch("torch.autograd.backward", backward))
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        stack.enter_context(mock.patch("torch.backends.cudnn.is_available", return_value=False))
        stack.enter_context(fake)
        stack.enter_context(seen)
        yield seen.found


def move(module: nn.Module) -> nn.Module:
    """The module, its parameters and buffers brought to "cuda"; what is tied stays so, unlike by `Module.to` here."""
    moved: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in moved:
                    there = tensor.detach().to("cuda")
                    moved[tensor] = nn.Parameter(there, tensor.requires_grad) if tensors is part._parameters else there
                tensors[name] = moved.get(tensor)
    return module


class _Watch(TorchDispatchMode):
    """Above a FakeTensorMode: lets real tensors pass it by, and takes down what would wait."""

    def __init__(self):
        super().__init__()
        self.found: list[Synchronisation] = []
        self.pinned = WeakTensorKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; without its wrapper all is faster

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name == "device":  # what Python asks of every fake tensor
            return function(*args)
        if name == "is_pinned":
            return args[0] in self.pinned
        if name == "_pin_memory":
            return self._pin(args[0])
        if _is_composite(function):  # in inference mode operators come as they were called
            with self:
                return function.decompose(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        target = kwargs.get("device")
        if not any(map(_is_fake, tensors)) and (target is None or torch.device(target).type != "cuda"):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        reason = self._waits(name, tensors, args, kwargs)
        if reason:
            self.found.append(Synchronisation(f"{name}: {reason}", place(sys._getframe())))
        if reason == SIZE:
            raise RuntimeError(f"{place(sys._getframe())}: {name}: {SIZE}")
        if name == "_local_scalar_dense":
            return 1.0 if args[0].is_floating_point() else 1
        if name in ("_to_copy", "copy_") and reason == DOWN:
            return _made_up(name, args, kwargs)
        return function(*args, **kwargs)

    def _pin(self, tensor: Tensor) -> Tensor:
        with unset_fake_temporarily():
            copy = tensor.clone()
        self.pinned[copy] = True
        return copy

    def _waits(self, name: str, tensors: list[Tensor], args: tuple, kwargs: dict) -> str:
        """Why a GPU's operator would wait; empty if it would not."""
        if name == "_local_scalar_dense":
            return "one number for the host"
        if name == "repeat_interleave" and len(tensors) == 1 and kwargs.get("output_size") is None:
            return SIZE
        if name in SIZED_BY_DATA:
            return SIZE
        if name in PRODUCTS and args[0].requires_grad:
            return "its gradient asks whether a factor is zero"
        if name in INDEXING:
            masked = any(x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1]) if isinstance(x, Tensor))
            if masked:
                return "" if len(args) > 2 and args[2].numel() == 1 else SIZE  # masked_fill writes a single number
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kwargs.get("device"))
            return self._copy_waits(source, source.device if target is None else torch.device(target), args, kwargs)
        hosts = [x for x in tensors if not _is_fake(x)]
        if any(x.dim() for x in hosts) or (hosts and name in LIFTING):
            return "reads a tensor on the host"
        return ""

    def _copy_waits(self, source: Tensor, target: torch.device, args: tuple, kwargs: dict) -> str:
        free = kwargs.get("non_blocking", len(args) > 2 and args[2] is True)
        if _is_fake(source) and target.type == "cpu":
            return "" if free else DOWN
        if not _is_fake(source) and target.type == "cuda":
            return "" if free and source in self.pinned else "copy to the device, blocking or from pageable memory"
        return ""


def _is_fake(tensor: Tensor) -> bool:
    """Whether a tensor is on the device: what is on the host is real."""
    return isinstance(tensor, FakeTensor)


@cache
def _is_composite(function) -> bool:
    return function._can_decompose()


SIZE = "how large its answer is depends on values"
DOWN = "copy to the host"


def _made_up(name: str, args: tuple, kwargs: dict) -> Tensor:
    """What a copy to the host brings: random numbers between 0 and 1, or 1 in whole numbers."""
    with unset_fake_temporarily():
        like = args[0]
        if name == "copy_":
            return like.uniform_() if like.is_floating_point() else like.fill_(1)
        dtype = kwargs.get("dtype") or like.dtype
        return torch.rand(like.shape, dtype=dtype) if dtype.is_floating_point else torch.ones(like.shape, dtype=dtype)


def place(frame: FrameType | None) -> str:
    """The innermost line of this repository above a frame, this file and installed packages aside."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path != Path(__file__) and "site-packages" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "nowhere"


@torch.no_grad()
def backward(root: Tensor, *unused, **options):
    """Stands for torch.autograd.backward from one number: calls the nodes of the graph one by one, on one thread.

    Hooks of tensors and of processes that exchange gradients are left out.
    """
    given = {root.grad_fn: {root.output_nr: torch.ones_like(root)}}
    for node in reversed(_in_order(root.grad_fn)):
        grads = given.pop(node, {})
        call = node if callable(node) else node.apply  # that of a function in Python
        answer = call(*[grads.get(i) for i in range(len(node._input_metadata))])
        answer = answer if isinstance(answer, tuple) else (answer,)
        if len(answer) > len(node.next_functions):  # a function in Python answers for arguments that are no tensors too
            answer = [grad for grad in answer if grad is not None]
        for (following, number), grad in zip(node.next_functions, answer, strict=True):
            if following is not None and grad is not None:
                like, slots = following._input_metadata[number], given.setdefault(following, {})
                if grad.shape != like.shape or grad.dtype != like.dtype:
                    grad = grad.sum_to_size(like.shape).to(like.dtype)
                slots[number] = slots[number] + grad if number in slots else grad


def _in_order(root) -> list:
    """The nodes below a root, each after all that it leads to."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return order
