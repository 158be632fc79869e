"""Shows what a detector looks at, and what it is trained on.

usage: python tools/visualize.py look --checkpoint best.pth IMAGE ... [--queries N ...] [--layers NAME ...]
       python tools/visualize.py browse -c CONFIG --coco_path DIR [--num_images N] [--epochs N]

look writes, for every image, PNG files of what the model has: sampling points and their weights (deformable
attention, plain and key-aware), attention maps (DETR, Conditional DETR, PnP-DETR), the tokens that Sparse DETR kept
beside the map of its decoder's attention, and which levels each layer of the encoder updates. browse writes contact
sheets of augmented training images with their boxes. tools/lib/drawings.py has a function for each, for notebooks.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from datasets.images import (
    MAX_PIXELS,
    CorruptImageError,
    OutputNames,
    check_found,
    find_files,
    image_suffixes,
    read_image,
)
from datasets.loader import build_dataset
from datasets.preparation import build_preparation
from models.detector import Detector
from models.restore import restore_detector
from tools.lib.drawings import (
    best_queries,
    draw_attention,
    draw_augmented,
    draw_samplings,
    draw_selection,
    draw_updates,
    trace_image,
)
from tools.lib.traces import Trace
from util.checkpoints.files import CheckpointError
from util.cli.outputs import writable_folder
from util.cli.tools import run_tool
from util.config import ConfigError, load_config, parse_options
from util.files.writing import whole_file

log = logging.getLogger("visualize")


def drawings(image: Image.Image, found: Trace, queries: list[int], layers: list[str] | None) -> dict[str, Image.Image]:
    """All that there is to see, by name. Without `layers`: the first and the last of the encoder and of the decoder."""
    sheets = {}
    for name, recorded, draw in (
        ("sampling", found.samplings, draw_samplings),
        ("attention", found.attentions, draw_attention),
    ):
        if recorded:
            sheets[name] = draw(image, found, queries, chosen_layers(list(recorded), layers))
    if "selection" in found.output.aux:
        sheets["tokens"] = draw_selection(image, found)
    elif found.asking:
        sheets["updates"] = draw_updates(found)
    return sheets


def chosen_layers(known: list[str], asked: list[str] | None) -> list[str]:
    """Names of modules that begin as asked; the first and last of each stage when nothing is asked."""
    if asked:
        chosen = [name for name in known if any(f"{name}.".startswith(f"{part}.") for part in asked)]
        if not chosen:
            raise ConfigError(f"--layers {' '.join(asked)}: there are {', '.join(known)}")
        return chosen
    stages = [[name for name in known if name.startswith(stage)] for stage in ("encoder", "decoder")]
    return [name for names in stages if names for name in dict.fromkeys((names[0], names[-1]))]


def look_at_images(args: argparse.Namespace) -> int:
    """The command `look`; returns 0, or 1 if not one image could be used."""
    options = parse_options(args.options)
    restored = restore_detector(args.checkpoint, args.config_file, options, key=args.checkpoint_key)
    if not isinstance(restored.detector, Detector):
        raise ConfigError(f"{args.checkpoint}: a {type(restored.detector).__name__} has no attention to look at")
    prepare = build_preparation(restored.cfg.data)
    files, names, drawn = find_files(args.images, image_suffixes(), args.output_dir), OutputNames(args.output_dir), 0
    for path, root in files.items():
        try:
            check_found(path, image_suffixes())
            image = read_image(path, max_pixels=args.max_pixels)
        except CorruptImageError as error:
            log.warning("skipped %s", error)
            continue
        found = trace_image(restored.detector, image, prepare)
        total = found.output.boxes.shape[1]
        unknown = [query for query in args.queries or () if not 0 <= query < total]
        if unknown:
            raise ConfigError(f"--queries {unknown}: this model has the queries 0 to {total - 1}")
        queries = args.queries or best_queries(found.output.answer, args.best)
        place = names.place(path, root)
        for name, sheet in drawings(image, found, queries, args.layers).items():
            target = Path(f"{place}_{name}.png")
            with whole_file(target) as part:
                sheet.save(part)
            log.info("%s", target)
        drawn += 1
    return 0 if drawn else 1


def browse(args: argparse.Namespace) -> int:
    """The command `browse`; returns 0."""
    options = parse_options(args.options) | ({"data.root": args.coco_path} if args.coco_path else {})
    dataset = build_dataset(load_config(args.config_file, options), "train", args.seed)
    indices = np.linspace(0, len(dataset) - 1, min(args.num_images, len(dataset))).astype(int).tolist()
    for start in range(0, len(indices), args.rows):
        path = args.output_dir / f"augmented_{start // args.rows:02d}.png"
        sheet = draw_augmented(dataset, indices[start : start + args.rows], args.epochs)
        with whole_file(path) as part:
            sheet.save(part)
        log.info("%s", path)
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("-c", "--config_file", help="of the model; look needs it for the papers' own files alone")
    shared.add_argument("--options", nargs="+", metavar="NAME=VALUE", help="values over the config")
    shared.add_argument("--output_dir", type=writable_folder, default="output/visualize")
    one = commands.add_parser("look", parents=[shared], help="what a detector looks at")
    one.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders with their sub-folders, patterns ('a/**/*.jpg')"
    )
    one.add_argument("--checkpoint", required=True)
    one.add_argument(
        "--max_pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"images of more pixels are skipped; default {MAX_PIXELS}, Pillow's limit",
    )
    one.add_argument("--checkpoint_key", metavar="KEY", help="where in it the weights are, if not as found by itself")
    one.add_argument("--queries", nargs="+", type=int, metavar="N", help="default: the surest ones")
    one.add_argument("--best", type=int, default=3, help="how many of the surest; default 3")
    one.add_argument(
        "--layers", nargs="+", metavar="NAME", help="decoder, encoder.layers.5, ...; default: first and last"
    )
    one.set_defaults(command=look_at_images)
    other = commands.add_parser("browse", parents=[shared], help="what a detector is trained on")
    other.add_argument("--coco_path", help="the data's folder")
    other.add_argument("--num_images", "--pictures", type=int, default=24)
    other.add_argument("--epochs", type=int, default=3, help="variants of each")
    other.add_argument("--rows", type=int, default=8, help="images on one sheet")
    other.add_argument("--seed", type=int, default=42)
    other.set_defaults(command=browse)
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return args.command(args)


if __name__ == "__main__":
    run_tool(lambda: main(parse_arguments()), CheckpointError, ConfigError)
