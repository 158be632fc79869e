"""Times detectors beside transformers' models of the same architecture, in one run on the CPU.

usage: python tools/benchmark_peers.py [NAME ...] [--repeats N]

Needs transformers, which nothing else here does. Weights are random on both sides; one picture of 800x1066, float32.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from models import build_detector
from util.config import load_config

SIZE = (800, 1066)
PEERS = {
    "deformable_detr_r50": ("DeformableDetr", ["stage2", "stage3", "stage4"]),
    "detr_r50": ("Detr", ["stage4"]),
    "conditional_detr_r50": ("ConditionalDetr", ["stage4"]),
}
"""{our config: (the prefix of transformers' classes, the backbone's stages that it reads)}."""


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
def compare(name: str, repeats: int) -> str:
    """Both models in turns, after one round that does not count."""
    (path,) = (ROOT / "config").rglob(f"{name}.py")
    ours, theirs = build_detector(load_config(path)).eval(), peer_of(name)
    picture, mask = torch.randn(3, *SIZE), torch.ones(1, *SIZE, dtype=torch.long)
    seconds = ([], [])
    for _ in range(repeats + 1):
        for model, found in zip((lambda: ours([picture]), lambda: theirs(picture[None], mask)), seconds, strict=True):
            start = time.perf_counter()
            model()
            found.append(time.perf_counter() - start)
    a, b = (statistics.median(found[1:]) for found in seconds)
    return f"| {name} | {a:.2f} | {b:.2f} | {b / a:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    args = parser.parse_args()
    unknown = set(args.names) - PEERS.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(PEERS)}")
    print(f"CPU, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, {SIZE[0]}x{SIZE[1]}, float32\n")
    print("| model | seconds | transformers | times as fast |\n|---|---|---|---|")
    for name in args.names or PEERS:
        print(compare(name, args.repeats), flush=True)


if __name__ == "__main__":
    main()
