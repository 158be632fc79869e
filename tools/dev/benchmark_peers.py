"""Times detectors beside transformers' models of the same architecture, in one run on the CPU.

usage: python tools/dev/benchmark_peers.py [NAME ...] [--repeats N] [--keep_memory]

Needs transformers, which nothing else here does. Weights are random on both sides; one image of 800x1066, float32.
Each side runs as its users run it: the allocator of memory is told nothing in transformers' process, unless
--keep_memory has it told what main.py tells it (util/processes/allocator.py).
"""

import argparse
import functools
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from models import build_detector
from util.config import load_config
from util.processes.allocator import keep_freed_memory

SIZE = (800, 1066)
PEERS = {
    "deformable_detr_r50": ("DeformableDetr", ["stage2", "stage3", "stage4"]),
    "detr_r50": ("Detr", ["stage4"]),
    "conditional_detr_r50": ("ConditionalDetr", ["stage4"]),
}
"""{our config: (the prefix of transformers' classes, the backbone's stages that it reads)}."""


@functools.cache
def peer_of(name: str) -> torch.nn.Module:
    """transformers' model of the same architecture."""
    import transformers

    prefix, stages = PEERS[name]
    config = getattr(transformers, f"{prefix}Config")(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(out_features=stages),
    )
    return getattr(transformers, f"{prefix}ForObjectDetection")(config).eval()


@torch.inference_mode()
def seconds_of_peer(name: str) -> float:
    """Of one image."""
    model = peer_of(name)
    image, mask = torch.randn(1, 3, *SIZE), torch.ones(1, *SIZE, dtype=torch.long)
    start = time.perf_counter()
    model(image, mask)
    return time.perf_counter() - start


class Peer:
    """transformers' model of the same architecture, in a process of its own, which may keep freed memory too."""

    def __init__(self, name: str, keep_memory: bool = False):
        self.name = name
        self.process = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=keep_freed_memory if keep_memory else None
        )

    def __call__(self, *_) -> float:
        """Detects on one image of SIZE; returns the seconds that it took."""
        return self.process.submit(seconds_of_peer, self.name).result()


@torch.inference_mode()
def compare(name: str, repeats: int, keep_memory: bool) -> str:
    """Both models in turns, after one round that does not count."""
    (path,) = (ROOT / "config").rglob(f"{name}.py")
    ours, theirs = build_detector(load_config(path)).eval(), Peer(name, keep_memory)
    image, seconds = torch.randn(3, *SIZE), ([], [])
    for _ in range(repeats + 1):
        start = time.perf_counter()
        ours([image])
        seconds[0].append(time.perf_counter() - start)
        seconds[1].append(theirs())
    a, b = (statistics.median(found[1:]) for found in seconds)
    return f"| {name} | {a:.2f} | {b:.2f} | {b / a:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--keep_memory", action="store_true")
    args = parser.parse_args()
    keep_freed_memory()
    unknown = set(args.names) - PEERS.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(PEERS)}")
    print(f"CPU, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, {SIZE[0]}x{SIZE[1]}, float32\n")
    print("| model | seconds | transformers | times as fast |\n|---|---|---|---|")
    for name in args.names or PEERS:
        print(compare(name, args.repeats, args.keep_memory), flush=True)


if __name__ == "__main__":
    main()
