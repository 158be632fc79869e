"""The synthetic shapes dataset, in COCO format, for when no data is at hand.

usage: python -m datasets.shapes FOLDER [--train N] [--val N] [--seed N]

Shapes of five classes, small to large, overlapping, turned, partly outside, on textured backgrounds with distractors.
Every class has a typical colour, as fruit and cells have, from which its members stray. The same arguments give the
same images.
"""

import argparse
import colorsys
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

log = logging.getLogger(__name__)

CLASSES = ("disc", "square", "triangle", "star", "ring")
SIDES = {"square": 4, "triangle": 3}
SMOOTH = 3
"""Shapes are drawn this many times too large and scaled down, which smooths their edges."""


def make_shapes(root: Path, train: int = 480, val: int = 120, seed: int = 0):
    """Writes the data set, unless `root` already holds one made with the same arguments.

    Args:
        root: gets train2017/, val2017/ and annotations/.
        train, val: how many images.
        seed: of everything random.
    """
    recipe = {"train": train, "val": val, "seed": seed, "version": 2}
    stamp = root / "recipe.json"
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == recipe:
        return
    log.info("generating %d images in %s", train + val, root)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate((("train2017", train), ("val2017", val))):
        shutil.rmtree(root / split, ignore_errors=True)
        (root / split).mkdir()
        content = {
            "info": {"description": "synthetic shapes", "recipe": recipe},
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
            "images": [],
            "annotations": [],
        }
        for index in range(count):
            image, objects = draw_image(np.random.default_rng((seed, number, index)))
            name = f"{index + 1:06d}.jpg"
            image.save(root / split / name, quality=90)
            content["images"].append({"id": index + 1, "file_name": name, "width": image.width, "height": image.height})
            for category, (x, y, w, h) in objects:
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": index + 1,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    stamp.write_text(json.dumps(recipe), encoding="utf-8")


def draw_image(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, tuple[int, int, int, int]]]]:
    """An image of about 200 x 160 pixels and its objects: category id and x, y, width, height of what can be seen."""
    width, height = int(rng.integers(176, 225)), int(rng.integers(136, 185))
    image = _background(width, height, rng)
    masks = []
    for _ in range(int(rng.integers(1, 9))):
        kind = int(rng.integers(len(CLASSES)))
        radius = float(np.exp(rng.uniform(np.log(7), np.log(48))))
        mask = _mask(CLASSES[kind], radius, width, height, rng)
        colour = Image.new("RGB", image.size, _colour(kind, rng))
        shaded = Image.blend(colour, _background(width, height, rng), float(rng.uniform(0.05, 0.35)))
        image.paste(shaded, mask=mask)
        solid = np.asarray(mask) > 127
        masks = [(other, seen & ~solid, area) for other, seen, area in masks] + [(kind, solid, int(solid.sum()))]
    return image, [(kind + 1, _bounds(seen)) for kind, seen, area in masks if seen.sum() >= max(16, 0.3 * area)]


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x, y, width, height of what a mask covers."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A gradient, waves and noise of several grains, and thin lines as distractors."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    angle = rng.uniform(0, 2 * math.pi, 3)
    wave = np.sin(2 * math.pi * rng.uniform(1, 12) * (x * np.cos(angle[0]) + y * np.sin(angle[0])))
    slope = x * np.cos(angle[1]) + y * np.sin(angle[1])
    grain = np.asarray(
        Image.fromarray(rng.integers(0, 256, (height // 8 + 2, width // 8 + 2), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        ),
        dtype=np.float64,
    )
    base = rng.uniform(50, 205) + rng.uniform(-15, 15, 3)
    tint = rng.uniform(-25, 25, (3, 1)) + rng.uniform(-8, 8, (3, 3))
    layers = np.stack([wave, slope, grain / 128 - 1], -1) @ tint
    pixels = base + layers + rng.normal(0, rng.uniform(1, 8), (height, width, 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 4))):
        ends = [(float(rng.uniform(0, width)), float(rng.uniform(0, height))) for _ in range(2)]
        pen.line(ends, fill=tuple(int(c) for c in rng.integers(0, 256, 3)), width=1)
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1))))


def _colour(kind: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Around the class's own hue; light or dark, strong or pale."""
    hue = kind / len(CLASSES) + rng.normal(0, 0.03)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.45, 1), rng.uniform(0.35, 1)))


def _mask(kind: str, radius: float, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """White where the shape is; its centre lies inside the image."""
    scale = SMOOTH
    canvas = Image.new("L", (width * scale, height * scale))
    pen = ImageDraw.Draw(canvas)
    x, y = rng.uniform(0, width) * scale, rng.uniform(0, height) * scale
    r, turn = radius * scale, rng.uniform(0, 2 * math.pi)
    if kind in ("disc", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if kind == "ring":
            pen.ellipse((x - r * 0.55, y - r * 0.55, x + r * 0.55, y + r * 0.55), fill=0)
    else:
        corners = SIDES.get(kind, 10)
        reach = [r if kind != "star" or i % 2 == 0 else r * 0.45 for i in range(corners)]
        angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
        pen.polygon([(x + d * math.cos(a), y + d * math.sin(a)) for d, a in zip(reach, angles, strict=True)], fill=255)
    return canvas.resize((width, height), Image.Resampling.BOX)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=480)
    parser.add_argument("--val", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_shapes(args.folder, args.train, args.val, args.seed)


if __name__ == "__main__":
    main()
