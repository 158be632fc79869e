"""Turns a checkpoint into a program that runs without this project: ONNX, or torch.export's .pt2.

usage: python tools/export.py --checkpoint best.pth --output model.onnx [--size H W] [--batch_size N | --dynamic_batch]
                              [--with_processing] [-c CONFIG] ...

The program takes images of one size: images (B, 3, H, W), resized, in [0, 1], less the `mean` and divided by the `std`
of the file's metadata; it answers logits (B, Q, K) and boxes (B, Q, 4) as cx, cy, w, h in (0, 1). B is --batch_size, or
with --dynamic_batch any number. With --with_processing it takes one RGB image (h, w, 3) uint8 of any size, which it
stretches to H x W, and answers scores (n,), labels (n,) and boxes (n, 4) as x0, y0, x1, y1 in the image's pixels, best
first; tools/run_onnx.py runs such a file. Deformable attention is written out in plain PyTorch.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from datasets.categories import Categories
from datasets.preparation import build_preparation
from datasets.transforms import NORMALIZATIONS
from models.detector import Detector
from models.ops.ms_deform_attn import BACKENDS
from models.restore import restore_detector
from util.checkpoints.files import CheckpointError
from util.cli.outputs import writable_file
from util.cli.tools import run_tool
from util.config import ConfigError, parse_options
from util.files.writing import whole_file
from util.reporting.logger import setup_logging
from util.tensors.device import is_traced
from util.tensors.image_batch import ImageBatch

OPSET = 18
"""From 17 on a layer norm is one operator, which may stay in float32 where the rest is computed in float16."""
TOLERANCE = 1e-4
REGIONS = "how many regions it looks at depends on the image, and an exported program has fixed shapes"


class ExportError(ValueError):
    """A model that cannot be exported as asked; the message names it and says why."""


class OnImages(nn.Module):
    """A detector for images of one size: images (B, 3, H, W) -> logits (B, Q, K) and boxes (B, Q, 4).

    Args:
        detector: as from `models.restore.restore_detector`.
        any_number: whether its program takes batches of any length, and not of its example's alone.
    """

    outputs = ("logits", "boxes")

    def __init__(self, detector: nn.Module, any_number: bool = False):
        super().__init__()
        self.detector, self.any_number = detector, any_number

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.detector(whole(images))
        return output.logits, output.boxes


class OnImage(nn.Module):
    """A detector from pixel to pixel: an RGB image (h, w, 3) uint8 -> scores (n,), labels (n,), boxes (n, 4).

    Args:
        detector, postprocess: as from `models.restore.restore_detector`.
        size: height and width that every image is stretched to.
        normalize: one of datasets.transforms.NORMALIZATIONS, the one that the detector was trained with.
    """

    outputs = ("scores", "labels", "boxes")

    def __init__(
        self, detector: nn.Module, postprocess: Callable, size: tuple[int, int], normalize: str | None = "imagenet"
    ):
        super().__init__()
        self.detector, self.postprocess, self.size = detector, postprocess, size
        mean, std = NORMALIZATIONS[normalize]  # under names that no operator has: ONNX has one space for both
        self.register_buffer("pixel_mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("pixel_std", torch.tensor(std)[:, None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width, _ = image.shape
        down, across = resizing(height, self.size[0]), resizing(width, self.size[1])
        pixels = down @ image.permute(2, 0, 1).float() @ across.T
        output = self.detector(whole((pixels / 255 - self.pixel_mean)[None] / self.pixel_std))
        sizes = torch.cat([torch.full((1, 1), side, dtype=torch.float32) for side in (height, width)], 1)
        (found,) = self.postprocess(output, sizes)
        return found["scores"], found["labels"], found["boxes"]


def whole(images: Tensor) -> ImageBatch:
    """(B, 3, H, W) as a batch without padding; for a program, which need not know B, one size stands for all."""
    count, _, height, width = images.shape
    count = 1 if is_traced() else count
    return ImageBatch(images, torch.zeros(count, height, width, dtype=torch.bool), ((height, width),) * count)


def resizing(old: int, new: int) -> Tensor:
    """(new, old) weights that resize an axis as Pillow's bilinear filter does, which widens where it shrinks."""
    step = torch.full((), old, dtype=torch.float32) / new  # a tensor: an exported program does not know `old`
    reach = step.clamp(min=1)
    centres = (torch.arange(new, dtype=torch.float32) + 0.5) * step
    weights = (1 - (torch.arange(old, dtype=torch.float32) + 0.5 - centres[:, None]).abs() / reach).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


@contextlib.contextmanager
def in_plain_pytorch() -> Iterator[None]:
    """Deformable attention takes the path that consists of PyTorch's own operators."""
    saved = dict(BACKENDS)
    BACKENDS.clear()
    BACKENDS["reference"] = saved["reference"]
    try:
        yield
    finally:
        BACKENDS.clear()
        BACKENDS.update(saved)


def check_exportable(name: str, detector: nn.Module, postprocess: Callable, with_processing: bool):
    """Raises ExportError for what no program of fixed shapes can compute."""
    if not isinstance(detector, Detector):
        raise ExportError(f"{name}: {type(detector).__name__} cannot be exported: {REGIONS}")
    if with_processing and getattr(postprocess, "nms_iou", None) is not None:
        raise ExportError(
            f"{name}: postprocess.nms_iou={postprocess.nms_iou} cannot be exported, since how many detections it drops "
            "depends on the image; --options postprocess.nms_iou=none leaves it out"
        )


def capture(model: OnImages | OnImage, example: Tensor) -> torch.export.ExportedProgram:
    """The program of torch.export for tensors like the example.

    An image's height and width stay free, and the length of a batch where the model says so.
    """
    free: tuple[dict, ...] | None = None
    if isinstance(model, OnImages) and model.any_number:
        free, example = ({0: torch.export.Dim("batch", min=1)},), torch.cat([example, example])  # one would stay one
    if isinstance(model, OnImage):
        free = ({0: torch.export.Dim("height", min=2), 1: torch.export.Dim("width", min=2)},)
    with in_plain_pytorch(), torch.no_grad():
        return torch.export.export(model.eval(), (example,), dynamic_shapes=free)


def write_pt2(program: torch.export.ExportedProgram, path: Path, metadata: dict):
    """A .pt2 file for torch.export.load; facts.json beside the program holds the metadata."""
    content = io.BytesIO()  # PyTorch's own writer does not say that a disk is full
    torch.export.save(program, content, extra_files={"facts.json": json.dumps(metadata)})
    with whole_file(path) as part:
        part.write_bytes(content.getbuffer())


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: dict, names: tuple[str, ...], opset: int):
    """An ONNX file with metadata."""
    # The optimiser of onnxscript has left programs with undefined names; onnxruntime has its own.
    options = {"optimize": False, "opset_version": opset, "verbose": False}
    exported = torch.onnx.export(program, dynamo=True, input_names=names[:1], output_names=names[1:], **options)
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    with whole_file(path) as part:
        exported.save(part)


def run_file(path: Path, example: Tensor) -> list[Tensor]:
    """What the written program answers; raises ModuleNotFoundError where there is no onnxruntime for an ONNX file."""
    if path.suffix == ".pt2":
        return list(torch.export.load(path).module()(example))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns about every constant that it cannot fold
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {session.get_inputs()[0].name: example.numpy()})]


def export(model: OnImages | OnImage, example: Tensor, path: Path, metadata: dict, opset: int = OPSET) -> float:
    """Writes a program, runs what was written, and compares.

    Args:
        example: what the model takes; fixes all but what `capture` leaves free.
        path: .onnx or .pt2.
        metadata: plain values by name that go into the file: the classes' names, the size.

    Returns:
        how far the program's answers on the example are from the model's, see `difference`.
    """
    program = capture(model, example)
    if path.suffix == ".pt2":
        write_pt2(program, path, metadata)
    else:
        write_onnx(program, path, metadata, ("image" if example.dim() == 3 else "images", *model.outputs), opset)
    with torch.no_grad():
        return difference(run_file(path, example), model(example), _side(example))


def own_rounding(model: OnImages | OnImage, example: Tensor) -> float:
    """How far a model's compiled kernels are from its path in plain PyTorch, as `difference` has it.

    They only round differently. Where many tokens score almost alike, that decides which of them become queries.
    """
    with torch.no_grad():
        fast = model(example)
        with in_plain_pytorch():
            return difference(fast, model(example), _side(example))


def _side(example: Tensor) -> int:
    """Pixels of the longer side of an image, whose boxes are in pixels; 1 for tensors, whose boxes are shares."""
    return max(example.shape[:2]) if example.dim() == 3 else 1


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor], side: float = 1) -> float:
    """The largest difference between two answers of a detector, the last of whose tensors are the boxes.

    Detections are compared as sets: where two queries score alike, rounding decides which of them is first.

    Args:
        side: boxes are compared as shares of it.
    """
    found, wanted = (
        torch.cat([x if x.dim() > 1 else x[:, None] for x in (*answer[:-1], answer[-1] / side)], -1).double()
        for answer in (found, wanted)
    )
    if found.shape != wanted.shape:
        return float("inf")
    apart = torch.cdist(found, wanted, p=float("inf"))
    return max(apart.amin(-1).max().item(), apart.amin(-2).max().item())


def example_image(height: int, width: int) -> Tensor:
    """(h, w, 3) uint8: smooth waves, on which nothing ties."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [(x / (7 + c)).sin() + (y / (11 - c) + x / 31).cos() for c in range(3)]
    return (torch.stack(waves, -1) * 60 + 127).to(torch.uint8)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="file, folder or URL")
    parser.add_argument(
        "--checkpoint_key", metavar="KEY", help="where in it the weights are, if not as found by itself"
    )
    parser.add_argument("--output", required=True, type=writable_file, help="the file to write: .onnx or .pt2")
    parser.add_argument("-c", "--config_file", help="for the papers' own files, which hold no config")
    parser.add_argument("--options", nargs="+", metavar="NAME=VALUE", help="values over the config; need -c")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="default: the config's, as 4 to 3 where it leaves that open",
    )
    batches = parser.add_mutually_exclusive_group()
    batches.add_argument("--batch_size", type=int, default=1, metavar="N", help="images at a time; default 1")
    batches.add_argument("--dynamic_batch", action="store_true", help="any number of images at a time")
    parser.add_argument("--with_processing", action="store_true", help="from an RGB image to boxes in its pixels")
    parser.add_argument(
        "--opset", type=int, default=OPSET, help=f"of ONNX; default {OPSET}; below 17 layer norms fall to pieces"
    )
    args = parser.parse_args(arguments)
    if args.output.suffix not in (".onnx", ".pt2"):
        parser.error(f"--output {args.output}: the name must end in .onnx or .pt2")
    if args.with_processing and (args.batch_size != 1 or args.dynamic_batch):
        option = "--dynamic_batch" if args.dynamic_batch else "--batch_size"
        parser.error(f"--with_processing takes one image at a time; leave {option} out")
    if args.batch_size < 1:
        parser.error("--batch_size must be 1 or more")
    return args


def main(args: argparse.Namespace) -> int:
    setup_logging(None)
    restored = restore_detector(args.checkpoint, args.config_file, parse_options(args.options), key=args.checkpoint_key)
    name = args.config_file or args.checkpoint
    check_exportable(name, restored.detector, restored.postprocess, args.with_processing)
    prepare = build_preparation(restored.cfg.data)
    size, (mean, std) = tuple(args.size or prepare.resize.size), NORMALIZATIONS[prepare.normalize]
    if args.with_processing:
        model = OnImage(restored.detector, restored.postprocess, size, prepare.normalize)
        example = example_image(*size)
    else:
        model = OnImages(restored.detector, args.dynamic_batch)
        waves = example_image(*size).permute(2, 0, 1) / 255
        if prepare.normalize is not None:
            waves = (waves - 0.45) / 0.225
        example = torch.stack([waves * (1 - 0.1 * i) for i in range(args.batch_size)])
    names = Categories.stored(restored.categories, restored.cfg.model.num_classes).names
    metadata = {"size": size, "names": names, "mean": mean, "std": std}
    try:
        apart = export(model, example, args.output, metadata, args.opset)
    except ModuleNotFoundError as error:
        print(f"{args.output}: {error}; pip install onnx onnxscript onnxruntime")
        return 1
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, differs from the model by {apart:.1e}")
    if apart <= TOLERANCE:
        return 0
    own = own_rounding(model, example)
    if apart <= 2 * own:
        print(f"as the model's kernels differ from plain PyTorch ({own:.1e}): its proposals score too much alike here")
        return 0
    print(f"that is more than {TOLERANCE:.0e}: do not use it before you know why")
    return 1


if __name__ == "__main__":
    run_tool(lambda: main(parse_arguments()), CheckpointError, ConfigError, ExportError)
