"""Stage 4: detectors: latency, images a second and memory, beside transformers' Deformable DETR on the same card."""

import statistics

import torch
from torch import nn

from models import build_detector
from tools.dev.benchmark_peers import peer_of
from tools.dev.gpu.models import REAL_TIME, TINY, config_of, image_size
from tools.dev.gpu.results import Results
from tools.dev.gpu.stages import Setting
from util.measuring.benchmark import held_megabytes, peak_megabytes, time_repeats
from util.measuring.flops import count_gmacs
from util.tensors.cuda_graphs import GraphedDetector
from util.tensors.precision import Precision, allow_tf32

NAMES = (
    "deformable_detr_r50", "dino_4scale_r50", "lite_dino_r50_h3l1_2p1x3_kda", "efficient_detr_r50",
    "sparse_detr_r50_rho_0.1", *REAL_TIME, "detr_r50", "conditional_detr_r50", "h_deformable_detr_r50",
)  # fmt: skip
PEER = "deformable_detr_r50"
CLAIMS = (("lite_dino_r50_h3l1_2p1x3_kda", "dino_4scale_r50"), ("sparse_detr_r50_rho_0.1", "efficient_detr_r50"))
"""(what its paper calls faster, than what)."""
FORMATS = {"bfloat16": (True, False), "TF32": (False, True), "float32": (False, False)}
"""{name: (whether to autocast, whether products may be TF32)}."""
REPEATS = {1: 10, 8: 5}
"""Of each size of batch."""


class Bench:
    """Runs models and remembers their milliseconds.

    Args:
        setting, results: of the stage.

    Attributes:
        found: by model, format, images at a time, and way of running.
    """

    def __init__(self, setting: Setting, results: Results):
        self.setting, self.results = setting, results
        self.found: dict[tuple[str, str, int, str], float] = {}

    @torch.inference_mode()
    def measure(self, name: str, model: nn.Module, format_: str, count: int, way: str):
        """One model in one way: "eager", "graph", "compiled", or "theirs" for one of transformers.

        Memory is that of one run at its peak, beside the weights; of a graph what it holds as long as it lives.
        """
        amp, tf32 = FORMATS[format_]
        device, shape = self.setting.device, (count, 3, *image_size(self.setting, name))
        precision, images = Precision(device, amp), torch.randn(shape, device=device)
        inputs = (images, torch.ones(shape[0], *shape[2:], device=device)) if way == "theirs" else (list(images),)
        if way == "graph":
            model = GraphedDetector(model)
        elif way == "compiled":  # in a dry run without generating code, which takes minutes
            backend = "aot_eager" if self.setting.dry_run else "inductor"
            model = torch.compile(model, backend=backend, dynamic=False)

        def detect():
            with precision.autocast():
                return model(*inputs)

        with self.results.attempt(f"{name}, {format_}, N={count}, {way}"):
            allow_tf32(tf32)
            try:
                held = held_megabytes(detect) if way == "graph" else None  # the first run is the one that records
                seconds = time_repeats(detect, device, 2 if self.setting.dry_run else REPEATS[count])
                memory = peak_megabytes(detect, device) if held is None else held
            finally:
                allow_tf32(False)
            ms = self.found[name, format_, count, way] = 1e3 * statistics.median(seconds)
            figures = {"ms": ms, "images a second": 1e3 * count / ms, "MB at peak, of a graph held": memory}
            self.results.row("latency", model=name, format=format_, N=count, way=way, **figures)

    def times_as_fast(self, fast: tuple, slow: tuple) -> float | None:
        """None where one of them was not measured."""
        return self.found[slow] / self.found[fast] if {fast, slow} <= self.found.keys() else None


def run(setting: Setting, results: Results):
    """Formats in the order in which they matter; compiled models last, since they take longest to prepare."""
    bench = Bench(setting, results)
    detectors = {name: build_detector(config_of(name)).eval() for name in (TINY if setting.dry_run else NAMES)}
    gmacs = {
        name: count_gmacs(detector, [torch.empty(3, *image_size(setting, name))], inference=True)
        for name, detector in detectors.items()
    }
    detectors = {name: detector.to(setting.device) for name, detector in detectors.items()}
    theirs = None if setting.dry_run else peer_of(PEER).to(setting.device)
    for format_ in FORMATS:
        for name, detector in detectors.items():
            for count in REPEATS:
                bench.measure(name, detector, format_, count, "eager")
                if not setting.dry_run and (count == 1 or format_ == "bfloat16"):
                    bench.measure(name, detector, format_, count, "graph")
        for count in REPEATS:
            if theirs is not None:
                bench.measure("transformers", theirs, format_, count, "theirs")
            goals(bench, gmacs, format_, count)
    for name, detector in detectors.items():
        bench.measure(name, detector, "bfloat16", 1, "compiled")


def goals(bench: Bench, gmacs: dict[str, float], format_: str, count: int):
    """Beside transformers; and whether what is said to be faster gains in time what it gains in MACs.

    As they are, and as graphs, where the host does not take part in the time.
    """
    for way in ("eager", "graph"):
        where = f"{format_}, N={count}, {way}"
        ratio = bench.times_as_fast((PEER, format_, count, way), ("transformers", format_, count, "theirs"))
        if ratio is not None:
            bench.results.goal(f"{PEER}, {where}, times as fast as transformers'", ratio, 1.5, at_least=True)
        for fast, slow in CLAIMS:
            ratio = bench.times_as_fast((fast, format_, count, way), (slow, format_, count, way))
            if ratio is not None:
                share = ratio / (gmacs[slow] / gmacs[fast])
                said = f"{fast}, {where}: {ratio:.2f} times as fast as {slow}, of its MACs' ratio"
                bench.results.goal(said, share, 0.9, at_least=True)
