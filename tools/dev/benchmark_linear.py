"""Times linear layers at the shapes of an encoder, by each library that can multiply them here, in turns.

usage: python tools/dev/benchmark_linear.py [--threads N] [--rounds N] [--out FILE.md]

10^9 operations per second (two per multiply-add), the medians of the rounds; one image of 800x1066, float32, and
bfloat16 where the kernels have it. "Backward" is the gradients of input, weight and bias together.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from models.ops import linear as products
from tools.dev.products import processor_name
from tools.dev.tables import markdown_row, say
from util.cli.outputs import growing_file, writable_file
from util.processes.allocator import keep_freed_memory

ROWS = 17821
LAYERS = ((ROWS, 256, 1024), (ROWS, 1024, 256), (ROWS, 256, 256), (900, 256, 256))
HIDDEN = (1024, 2048)


def choose(choice: str):
    """Has linear layers computed by one of models.ops.linear.CHOICES from now on."""
    os.environ["LEANDETR_LINEAR"] = choice
    products.linear_products.cache_clear()


def works(rows: int, depth: int, columns: int) -> dict[str, tuple[float, Callable[[], object]]]:
    """{what is done: (operations in 10^9, what does it)} of a layer with a ReLU."""
    x, weight, bias = torch.randn(rows, depth), torch.randn(columns, depth) / depth**0.5, torch.randn(columns)
    grad = torch.randn(rows, columns)
    learned = [t.clone().requires_grad_() for t in (x, weight, bias)]
    operations = 2e-9 * rows * depth * columns

    @torch.no_grad()
    def forward() -> Tensor:
        return products.linear(x, weight, bias, "relu")

    def backward():
        torch.autograd.grad(products.linear(*learned, "relu"), learned, grad)

    @torch.no_grad()
    def forward_bfloat16():
        with torch.autocast("cpu", torch.bfloat16):
            products.linear(x, weight, bias, "relu")

    return {
        "forward": (operations, forward),
        "forward and backward": (3 * operations, backward),
        "forward, bfloat16": (operations, forward_bfloat16),
    }


def feed_forward_works(hidden: int) -> dict[str, tuple[float, Callable[[], object]]]:
    """The same of a feed-forward network with its residual and norm."""
    x, norm = torch.randn(ROWS, 256), nn.LayerNorm(256)
    weights = torch.randn(hidden, 256) / 16, torch.randn(256, hidden) / hidden**0.5
    biases = torch.randn(hidden), torch.randn(256)

    @torch.no_grad()
    def forward():
        products.feed_forward(x, weights, biases, norm)

    @torch.no_grad()
    def forward_bfloat16():
        with torch.autocast("cpu", torch.bfloat16):
            products.feed_forward(x, weights, biases, norm)

    operations = 4e-9 * ROWS * 256 * hidden
    return {"forward": (operations, forward), "forward, bfloat16": (operations, forward_bfloat16)}


def rates(operations: float, work: Callable[[], object], rounds: int) -> dict[str, float]:
    """{choice: 10^9 operations per second}, measured in turns."""
    found: dict[str, list[float]] = {choice: [] for choice in products.CHOICES}
    for turn in range(rounds + 1):
        for choice, seconds in found.items():
            with contextlib.suppress(ValueError):  # it is not here
                choose(choice)
                start = time.perf_counter()
                work()
                if turn:
                    seconds.append(time.perf_counter() - start)
    return {choice: operations / statistics.median(seconds) for choice, seconds in found.items() if seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--out", type=writable_file, metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    with growing_file(args.out) if args.out else contextlib.nullcontext() as file:
        say(f"{processor_name()}, {args.threads} threads; PyTorch {torch.__version__}\n", file)
        say(markdown_row("layer", "", *products.CHOICES), file)
        say(markdown_row(*["---"] * (2 + len(products.CHOICES))), file)
        layers = {" x ".join(map(str, layer[:2])) + f" -> {layer[2]}": works(*layer) for layer in LAYERS}
        layers |= {f"feed-forward network, {hidden} wide": feed_forward_works(hidden) for hidden in HIDDEN}
        for layer, todo in layers.items():
            for what, (operations, work) in todo.items():
                measured = rates(operations, work, args.rounds)
                found = [f"{measured[choice]:.0f}" if choice in measured else "" for choice in products.CHOICES]
                say(markdown_row(layer, what, *found), file)


if __name__ == "__main__":
    main()
