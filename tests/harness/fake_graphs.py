"""CUDA graphs without a GPU: operators on the CPU are recorded in place of kernels, and run again on the same memory.

What a graph is kept from owning, this one is too: of tensors that were there before the capture it has weak references
alone, and reading one that is gone is an error, where a GPU would read whatever lies there by then.
"""

import contextlib
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from util.tensors import cache, cuda_graphs


class FakeGraph:
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self):
        self.calls = []
        self.memory = {}  # what was made during the capture, by id
        self.replays = 0

    def replay(self):
        """Runs all operators again, and writes what they return to where it lay."""
        self.replays += 1
        for function, args, kwargs, outputs in self.calls:
            args, kwargs = tree_map(_found, (args, kwargs))
            again = [x for x in tree_iter(function(*args, **kwargs)) if isinstance(x, torch.Tensor)]
            for old, new in zip(outputs, again, strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view of an argument nor the argument itself
                    old.copy_(new)


class _Capture(TorchDispatchMode):
    """In place of torch.cuda.graph, without the arguments that say where a GPU finds memory."""

    def __init__(self, graph, pool=None, stream=None, capture_error_mode="global"):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        stored = tree_map(self._stored, (args, kwargs))
        answer = function(*args, **kwargs)
        outputs = [x for x in tree_iter(answer) if isinstance(x, torch.Tensor)]
        given = {id(x) for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        self.graph.memory.update((id(x), x) for x in outputs if id(x) not in given)
        self.graph.calls.append((function, *stored, outputs))
        return answer

    def _stored(self, value):
        if not isinstance(value, torch.Tensor) or id(value) in self.graph.memory:
            return value
        return weakref.ref(value)


def _found(value):
    if not isinstance(value, weakref.ref):
        return value
    tensor = value()
    if tensor is None:
        raise AssertionError("a replay reads memory that was freed after the capture")
    return tensor


class _Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


def install(monkeypatch):
    """Lets util.tensors.cuda_graphs record detectors on the CPU."""
    monkeypatch.setattr(cuda_graphs, "GPU", "cpu")
    monkeypatch.setattr(cache, "is_in_torch_dispatch_mode", lambda: False)  # the capture is one here
    for name, fake in {
        "CUDAGraph": FakeGraph,
        "graph": _Capture,
        "Stream": _Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": _Stream,
        "graph_pool_handle": lambda: None,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
