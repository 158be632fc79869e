"""What a model's matrix products and convolutions would take alone, each by the faster library at its own shape."""

import platform
import re
import statistics
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from util.measuring.benchmark import time_repeats

aten = torch.ops.aten
Shape = tuple
"""("linear", rows, depth, columns), ("bmm", batch, rows, depth, columns), or ("convolution", x's sizes, weight's
sizes, stride, padding, dilation, groups)."""


class _Products(TorchDispatchMode):
    """Counts the products that are asked for, by their shapes."""

    def __init__(self):
        super().__init__()
        self.found: Counter[Shape] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        if packet in (aten.addmm, aten.mm):
            a, b = args[-2:]
            self.found["linear", a.shape[0], a.shape[1], b.shape[1]] += 1
        elif packet in (aten.bmm, aten.baddbmm):
            a, b = args[-2:]
            self.found[("bmm", *a.shape, b.shape[2])] += 1
        elif packet is aten.convolution:
            x, weight, _, stride, padding, dilation, _, _, groups = args
            sizes = (tuple(part) for part in (x.shape, weight.shape, stride, padding, dilation))
            self.found[("convolution", *sizes, groups)] += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()  # in inference mode linear layers would not be products yet
def products_of(detector: nn.Module, image: Tensor) -> Counter[Shape]:
    """{shape: how often} of one detection in a (1, 3, H, W) image; computed on shapes alone."""
    with _Products() as counted:
        detector.to("meta")([image[0].to("meta")])
    return counted.found


@torch.inference_mode()
def product_seconds(shape: Shape, repeats: int = 3) -> float:
    """Seconds of one product, the median of some, by the faster library."""
    kind, *sizes = shape
    if kind == "linear":
        rows, depth, columns = sizes
        x, weight = torch.randn(rows, depth), torch.randn(columns, depth)
        works = [lambda: F.linear(x, weight)]
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            works.append(lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))
    elif kind == "bmm":
        batch, rows, depth, columns = sizes
        a, b = torch.randn(batch, rows, depth), torch.randn(batch, depth, columns)
        works = [lambda: a @ b]
    else:
        last = {"memory_format": torch.channels_last}
        image, kernel = (torch.randn(size).contiguous(**last) for size in sizes[:2])
        works = [lambda: F.conv2d(image, kernel, None, *sizes[2:])]
    return min(statistics.median(time_repeats(work, "cpu", repeats)) for work in works)


def processor_name() -> str:
    """The processor in words, with family and model, since many names say little."""
    about = Path("/proc/cpuinfo")
    found = (
        dict(re.findall(r"^([\w ]+?)\s*: (.*)$", about.read_text(encoding="utf-8"), re.MULTILINE))
        if about.exists()
        else {}
    )
    if "model name" not in found:
        return platform.processor() or platform.machine()
    widest = next((name for name in ("avx512_bf16", "avx512f", "avx2") if name in found.get("flags", "")), "")
    return f"{found['model name']} (family {found.get('cpu family')}, model {found.get('model')}, {widest})"
