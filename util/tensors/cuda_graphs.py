"""A detector's forward as one CUDA graph for every size of batch: all its kernels start with one call of the host.

A detector of these families launches a thousand kernels and more, most of them small; on a fast GPU the host is then
slower than the kernels. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from util.tensors.cache import cached_in
from util.tensors.image_batch import ImageBatch, image_sizes

GPU = "cuda"
"""The kind of device whose kernels can be recorded."""
WARM_UP = 2
"""Forwards before the one that must not wait: libraries set themselves up in the first ones, and choose kernels."""


class CaptureError(RuntimeError):
    """A detector's forward that cannot be recorded."""


@dataclass
class _Captured:
    """One graph and the memory that it reads and writes.

    Attributes:
        batch: what it reads; a call overwrites the images.
        answers: {(function, arguments): tensors} that follow from sizes alone, which it reads at every replay.
        output: what it writes; the next replay overwrites it.
    """

    graph: torch.cuda.CUDAGraph
    batch: ImageBatch
    answers: dict
    output: object


class GraphedDetector:
    """A detector that is recorded once for every size of batch and replayed from then on.

    Takes what the detector takes, without targets, and answers the same in tensors that are the caller's own. Sizes are
    the shape of the batch, the images' own sizes in it and their dtype. Autocast around a call holds as for any
    detector; graphs are kept apart by it.

    It pays where sizes come again: the first call of every size takes several forwards, and every graph keeps memory of
    its own for its images, for what follows from sizes and for its output. The rest they share, in one pool.

    Weights may be changed in place, as load_state_dict does. Who moves or replaces them makes a new GraphedDetector.
    Hooks run while a graph is recorded and never again. Calls must not overlap, in threads or on streams: they use the
    same memory.

    Args:
        detector: on a GPU; it is put into eval mode. Its forward must not ask for values on the GPU.
        max_graphs: how many graphs are kept; the least recently used one leaves.

    Raises:
        ValueError: the detector is not on a GPU, or no graph may be kept.
    """

    def __init__(self, detector: nn.Module, max_graphs: int = 8):
        self.device = next(detector.parameters()).device
        if self.device.type != GPU:
            raise ValueError(
                f"CUDA graphs need a GPU, the detector is on {self.device}: move it to one, or call it as it is"
            )
        if max_graphs < 1:
            raise ValueError(f"max_graphs={max_graphs} must be 1 or more")
        self.detector, self.max_graphs = detector.eval(), max_graphs
        self._graphs: OrderedDict[tuple, _Captured] = OrderedDict()  # least recently used first
        self._stream = torch.cuda.Stream(self.device)
        self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def __call__(self, images: ImageBatch | list[Tensor]):
        """Detects objects on a batch, or on a list of normalised (3, h, w) tensors of any sizes.

        Raises:
            CaptureError: the forward waits for the GPU or copies from the host, which a graph cannot.
            ValueError: as in `ImageBatch.of`.
        """
        with torch.cuda.device(self.device):
            key = self._key(images)
            if key not in self._graphs:
                self._graphs[key] = self._capture(images)
                # After the capture, since a pool whose last graph is gone cannot be used again.
                if len(self._graphs) > self.max_graphs:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            captured = self._graphs[key]
            _fill(captured.batch, images)
            captured.graph.replay()
            # At once: graphs share a pool, so another one's replay may write where this one's output lies.
            return _copied(captured.output)

    def _key(self, images: ImageBatch | list[Tensor]) -> tuple:
        """All that decides which kernels run on how much memory."""
        if isinstance(images, ImageBatch):
            return tuple(images.images.shape), images.sizes, images.images.dtype, self._autocast()
        sizes = image_sizes(images)
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        return (len(images), images[0].shape[0], height, width), sizes, images[0].dtype, self._autocast()

    def _autocast(self) -> tuple[bool, torch.dtype]:
        """Whether autocast is on around the call, and to what."""
        return torch.is_autocast_enabled(self.device.type), torch.get_autocast_dtype(self.device.type)

    def _capture(self, images: ImageBatch | list[Tensor]) -> _Captured:
        """Warms up on a side stream, then records one forward there."""
        given = images if isinstance(images, ImageBatch) else ImageBatch.of(images)
        batch = ImageBatch(given.images.to(self.device, copy=True), given.padding.to(self.device), given.sizes)
        graph, answers = torch.cuda.CUDAGraph(), {}
        self._stream.wait_stream(torch.cuda.current_stream())
        with cached_in(answers):
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    self._forward(batch)
                self._forward_without_waiting(batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            # Calls that other threads make meanwhile, such as a loader's that pins memory, are none of the graph's.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                output = self._forward(batch)
        return _Captured(graph, batch, answers, output)

    def _forward(self, batch: ImageBatch):
        # Autocast may keep converted weights until its outermost block ends, and the graph would read them afterwards;
        # without its cache every use converts them anew.
        enabled, dtype = self._autocast()
        with torch.autocast(self.device.type, dtype, enabled, cache_enabled=False):
            return self.detector(batch)

    def _forward_without_waiting(self, batch: ImageBatch):
        """A forward that says which operator waits, before a capture breaks off and says less."""
        try:
            with _waiting_is_an_error():
                self._forward(batch)
        except RuntimeError as error:
            name = type(self.detector).__name__
            raise CaptureError(f"a CUDA graph cannot hold this {name}, call it as it is: {error}") from error


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Within this, operators raise RuntimeError when the host has to wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _fill(batch: ImageBatch, images: ImageBatch | list[Tensor]):
    """Copies images of the same sizes into a batch; what is outside of them stays zero."""
    if isinstance(images, ImageBatch):
        batch.images.copy_(images.images)
        return
    for place, image in zip(batch.images, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]].copy_(image)


def _copied(value):
    """The same structure of dataclasses, mappings and sequences around copies of its tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _copied(getattr(value, name)) for name in fields})
    return value
