"""Several processes as one: set-up from the environment, and the few exchanges that training needs."""

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from filelock import FileLock  # comes with torch
from torch import Tensor

log = logging.getLogger(__name__)

Value = TypeVar("Value")
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one."""


def init_processes(device: str):
    """Joins the process group that the launcher announced in the environment; does nothing in a single process.

    Reads RANK, WORLD_SIZE and LOCAL_RANK (torchrun, torch.distributed.launch), or SLURM_PROCID, SLURM_NTASKS and
    SLURM_LOCALID where MASTER_ADDR is set (tools/run_dist_slurm.sh). Uses nccl on CUDA and gloo elsewhere.
    """
    if "RANK" not in os.environ and {"SLURM_PROCID", "SLURM_NTASKS", "MASTER_ADDR"} <= os.environ.keys():
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
        os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(local_rank())
    backend = "nccl" if device == "cuda" else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=TIMEOUT)
        return
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    shared = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=TIMEOUT)
    store = dist.PrefixStore(agree_on_start(shared, number, count), shared)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)


def agree_on_start(store: dist.Store, number: int, count: int) -> str:
    """A name for this start of the processes, the same in all of them and never used before.

    torchrun's store outlives the processes that it starts again (--max_restarts). One that comes sooner than another
    would read there what that one's predecessor wrote, and connect to an address where nobody is:
    https://github.com/pytorch/pytorch/issues/135712. How often they were started does not serve as a name: torchruns on
    several machines count differently. So the main process names the start, and what the others greeted it with, by
    which they know that it is not of the past; and it waits until they have answered with that name.

    Raises:
        TimeoutError: another process did not come.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + TIMEOUT.total_seconds()
    store.set(f"hello{number}", own)
    others = range(1, count)
    while time.monotonic() < end:
        if number == 0:
            store.set("start", json.dumps({"name": own, "hellos": [store.get(f"hello{i}").decode() for i in others]}))
            there = store.check  # type: ignore[attr-defined]  # which the hints of PyTorch 2.6 lack
            if all(there([f"answer{i}"]) and store.get(f"answer{i}").decode() == own for i in others):
                return own
        else:
            start = json.loads(store.get("start"))
            if own in start["hellos"]:
                store.set(f"answer{number}", start["name"])
                return start["name"]
        time.sleep(0.02)
    raise TimeoutError(f"process {number} of {count}: the others did not come within {TIMEOUT}")


def leave_processes():
    """Ends what `init_processes` began, once all processes are here.

    A process in which something failed leaves without it: it would wait for others, which wait for it in an exchange
    and hear of it by its end. And gloo's threads may still hold tensors of the last exchange; a group that is destroyed
    meanwhile can wait for them for ever while they wait for Python.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Number of this process on its own machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def barrier():
    """Waits until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes; itself in a single one."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def mean_dict(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over all processes of scalars that every process has under the same names, float32, in one exchange."""
    names = sorted(values)
    means = mean_over_processes(torch.stack([values[name].detach().float() for name in names]))
    return dict(zip(names, means.unbind(), strict=True))


def broadcast_buffers(model: torch.nn.Module):
    """Gives every process the main one's buffers: running statistics of batch norm are each process's own."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def gather_objects(value) -> list:
    """What every process has, in order of their numbers. `value` must be picklable; it never leaves these processes."""
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value):
    """The main process's value, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def run_in_all_processes(work: Callable[[], Value], error: type[Exception], remedy: str = "") -> Value:
    """Does in every process what may fail in one of them alone: each returns its own result, or all raise.

    Args:
        work: must not wait for other processes.
        error: what is raised where it failed in another process only.
        remedy: what helps then.

    Raises:
        Exception: that of `work` where it failed in this process.
    """
    problem: Exception | None = None
    try:
        result = work()
    except Exception as raised:  # whatever it is, the others must not wait for this process
        problem = raised
    problems = gather_objects(None if problem is None else str(problem) or type(problem).__name__)
    if problem is not None:
        raise problem
    for number, said in enumerate(problems):
        if said is not None:
            raise error(f"process {number}: {said}{remedy and f'. {remedy}'}")
    return result


def run_in_main_process(work: Callable[[], object], error: type[Exception]):
    """Does in the main process what may fail there; the others wait to hear that it worked, or all raise.

    Args:
        work: must not wait for other processes.
        error: what is raised in the others.
    """
    run_in_all_processes(work if is_main() else lambda: None, error)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Lets one process of a machine in at a time, of one program or several, each to find what the one before it made.

    Args:
        path: what is made. The lock is PATH.lock; a process lets go of it however it ends.
    """
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.warning("%s.lock: cannot be locked, so that processes do not wait for each other: %s", path, error)
    try:
        yield
    finally:
        lock.release()
