"""Trains on two hosts, cuts one off in the middle, and lets it come back: the weights are those without the cut.

usage: python -m tests.harness.two_hosts     (as root, on Linux with iproute2)

The hosts are two network namespaces with an address each, joined by a virtual cable, and share a file system. Each runs
torchrun --nnodes=2 --max_restarts. Everything on the second host is killed, as if its power had gone, and its cable is
pulled; then the cable is put back and the second host's command is started again. Nobody touches the first host.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.harness.forked import ROOT, prepare
from tests.harness.kill import equal
from util.checkpoints.files import read_checkpoint

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29477
CUT_SECONDS = 5


def name(host: int) -> str:
    """Of a host's namespace, and of its end of the cable."""
    return f"leandetr{host}"


def ip(*words: str):
    """Runs the tool of that name."""
    subprocess.run(["ip", *words], check=True)


def build():
    """Two namespaces and a cable."""
    for host in (0, 1):
        ip("netns", "add", name(host))
    ip("link", "add", name(0), "netns", name(0), "type", "veth", "peer", "name", name(1), "netns", name(1))
    for host in (0, 1):
        ip("-n", name(host), "addr", "add", f"{ADDRESSES[host]}/24", "dev", name(host))
        cable(host, "up")
        ip("-n", name(host), "link", "set", "lo", "up")


def cable(host: int, state: str):
    """Plugs a host in ("up") or out ("down")."""
    ip("-n", name(host), "link", "set", name(host), state)


def start(host: int, arguments: list[str], output: Path) -> subprocess.Popen:
    """torchrun on a host."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": name(host),
        # Else a torchrun that comes back waits for an address that the one that stayed has told already (PyTorch 2.15).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    words = ["ip", "netns", "exec", name(host), sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
    words += ["--nproc_per_node=1", "--max_restarts=3", "--rdzv_backend=c10d", f"--rdzv_endpoint={ADDRESSES[0]}:{PORT}"]
    # Whose name resolves to the first address cannot be seen from within a namespace.
    words += [
        f"--rdzv_conf=is_host={1 - host}",
        f"--local_addr={ADDRESSES[host]}",
        "main.py",
        *arguments,
        "--output_dir",
        str(output),
    ]
    output.mkdir(exist_ok=True)
    with (output / f"host{host}.txt").open("a") as said:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(hosts: list[subprocess.Popen], output: Path):
    """Waits for both hosts."""
    for host, process in enumerate(hosts):
        if process.wait(timeout=600) != 0:
            sys.exit(f"host {host} ended with {process.returncode}\n{(output / f'host{host}.txt').read_text()[-4000:]}")


def kill_everything_on(host: int):
    """As if its power had gone."""
    found = subprocess.run(["ip", "netns", "pids", name(host)], capture_output=True, text=True, check=True)
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def cut_in_the_middle(hosts: list[subprocess.Popen], arguments: list[str], output: Path):
    """Takes the second host away and brings it back."""
    log = output / "info.txt"
    while not (log.is_file() and "epoch 0 6/" in log.read_text()):
        if hosts[0].poll() is not None:
            sys.exit((output / "host0.txt").read_text()[-4000:])
        time.sleep(0.01)
    kill_everything_on(1)
    cable(1, "down")
    hosts[1].wait()
    time.sleep(CUT_SECONDS)
    cable(1, "up")
    hosts[1] = start(1, arguments, output)


def train(folder: Path) -> float:
    """Trains without and with the cut; returns how many seconds later the one with it was through."""
    arguments = [*prepare(folder, train=48), "--num_workers", "0", "--save_every_steps", "2"]
    whole, cut, seconds = folder / "whole", folder / "cut", []
    for output in (whole, cut):
        begin = time.monotonic()
        hosts = [start(host, arguments, output) for host in (0, 1)]
        if output is cut:
            cut_in_the_middle(hosts, arguments, output)
        finish(hosts, output)
        seconds.append(time.monotonic() - begin)
    one, other = (read_checkpoint(output / "checkpoint.pth") for output in (whole, cut))
    for key in ("model", "ema", "optimizer", "schedule", "epoch", "step", "random", "best"):
        if not equal(one[key], other[key]):
            sys.exit(f"{key} differs")
    if "going on after 0 epochs" not in (cut / "info.txt").read_text():
        sys.exit("the cut came too late to be seen")
    return seconds[1] - seconds[0]


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build()
        try:
            late = train(Path(folder))
        finally:
            for host in (0, 1):
                kill_everything_on(host)
                ip("netns", "del", name(host))
    print(f"two hosts, one cut off for {CUT_SECONDS} s: the same weights bit for bit, {late:.0f} s later")


if __name__ == "__main__":
    main()
