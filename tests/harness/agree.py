"""Two processes, as if on two machines that do not see the same files: both go on, or both stop and say why.

usage: python -m tests.harness.agree

Prints one JSON object: by case, what each process returned or raised; and what the server was asked for. A process that
waits for the other for longer than SECONDS is killed, and has nothing to say.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from http.server import HTTPServer
from pathlib import Path

import datasets.loader as loader
from datasets.shapes import make_shapes
from tests.harness.server import FileServer
from util.checkpoints.download import cached_path
from util.checkpoints.files import CheckpointError, read_checkpoint, read_checkpoint_in_all_processes, save_checkpoint
from util.checkpoints.store import CheckpointStore
from util.config import load_config
from util.processes.distributed import barrier, init_processes, leave_processes, run_in_all_processes

SECONDS = 60
ROOT = Path(__file__).parents[2]


def fork(work: Callable[[], object]) -> int:
    """Does something in a process of its own, which ends with it; returns its number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def end(pid: int, seconds: float):
    """Waits for a process, and ends it where it takes longer."""
    limit = time.monotonic() + seconds
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.01)


def in_two(case: Callable[[int, Path], object], folder: Path) -> list:
    """What a case returned in each of two processes, or the error that it raised; None where nothing came back."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank: int):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        init_processes("cpu")
        try:
            found = case(rank, folder)
        except CheckpointError as error:
            found = str(error)
        barrier()  # all of them are still there and in step
        (folder / f"{rank}.json").write_text(json.dumps(found))
        leave_processes()

    folder.mkdir()
    for pid in [fork(partial(work, rank)) for rank in range(2)]:
        end(pid, SECONDS)
    files = [folder / f"{rank}.json" for rank in range(2)]
    return [json.loads(file.read_text()) if file.is_file() else None for file in files]


def cache_of(rank: int, folder: Path):
    """Gives a process PyTorch's cache of a machine of its own."""
    os.environ["TORCH_HOME"] = str(folder / f"machine{rank}")


# ------------------------------------------------------------------------------------------------------------ by URL


def url_of_one_machine(url: str, rank: int, folder: Path):
    cache_of(0, folder)
    return read_checkpoint_in_all_processes(f"{url}/model.pth?one")["epoch"]


def url_of_two_machines_one_of_which_has_it(url: str, rank: int, folder: Path):
    cache_of(rank, folder)
    if rank == 0:
        read_checkpoint(f"{url}/model.pth?two")
    barrier()
    return read_checkpoint_in_all_processes(f"{url}/model.pth?two")["epoch"]


def url_that_one_process_reads_alone(url: str, rank: int, folder: Path):
    cache_of(rank, folder)
    return read_checkpoint(f"{url}/model.pth?alone")["epoch"] if rank == 1 else None


def url_that_one_machine_cannot_reach(url: str, rank: int, folder: Path):
    cache_of(rank, folder)
    if rank == 1:
        path = cached_path(f"{url}/absent.pth")
        path.parent.mkdir(parents=True)
        save_checkpoint_alone({"epoch": 1}, path)
    return read_checkpoint_in_all_processes(f"{url}/absent.pth")["epoch"]


def killed_while_it_downloads(url: str, rank: int, folder: Path):
    """The first process, while the second waits for its turn; then that downloads all of it."""
    cache_of(0, folder)
    asked = folder.parent / "requests.txt"
    if rank == 1:
        while "/stall/" not in asked.read_text():
            time.sleep(0.01)
        return read_checkpoint(f"{url}/stall/model.pth")["epoch"]
    pid = fork(lambda: read_checkpoint(f"{url}/stall/model.pth"))
    while "/stall/" not in asked.read_text():
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


# ---------------------------------------------------------------------------------------------------- output folders


def save_checkpoint_alone(content: dict, path: Path):
    """In this process, whichever it is."""
    import torch

    torch.save({"format": "leandetr-1", **content}, path)


def machine(rank: int, folder: Path):
    """Goes to where a process finds its relative paths; another machine finds other files there."""
    (folder / f"machine{rank}").mkdir(exist_ok=True)
    os.chdir(folder / f"machine{rank}")


def gone_on(rank: int, folder: Path, machines: int = 2, auto: bool = False):
    """From FILE, which every machine has, until epoch 7, which the first one alone has saved."""
    machine(rank % machines, folder)
    save_checkpoint_alone({"epoch": 0}, Path(f"file{rank}.pth"))
    Path(f"file{rank}.pth").replace("file.pth")
    if rank == 0:
        Path("output").mkdir()
        save_checkpoint_alone({"epoch": 7, "resumed_from": "file.pth"}, Path("output/checkpoint.pth"))
    barrier()
    return CheckpointStore(Path("output"), keep=2).find("auto" if auto else "file.pth", training=True)[0]["epoch"]


def file_of_one(rank: int, folder: Path):
    machine(rank, folder)
    if rank == 0:
        save_checkpoint_alone({"epoch": 3}, Path("mine.pth"))
    return CheckpointStore(folder, keep=2).find("mine.pth", training=True)[0]["epoch"]


def file_that_differs(rank: int, folder: Path):
    machine(rank, folder)
    save_checkpoint_alone({"epoch": rank}, Path("file.pth"))
    return CheckpointStore(folder, keep=2).find("file.pth")[0]["epoch"]


def full_disk(rank: int, folder: Path):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    os.fsync = fail
    save_checkpoint({"epoch": 1}, folder / "a.pth")


def any_error(rank: int, folder: Path):
    with contextlib.suppress(ZeroDivisionError):
        run_in_all_processes(lambda: 1 / (1 - rank), CheckpointError, "Divide by less")


def shapes(rank: int, folder: Path):
    """Synthetic shapes, on two machines."""
    machine(rank, folder)
    loader.make_shapes = partial(make_shapes, train=2, val=1)
    cfg = load_config(ROOT / "config/small/lite_dino_r18_shapes.py", {"data.root": "shapes"})
    return len(loader.build_dataset(cfg, "train"))


# --------------------------------------------------------------------------------------------------------------------


def main():
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoint({"epoch": 5}, folder / "model.pth")
        (folder / "requests.txt").touch()
        server = HTTPServer(("127.0.0.1", 0), partial(FileServer, folder))
        url = f"http://127.0.0.1:{server.server_port}"
        serving = fork(server.serve_forever)
        by_url = (
            url_of_one_machine,
            url_of_two_machines_one_of_which_has_it,
            url_that_one_process_reads_alone,
            url_that_one_machine_cannot_reach,
            killed_while_it_downloads,
        )
        cases = {case.__name__: partial(case, url) for case in by_url}
        cases |= {
            "gone_on": partial(gone_on, machines=1),
            "gone_on_unseen": gone_on,
            "newest_unseen": partial(gone_on, auto=True),
        }
        cases |= {case.__name__: case for case in (file_of_one, file_that_differs, full_disk, any_error, shapes)}
        chosen = sys.argv[1:] or list(cases)
        try:
            for name in chosen:
                found[name] = in_two(cases[name], folder / name)
            found["requests"] = (folder / "requests.txt").read_text().split()
        finally:
            os.kill(serving, signal.SIGKILL)
            os.waitpid(serving, 0)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
