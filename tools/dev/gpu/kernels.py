"""A few calls of the kernels, for compute-sanitizer and ncu: `python -m tools.dev.gpu.kernels --device cuda`."""

import argparse
import sys

import torch

from tools.dev.benchmark_ops import SHAPES, op_functions, random_problem

SMALL = ((9, 12), (5, 6), (3, 3), (1, 1))
TYPES = ("float32", "bfloat16", "float16")


def main() -> int:
    """Runs forward and backward of every attention, in every type; with --large once, as an encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--large", action="store_true", help="two images of 800x1066 in bfloat16")
    args = parser.parse_args()
    shapes = SHAPES if args.large else SMALL
    calls = 0
    for dtype in ("bfloat16",) if args.large else TYPES:
        for queries in (None,) if args.large else (None, 7):
            for deterministic in (False,) if args.large else (False, True):
                torch.use_deterministic_algorithms(deterministic)
                inputs = random_problem(2, queries, getattr(torch, dtype), args.device, shapes)
                for (_, backend), (function, taken) in op_functions(args.device, dtype, False, shapes).items():
                    if backend == args.device:
                        leaves = [inputs[i].requires_grad_() for i in taken]
                        answer = function(*leaves)
                        torch.autograd.grad(answer, leaves, torch.randn_like(answer))
                        calls += 1
    if args.device == "cuda":
        torch.cuda.synchronize()
    print(f"{calls} calls, forward and backward")
    return int(calls == 0)


if __name__ == "__main__":
    sys.exit(main())
