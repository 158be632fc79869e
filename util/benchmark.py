"""What a detector costs: parameters, multiply-adds, latency."""

import statistics
import time

import torch
from torch import nn

from util.flops import count_by_part

SIZE = (850, 1040)
"""Height and width of the picture behind the published multiply-adds of most papers here."""
LATENCY_SIZE = (800, 1066)


def measure(model: nn.Module, device: str, repeats: int = 5) -> dict:
    """Measures one picture at a time.

    Returns:
        parameters and trainable_parameters; gmacs in all and gmacs_by_part of one 850x1040 picture; latency_ms, its
        median, and latency_ms_p95 for one 800x1066 picture after warming up.
    """
    parts = count_by_part(model, [torch.empty(3, *SIZE)])
    seconds = latencies(model, torch.randn(1, 3, *LATENCY_SIZE, device=device), repeats)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "gmacs": sum(parts.values()),
        "gmacs_by_part": parts,
        "latency_ms": 1e3 * statistics.median(seconds),
        "latency_ms_p95": 1e3 * sorted(seconds)[int(0.95 * (len(seconds) - 1))],
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
    }


@torch.inference_mode()
def latencies(model: nn.Module, images: torch.Tensor, repeats: int) -> list[float]:
    """Seconds of each of `repeats` forward passes on a batch (B, 3, H, W), after two that do not count."""
    model.eval()
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        model(list(images))
        if images.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def describe(measured: dict) -> str:
    """The measurements as text for people."""
    total, trainable = measured["parameters"] / 1e6, measured["trainable_parameters"] / 1e6
    parts = "  ".join(f"{name} {value:.2f}" for name, value in measured["gmacs_by_part"].items())
    return "\n".join(
        [
            f"parameters      {total:.3f} M, {trainable:.3f} M trainable",
            f"multiply-adds   {measured['gmacs']:.2f} G at {SIZE[0]}x{SIZE[1]}: {parts}",
            f"latency         {measured['latency_ms']:.1f} ms median, {measured['latency_ms_p95']:.1f} ms p95, "
            f"one picture of {LATENCY_SIZE[0]}x{LATENCY_SIZE[1]} on {measured['device']}",
        ]
    )
