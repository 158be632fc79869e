"""Checks the built kernels against plain PyTorch; prints True or False for each check.

usage: python test.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.ops import available_backends, key_aware_deform_attn, ms_deform_attn

SHAPES = ((6, 4), (3, 2))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def arguments(dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Query, key, value, locations, weights."""
    torch.manual_seed(3)
    N, M, D, Q, P = 2, 2, 8, 5, 2
    S, L = sum(h * w for h, w in SHAPES), len(SHAPES)
    sizes = ((N, Q, M, D), (N, S, M, D), (N, S, M, D), (N, Q, M, L, P, 2), (N, Q, M, L, P))
    wide = torch.promote_types(dtype, torch.float32)
    tensors = [torch.rand(size, device=device).to(dtype if i < 3 else wide) for i, size in enumerate(sizes)]
    return [tensor.requires_grad_() for tensor in tensors]


def agree(function, inputs: list[torch.Tensor], backend: str, tolerance: float) -> bool:
    """Whether answer and gradients of a backend equal the reference's, relative to the largest number of each."""
    results = []
    for name in (backend, "reference"):
        answer = function(*inputs, name)
        results.append((answer, *torch.autograd.grad(answer.float().square().sum(), inputs)))
    pairs = zip(*results, strict=True)
    return all((a - b).abs().max() <= tolerance * b.abs().max() for a, b in pairs)


def main() -> int:
    """Runs all checks; 0 when every one holds and there was something to check."""
    outcomes = []
    for backend in available_backends():
        if backend == "reference":
            continue
        for dtype, tolerance in TOLERANCE.items():
            if backend == "cuda" and dtype == torch.float64:
                continue
            query, key, value, locations, weights = arguments(dtype, backend)
            checks = {
                "plain": (lambda v, x, w, b: ms_deform_attn(v, SHAPES, x, w, b), [value, locations, weights]),
                "key-aware": (
                    lambda q, k, v, x, b: key_aware_deform_attn(q, k, v, SHAPES, x, b),
                    [query, key, value, locations],
                ),
                "key-aware, values as keys": (
                    lambda q, v, x, b: key_aware_deform_attn(q, v, v, SHAPES, x, b),
                    [query, value, locations],
                ),
            }
            for name, (function, inputs) in checks.items():
                outcomes.append(agree(function, inputs, backend, tolerance))
                print(f"* {outcomes[-1]} {backend} {dtype}: {name}, answer and gradients")
    if not outcomes:
        print("* False nothing is built; run: sh ./make.sh")
    return 0 if outcomes and all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
