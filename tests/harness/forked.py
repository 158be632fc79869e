"""main.py in processes of its own that need not import PyTorch anew: they are forked off one that has."""

import os
import signal
import socket
import time
from pathlib import Path

import main as program
from datasets.shapes import make_shapes
from util.cli.arguments import parse_arguments

ROOT = Path(__file__).parents[2]
CONFIG = f"""_base_ = {str(ROOT / "config/small/lite_dino_r18_shapes.py")!r}
_layer = dict(ffn_dim=32, dropout=0.1)
model = dict(
    d_model=32, num_heads=4, backbone=dict(stages=(2, 3)), num_levels=2,
    encoder=dict(high_levels=1, layer=_layer, last_layer=dict(low_ffn_dim=32, **_layer)),
    queries=dict(dn_number=2, base=dict(num_queries=20)), decoder=dict(num_layers=2, layer=_layer))
data = dict(
    batch_size=2, eval_batch_size=1, augment=dict(scales=(48, 64), max_size=96), resize=dict(scale=64, max_size=96))
schedule = dict(epochs=2, kind='step', drop=(1,), warmup_steps=3)
training = dict(ema=dict(decay=0.9), accumulate=2, eval_every=1, save_every=1, print_every=1)
"""
"""A model as small as can be, with all that is random and all that is remembered."""


def prepare(folder: Path, train: int = 24, val: int = 3) -> list[str]:
    """Writes a config and synthetic data there; returns the arguments of main.py that name them."""
    make_shapes(folder / "data", train=train, val=val)
    (folder / "tiny.py").write_text(CONFIG)
    return ["-c", str(folder / "tiny.py"), "--coco_path", str(folder / "data"), "--device", "cpu"]


class Forked:
    """One run of main.py in several processes.

    Args:
        arguments: of main.py.
        processes: how many.
        output: receives what they say.
    """

    def __init__(self, arguments: list[str], processes: int, output: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.status: dict[int, int] = {}
        self.pids = []
        for rank in range(processes):
            pid = os.fork()
            if pid == 0:
                _become(arguments, rank, processes, port, output)
            os.setpgid(pid, pid)  # as the child does: whichever comes first
            self.pids.append(pid)

    def alive(self) -> bool:
        """Whether any process still runs."""
        for pid in self.pids:
            if pid not in self.status:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.status[pid] = os.waitstatus_to_exitcode(status)
        return len(self.status) < len(self.pids)

    def send(self, number: int, ranks: list[int] | None = None):
        """Sends a signal to processes and their loaders; to all by default."""
        for rank, pid in enumerate(self.pids):
            if (ranks is None or rank in ranks) and pid not in self.status:
                os.killpg(pid, number)

    def wait(self, seconds: float = 300) -> list[int]:
        """Waits for all processes, no longer than this; returns their exit statuses."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            time.sleep(0.005)
        if self.alive():
            self.send(signal.SIGKILL)
            while self.alive():
                time.sleep(0.005)
        return [self.status[pid] for pid in self.pids]


def _become(arguments: list[str], rank: int, processes: int, port: str, output: Path):
    """Turns a forked process into one of a run; never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {**group, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        status = program.main(parse_arguments(arguments))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)
