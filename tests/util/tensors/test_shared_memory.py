"""Too little shared memory is told before it is used, or translated; a training neither dies of it nor waits."""

import errno
import multiprocessing

import pytest
import torch

from datasets.loader import build_dataset, build_loader
from datasets.shapes import make_shapes
from tests.tiny import shrunk
from util.tensors import shared_memory
from util.tensors.shared_memory import SharedMemoryError, shared_bytes, shared_memory_problem


@pytest.fixture
def dataset(tmp_path):
    """Builds the training split of a few shapes."""
    make_shapes(tmp_path, train=4, val=1)
    options = {"data.root": str(tmp_path), "data.augment.scales": (64,), "data.augment.max_size": 96}
    cfg = shrunk("config/small/lite_dino_r18_shapes.py", **options)
    return lambda **more: build_dataset(cfg, "train", **more)


def refuse(tensor):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def test_a_cache_that_does_not_fit(dataset, monkeypatch):
    monkeypatch.setattr(shared_memory, "free_shared_memory", lambda: 1000)
    with pytest.raises(
        SharedMemoryError, match=r"train2017 need .* MB .* free; .*--shm-size=8g; .* without --cache_mode"
    ):
        dataset(cached=True)


def test_an_allocation_that_fails_all_the_same(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(SharedMemoryError, match="it needs 0.00 MB of shared memory"):
        shared_bytes(8, "it needs")


def test_no_space_for_the_workers(dataset, monkeypatch):
    monkeypatch.setattr(shared_memory, "free_shared_memory", lambda: 1000)
    with pytest.raises(SharedMemoryError, match="2 loading processes need at least .* fewer --num_workers"):
        next(iter(build_loader(dataset(), 2, 2)))
    assert len(list(build_loader(dataset(), 2, 0))) == 2  # which need none


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the stand-in has to be inherited")
def test_no_space_for_a_batch(dataset, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(SharedMemoryError, match="loading processes need more shared memory, .*--shm-size=8g"):
        next(iter(build_loader(dataset(), 2, 1)))


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), False),
    ],
)
def test_what_says_that_it_ran_out(error, known):
    assert (shared_memory_problem(error) is not None) == known


def test_a_machine_that_does_not_tell(monkeypatch, tmp_path):
    """As Windows and macOS."""
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "missing")
    assert shared_memory.free_shared_memory() is None
    assert shared_bytes(8, "it needs").is_shared()
    assert "which is used up" in shared_memory_problem(RuntimeError("unable to allocate shared memory"))


def test_batches_are_the_same_with_and_without_workers(dataset):
    (alone, *_), (loaded, *_) = (list(build_loader(dataset(), 2, workers)) for workers in (0, 1))
    assert torch.equal(alone.images.images, loaded.images.images)
    assert alone.images.images.stride() == loaded.images.images.stride()
    assert loaded.images.images.is_shared()
