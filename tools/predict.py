"""Detects objects on images of one's own: COCO-style JSON, and the images with boxes on them.

usage: python tools/predict.py --checkpoint CHECKPOINT IMAGE|FOLDER|PATTERN|VIDEO ...
                               [--output_dir DIR] [--score S] [--classes NAME ...] [--batch_size N] ...

The model and its classes come from the checkpoint alone. The papers' own files hold no config: name it with -c.
In Python: `predictor = Predictor("best.pth"); (found,) = predictor("photo.jpg"); predictor.draw("photo.jpg", found)`.
"""

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.lib.own_modules import check_own_modules

check_own_modules("datasets", "models", "util")  # a notebook may have imported others

from datasets.categories import Categories
from datasets.image_files import InputImage, as_image, find_image_files, read_images
from datasets.images import MAX_PIXELS, CorruptImageError
from datasets.predictions import Found, Predictions, draw_found
from datasets.preparation import build_preparation
from models.restore import restore_detector
from util.checkpoints.files import CheckpointError
from util.cli.outputs import writable_folder
from util.cli.tools import run_tool
from util.config import ConfigError, nearest_name, parse_options
from util.reporting.logger import setup_logging
from util.tensors.cuda_graphs import CaptureError, GraphedDetector
from util.tensors.precision import Precision, allow_tf32

log = logging.getLogger("predict")


def _compiled(detector: nn.Module) -> nn.Module:
    detector.compile(dynamic=False)  # what follows from sizes is a constant of the program
    return detector


MODES = {"eager": lambda detector: detector, "compiled": _compiled, "graphed": GraphedDetector}
"""How a detector is run: {name: detector -> what is called instead of it}."""


class Predictor:
    """A detector out of a checkpoint, for images in memory.

    Args:
        checkpoint: a file, folder or URL.
        config, options, key: see models.restore.restore_detector.
        score: detections below it are left out.
        classes: names or category ids; others are left out. None takes all.
        device: "cpu" or "cuda"; where there is one, the GPU.
        amp: compute in bfloat16, or float16 on GPUs that lack it.
        mode: "eager"; "compiled", by PyTorch's compiler; "graphed", as CUDA graphs (util.tensors.cuda_graphs). The
            latter two take long on the first batch of every size, and serve eight sizes.
        max_pixels: width times height of the largest image that is read of a file.

    Raises:
        CheckpointError, ConfigError: as in `restore_detector`, and for a class that the model does not know.
        ValueError: an unknown mode, or "graphed" on another device than a GPU.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        config: str | Path | None = None,
        *,
        options: dict | None = None,
        score: float = 0.3,
        classes: list[str] | None = None,
        device: str | None = None,
        amp: bool = False,
        mode: str = "eager",
        max_pixels: int = MAX_PIXELS,
        key: str | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"mode='{mode}' is none of {', '.join(MODES)}")
        self.precision = Precision(device or ("cuda" if torch.cuda.is_available() else "cpu"), amp)
        self.model = restore_detector(checkpoint, config, options, self.precision.device, key)
        self.detect = MODES[mode](self.model.detector)
        self.prepare = build_preparation(self.model.cfg.data)
        self.categories = Categories.stored(self.model.categories, self.model.cfg.model.num_classes)
        self.score, self.max_pixels = score, max_pixels
        self.wanted = np.array(sorted(chosen_slots(self.categories, classes)))

    @torch.inference_mode()
    def __call__(self, images) -> list[Found]:
        """Detects on one batch.

        Args:
            images: one image or many, as a list, a tuple or an iterator: paths (str or Path), PIL images of any mode,
                arrays (H, W, 3) of uint8, tensors (3, H, W) of uint8 or floats in 0..1. See
                datasets.image_files.as_image. Boxes are in the pixels of the upright image.

        Returns:
            what was found on each, in a list; for one image, too.

        Raises:
            CorruptImageError: a file that cannot be used.
            TypeError, ValueError: what is no image; the message says what was given and what is taken.
            CaptureError: a model that no CUDA graph can hold.
        """
        several = isinstance(images, list | tuple | Iterator)
        images = [as_image(image, self.max_pixels) for image in (images if several else [images])]
        if not images:
            return []
        sizes = torch.tensor([(image.height, image.width) for image in images])
        tensors = [self.prepare(image).to(self.precision.device) for image in images]
        with self.precision.autocast():
            output = self.detect(tensors)
        return [self._chosen(result) for result in self.model.postprocess(output, sizes)]

    def _chosen(self, result: dict[str, torch.Tensor]) -> Found:
        boxes, scores, slots = (result[key].cpu().numpy() for key in ("boxes", "scores", "labels"))
        kept = (scores >= self.score) & np.isin(slots, self.wanted)
        return Found(boxes[kept].astype(float), scores[kept].astype(float), slots[kept])

    def draw(self, image, found: Found) -> Image.Image:
        """A copy of an image, given as one is detected on, with boxes, classes and scores on it; the surest on top."""
        return draw_found(as_image(image, self.max_pixels), found, self.categories)


def chosen_slots(categories: Categories, classes: list[str] | None) -> set[int]:
    """The classifier's slots of some classes, by name or id. Raises ConfigError for one that does not exist."""
    labels = {categories.labels[slot]: slot for slot in categories.slots.values()}
    known = dict(labels)
    known |= {str(key): slot for key, slot in categories.slots.items() if str(key) not in known}
    for name in classes or ():
        if name not in known:
            raise ConfigError(f"--classes: no class '{name}'; {nearest_name(name, list(labels))}")
    return {known[name] for name in classes} if classes else set(categories.slots.values())


def predict(
    predictor: Predictor,
    paths: dict[Path, Path | None],
    predictions: Predictions,
    batch_size: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> list[str]:
    """Detects on all images and hands them to `predictions`.

    Args:
        paths: as find_image_files gives them.
        batch_size: images that are detected on at once.
        max_pixels: width times height of the largest image that is read.

    Returns:
        what is wrong with those that were skipped.
    """
    skipped = []

    def skip(problem: str):
        skipped.append(problem)
        log.warning("skipped %s", problem)

    def read_all() -> Iterator[InputImage]:
        for path, root in tqdm(paths.items(), disable=None, leave=False):
            try:
                yield from read_images(path, root, max_pixels)
            except CorruptImageError as error:
                skip(str(error))

    def detect(batch: list[InputImage]):
        try:
            answers = predictor([source.image for source in batch])
        except ValueError as error:
            if len(batch) == 1:
                return skip(f"{batch[0].name}: {error}")
            for source in batch:  # one of them is at fault: which?
                detect([source])
            return None
        for source, found in zip(batch, answers, strict=True):
            predictions.add(source, found)
        return None

    remaining = read_all()
    while batch := list(itertools.islice(remaining, batch_size)):
        detect(batch)
    return skipped


MODE_HELP = (
    "eager; compiled by PyTorch's compiler; graphed, as CUDA graphs. The last two pay where many images are of a few "
    "sizes, as those of a video: the first of every size takes long (default: eager)"
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders with their sub-folders, patterns ('a/**/*.jpg'), videos with OpenCV",
    )
    add("--checkpoint", required=True, metavar="FILE|FOLDER|URL")
    add("--checkpoint_key", metavar="KEY", help="where in it the weights are, if not what is found by itself")
    add(
        "-c", "--config_file", metavar="FILE", help="instead of the config in the checkpoint; the papers' files need it"
    )
    add("--options", nargs="+", action="extend", metavar="PATH=VALUE", help="override values of -c")
    add(
        "--output_dir",
        type=writable_folder,
        default="output/predictions",
        metavar="DIR",
        help="default: output/predictions",
    )
    add("--score", type=float, default=0.3, metavar="S", help="leave out detections below it (default: 0.3)")
    add("--classes", nargs="+", metavar="NAME", help="leave out other classes; names or category ids")
    add("--batch_size", type=int, default=1, metavar="N", help="more is faster on a GPU; images are then padded")
    add(
        "--max_pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"images of more pixels are skipped (default: {MAX_PIXELS}, Pillow's limit)",
    )
    add("--json_only", action="store_true", help="draw nothing")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--amp", action="store_true", help="compute in bfloat16, or float16 on GPUs that lack it")
    add("--tf32", action="store_true", help="GPUs may compute float32 products in TF32: faster, 3 digits instead of 7")
    add("--mode", choices=MODES, default="eager", help=MODE_HELP)
    args = parser.parse_args(arguments)
    if args.batch_size < 1:
        parser.error("--batch_size must be 1 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU; `python tools/doctor.py` says more")
    if args.mode == "graphed" and (args.device == "cpu" or not torch.cuda.is_available()):
        parser.error("--mode graphed needs a GPU; on a CPU: --mode compiled, or eager")
    if args.options and not args.config_file:
        parser.error("--options needs -c: the config in a checkpoint is taken as it is")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, 1 if not one image could be used, or 2 if there is no model to use."""
    args = parse_arguments(arguments)
    setup_logging(None)
    try:
        predictor = Predictor(
            args.checkpoint,
            args.config_file,
            options=parse_options(args.options),
            score=args.score,
            classes=args.classes,
            device=args.device,
            amp=args.amp,
            mode=args.mode,
            key=args.checkpoint_key,
        )
    except (CheckpointError, ConfigError) as error:
        log.error("%s", error)
        return 2
    allow_tf32(args.tf32 and predictor.precision.device == "cuda")
    start = time.perf_counter()
    predictions = Predictions(predictor.categories, args.output_dir, drawn=not args.json_only)
    try:
        files = find_image_files(args.images, without=args.output_dir)
        skipped = predict(predictor, files, predictions, args.batch_size, args.max_pixels)
    except CaptureError as error:
        log.error("--mode graphed: %s", error)
        return 2
    finally:
        path = predictions.save()  # what was found until something went wrong, too
    done, seconds, detections = len(predictions.images), time.perf_counter() - start, len(predictions.annotations)
    log.info("%d images in %.1f s, %d skipped, %d detections", done, seconds, len(skipped), detections)
    log.info("%s%s", path, f", drawn: {predictions.drawn}" if predictions.drawn else "")
    return 0 if done else 1


if __name__ == "__main__":
    run_tool(main)
