"""Times detectors beside whatever else can run them, on the CPU: in turns, each in a process of its own.

usage: python tools/dev/benchmark_peers.py [NAME ...] [--rounds N] [--repeats N] [--size H W] [--bfloat16]
                                           [--one_allocator] [--cpu_time] [--out FILE]

transformers runs its own model of the same architecture, once with its allocator as it comes and once told what main.py
tells ours (util/processes/allocator.py). onnxruntime and OpenVINO run our own export (tools/export.py). "Products" are
the model's matrix products and convolutions alone, one after the other, each by the faster of PyTorch's libraries
(tools/dev/products.py). Weights are random; one image. Ratios are medians of the rounds' own. Needs
requirements-extra.txt; what is not installed is named and left out. --out has every round's seconds as CSV.

With --one_allocator every side's allocator is told what main.py tells ours. --cpu_time counts what a side's process
computed, in all its threads, instead of what the clock says: for machines that others use, too. A side runs on as many
threads as OMP_NUM_THREADS says.
"""

import argparse
import contextlib
import csv
import functools
import importlib.metadata
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datasets.preparation import build_preparation
from models import build_detector
from models.ops import describe_kernels
from tools.dev.products import processor_name, product_seconds, products_of
from tools.dev.tables import all_configs, markdown_row
from tools.export import OnImages, capture, write_onnx
from util.cli.outputs import growing_file, writable_file
from util.config import load_config
from util.processes.allocator import keep_freed_memory
from util.tensors.precision import Precision

SIZE = (800, 1066)
CPU_TIME = "LEANDETR_BENCHMARK_CPU_TIME"
"""In the environment of the sides' processes where they count what was computed instead of asking the clock."""
TIME_LIMIT = 1800
"""Seconds that a side may take to answer."""
MODELS = ("deformable_detr_r50", "detr_r50", "conditional_detr_r50", "lite_dino_r50_h3l1_2p1x3_kda")
LAST_THREE = ["stage2", "stage3", "stage4"]
TRANSFORMERS: dict[str, tuple[str, list[str], dict]] = {
    "deformable_detr_r50": ("DeformableDetr", LAST_THREE, {}),
    "detr_r50": ("Detr", ["stage4"], {}),
    "conditional_detr_r50": ("ConditionalDetr", ["stage4"], {}),
    "rtdetr_r18vd": ("RTDetr", LAST_THREE, {"hidden_expansion": 0.5, "decoder_layers": 3}),
    "rtdetr_r50vd": ("RTDetr", LAST_THREE, {}),
    "dfine_hgnetv2_s": ("DFine", LAST_THREE, {"hidden_expansion": 0.5, "depth_mult": 0.34, "decoder_layers": 3}),
    "dfine_hgnetv2_m": ("DFine", LAST_THREE, {"hidden_expansion": 1.0, "depth_mult": 0.67, "decoder_layers": 4}),
}
"""{our config: (the prefix of transformers' classes, the backbone's stages that it reads, options)}."""
BACKBONES = {
    "rtdetr_r18vd": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    "rtdetr_r50vd": {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]},
    "dfine_hgnetv2_s": {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 64, 256, 512],
        "stage_mid_channels": [16, 32, 64, 128],
        "hidden_sizes": [64, 256, 512, 1024],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [3, 3, 3, 3],
    },
    "dfine_hgnetv2_m": {
        "stem_channels": [3, 24, 32],
        "stage_in_channels": [32, 96, 384, 768],
        "stage_mid_channels": [32, 64, 128, 256],
        "hidden_sizes": [96, 384, 768, 1536],
        "stage_num_blocks": [1, 1, 3, 1],
        "stage_numb_of_layers": [4, 4, 4, 4],
    },
}
"""{our config: what describes its backbone to transformers, beside ResNet-50}."""

Run = Callable[[], tuple[float, list[Tensor]]]
"""Detects on the image once; returns the seconds, and what can be compared with our logits and boxes, if anything."""


def timed(detect: Callable[[], list[Tensor]]) -> Run:
    """A run that takes as long as a call does."""

    def run() -> tuple[float, list[Tensor]]:
        clock = time.process_time if CPU_TIME in os.environ else time.perf_counter
        start = clock()
        answer = detect()
        return clock() - start, answer

    return run


def our_detector(name: str) -> torch.nn.Module:
    """The model of a config, with weights that are random and in every process the same."""
    torch.manual_seed(0)
    return build_detector(load_config(all_configs()[name])).eval()


def size_of(name: str) -> tuple[int, int]:
    """Height and width of the images that a config evaluates on, or of a typical one."""
    return tuple(build_preparation(load_config(all_configs()[name]).data).resize.size)


def example(size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W), in every process the same."""
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def ours(name: str, size: tuple[int, int], amp: bool) -> Run:
    detector, images, precision = our_detector(name), [example(size)[0]], Precision("cpu", amp)

    def detect() -> list[Tensor]:
        with torch.inference_mode(), precision.autocast():
            output = detector(images)
        return [output.logits, output.boxes]

    return timed(detect)


def peer_of(name: str) -> torch.nn.Module:
    """transformers' model of the same architecture."""
    import transformers

    prefix, stages, options = TRANSFORMERS[name]
    about = BACKBONES.get(name, {})
    if prefix == "RTDetr":
        backbone = transformers.RTDetrResNetConfig(out_features=stages, **about)
    elif prefix == "DFine":
        affine = {"stage_out_channels": about["hidden_sizes"], "use_learnable_affine_block": True}
        backbone = transformers.HGNetV2Config(out_features=stages, **about, **affine)
        options = options | {"decoder_n_points": [3, 6, 3]}
    else:
        backbone = transformers.ResNetConfig(out_features=stages)
        options = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    if about:
        options = options | {"encoder_in_channels": about["hidden_sizes"][1:]}
    config = getattr(transformers, f"{prefix}Config")(backbone_config=backbone, **options)
    return getattr(transformers, f"{prefix}ForObjectDetection")(config).eval()


def by_transformers(name: str, size: tuple[int, int]) -> Run:
    model = peer_of(name)
    image, mask = example(size), torch.ones(1, *size, dtype=torch.long)

    def detect() -> list[Tensor]:
        with torch.inference_mode():
            model(image, mask)
        return []  # its weights are others

    return timed(detect)


def by_onnxruntime(path: str, size: tuple[int, int]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = example(size).numpy()
    return timed(lambda: [torch.from_numpy(x) for x in session.run(None, {session.get_inputs()[0].name: image})])


def by_openvino(path: str, size: tuple[int, int], precision: str) -> Run:
    import openvino

    wishes = {
        "INFERENCE_PRECISION_HINT": precision,  # it would take bfloat16 by itself where there are instructions
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled, image = openvino.Core().compile_model(path, "CPU", wishes), example(size).numpy()
    return timed(lambda: [torch.from_numpy(x) for x in compiled(image).values()])


def products(name: str, size: tuple[int, int]) -> Run:
    counts = products_of(our_detector(name), example(size))
    return lambda: (sum(count * product_seconds(shape) for shape, count in counts.items()), [])


@functools.cache
def built(build: Callable[..., Run], *arguments) -> Run:
    """In a side's process: what it runs, made once."""
    return build(*arguments)


def measure(repeats: int, build: Callable[..., Run], *arguments) -> tuple[float, list[Tensor]]:
    """In a side's process: the median of some runs' seconds, and the last answer."""
    run = built(build, *arguments)
    seconds, answers = zip(*(run() for _ in range(repeats)), strict=True)
    return statistics.median(seconds), answers[-1]


class Side:
    """Something that is timed, in a process of its own.

    Args:
        build: makes what is run, in that process.
        arguments: what `build` takes.
        keeps_memory: whether its allocator is told what main.py tells ours.
    """

    def __init__(self, build: Callable[..., Run], *arguments, keeps_memory: bool = False):
        self.work = build, *arguments
        prepare = keep_freed_memory if keeps_memory else None
        self.process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=prepare)

    def measure(self, repeats: int = 1) -> tuple[float, list[Tensor]]:
        """Seconds of one image, and what was answered."""
        return self.process.submit(measure, repeats, *self.work).result(TIME_LIMIT)

    def __call__(self, *_):
        """Detects once; for whoever times it from outside."""
        self.measure()

    def close(self):
        """Ends its process."""
        self.process.shutdown()


def installed(package: str) -> str | None:
    """A package's version."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def sides_of(name: str, size: tuple[int, int], bfloat16: bool, folder: Path, alike: bool = False) -> dict[str, Side]:
    """All that can be timed of a model, ours first; `alike`: with one kind of allocator."""
    sides = {"ours": Side(ours, name, size, False, keeps_memory=True)}
    sides["products"] = Side(products, name, size, keeps_memory=True)
    if name in TRANSFORMERS and installed("transformers"):
        if not alike:
            sides["transformers"] = Side(by_transformers, name, size)
        sides["transformers, our allocator"] = Side(by_transformers, name, size, keeps_memory=True)
    exported = str(folder / f"{name}.onnx")
    if installed("onnx") and installed("onnxscript") and (installed("onnxruntime") or installed("openvino")):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as exporter:  # its memory goes with it
            exporter.submit(export, name, size, exported).result(TIME_LIMIT)
        if installed("onnxruntime"):
            sides["onnxruntime"] = Side(by_onnxruntime, exported, size, keeps_memory=alike)
        if installed("openvino"):
            sides["OpenVINO"] = Side(by_openvino, exported, size, "f32", keeps_memory=alike)
            if bfloat16:
                sides["OpenVINO, bfloat16"] = Side(by_openvino, exported, size, "bf16", keeps_memory=alike)
    if bfloat16:
        sides["ours, bfloat16"] = Side(ours, name, size, True, keeps_memory=True)
    return sides


def export(name: str, size: tuple[int, int], path: str):
    """Writes our model as ONNX."""
    program = capture(OnImages(our_detector(name)), example(size))
    write_onnx(program, Path(path), {}, ("images", *OnImages.outputs), opset=18)


def compare(sides: dict[str, Side], rounds: int, repeats: int, record: Callable[[tuple], object]) -> Iterator[tuple]:
    """Times all sides in turns, after a round that does not count.

    Args:
        record: is handed round, side and seconds of every measurement when it is done.

    Yields:
        for each side: its name, the median of its seconds, the median of its rounds' ratios to our own side of the same
        type, and the largest difference from our float32 answer (None where it has other weights).
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    apart: dict[str, float | None] = {}
    right: list[Tensor] = []
    for turn in range(rounds + 1):
        for side, runner in sides.items():
            taken, answer = runner.measure(repeats)
            right = answer if side == "ours" else right
            pairs = list(zip(answer, right, strict=False))
            apart[side] = max(((a.float() - b.float()).abs().max().item() for a, b in pairs), default=None)
            if turn:
                seconds[side].append(taken)
                record((turn, side, taken))
    for side, taken in seconds.items():
        base = seconds["ours, bfloat16" if "bfloat16" in side else "ours"]
        ratio = statistics.median(theirs / mine for theirs, mine in zip(taken, base, strict=True))
        yield side, statistics.median(taken), ratio, apart[side]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="images in a round")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="default: what a config evaluates on")
    parser.add_argument("--bfloat16", action="store_true", help="ours and OpenVINO's in bfloat16, too")
    parser.add_argument("--one_allocator", action="store_true", help="tell every side's what main.py tells ours")
    parser.add_argument("--cpu_time", action="store_true", help="count what all threads computed, not what passed")
    parser.add_argument("--out", type=writable_file, metavar="FILE")
    args = parser.parse_args()
    unknown = set(args.names) - all_configs().keys()
    if unknown:
        parser.error(f"no config is named {', '.join(sorted(unknown))}")
    packages = ("transformers", "onnx", "onnxscript", "onnxruntime", "openvino")
    versions = {package: installed(package) for package in packages}
    missing = [package for package, version in versions.items() if not version]
    if missing:
        print(f"left out: {', '.join(missing)}; pip install -r requirements-extra.txt", file=sys.stderr)
    found = [f"{package} {version}" for package, version in versions.items() if version]
    if args.cpu_time:
        os.environ[CPU_TIME] = "1"
    names = args.names or MODELS
    sizes = {name: tuple(args.size) if args.size else size_of(name) for name in names}
    about = ", ".join(sorted({"x".join(map(str, size)) for size in sizes.values()}))
    kind = "CPU time" if args.cpu_time else "seconds"
    print(f"{processor_name()}, {torch.get_num_threads()} threads; {about}, {args.rounds} rounds, {kind}")
    print(f"PyTorch {torch.__version__}, {', '.join(found)}")
    print(f"kernels {'; '.join(describe_kernels())}\n")
    print(markdown_row("model", "side", "seconds", "times ours", "differs by"))
    print(markdown_row(*["---"] * 5), flush=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = csv.writer(stack.enter_context(growing_file(args.out))) if args.out else None
        if rows:
            rows.writerow(("model", "round", "side", "seconds"))
        for name in names:
            sides = sides_of(name, sizes[name], args.bfloat16, folder, args.one_allocator)
            record = functools.partial(_record, rows, name)
            for side, median, ratio, apart in compare(sides, args.rounds, args.repeats, record):
                difference = "" if apart is None else f"{apart:.1e}"
                print(markdown_row(name, side, f"{median:.3f}", f"{ratio:.2f}", difference), flush=True)
            for side in sides.values():
                side.close()


def _record(rows, name: str, measured: tuple):
    if rows:
        rows.writerow((name, *measured))


if __name__ == "__main__":
    main()
