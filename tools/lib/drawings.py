"""Images of what detectors look at and of what they are trained on. Every function returns a PIL image.

In a notebook:

    restored = restore_detector("best.pth")
    found = trace_image(restored.detector, image, build_preparation(restored.cfg.data))
    draw_samplings(image, found, best_queries(found.output.answer, 3), ["decoder.layers.5.cross_attn"])
"""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from datasets.coco import DetectionDataset
from datasets.preparation import Preparation
from datasets.transforms import NORMALIZATIONS
from models.criteria.token_selection import decoder_attention_map
from models.structures import Detections, Sampling
from tools.lib.traces import LayerSampling, Trace, trace_detector
from util.reporting.plots import COLOURS, Box, draw_boxes

SIDE = 640
"""Pixels of the longer side of a panel."""


def trace_image(detector: nn.Module, image: Image.Image, prepare: Preparation) -> Trace:
    """What a detector looked at while it answered for an RGB image. See tools.lib.traces."""
    return trace_detector(detector, prepare(image))


def best_queries(found: Detections, count: int) -> list[int]:
    """The queries that are surest of a class, best first. Of logits (1, Q, K)."""
    return found.logits[0].amax(-1).topk(min(count, found.logits.shape[1])).indices.tolist()


def heat(values: Tensor) -> np.ndarray:
    """(...) in (0, 1) -> (..., 3) uint8: black, blue, red, yellow, white."""
    stops = np.array([(0, 0, 0), (40, 20, 160), (220, 40, 60), (255, 210, 60), (255, 255, 255)], np.float32)
    place = values.clamp(0, 1).numpy() * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    share = (place - low)[..., None]
    return (stops[low] * (1 - share) + stops[low + 1] * share).astype(np.uint8)


def panel(image: Image.Image) -> Image.Image:
    """A dimmed copy whose longer side is SIDE, to draw on."""
    factor = SIDE / max(image.size)
    small = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BILINEAR)
    return Image.eval(small.convert("RGB"), lambda value: value * 3 // 5)


def overlay(image: Image.Image, values: Tensor) -> Image.Image:
    """A map (H, W), scaled to its largest value, laid over an image."""
    shown = panel(image)
    values = values.float() / values.max().clamp(min=1e-12)
    warm = Image.fromarray(heat(values)).resize(shown.size, Image.Resampling.NEAREST)
    return Image.blend(shown, warm, 0.6)


def highlight(image: Image.Image, mask: Tensor) -> Image.Image:
    """An image that is bright where a map (H, W) is 1, and dark where it is 0."""
    dim = panel(image)
    bright = image.convert("RGB").resize(dim.size, Image.Resampling.BILINEAR)
    where = Image.fromarray((mask * 255).byte().numpy()).resize(dim.size, Image.Resampling.NEAREST)
    return Image.composite(bright, Image.eval(dim, lambda value: value // 3), where)


def titled(shown: Image.Image, title: str) -> Image.Image:
    """The image under a line of text."""
    sheet = Image.new("RGB", (shown.width, shown.height + 18), "white")
    ImageDraw.Draw(sheet).text((4, 3), title, fill="black")
    sheet.paste(shown, (0, 18))
    return sheet


def tiled(images: list[Image.Image], columns: int) -> Image.Image:
    """Images beside and below each other."""
    width, height = (max(image.size[axis] for image in images) + 4 for axis in (0, 1))
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width + 2, number // columns * height + 2))
    return sheet


def draw_box(shown: Image.Image, box: Tensor):
    """A box (4,) as cx, cy, w, h in (0, 1), onto an image."""
    cx, cy, w, h = box.tolist()
    corners = ((cx - w / 2) * shown.width, (cy - h / 2) * shown.height)
    ends = ((cx + w / 2) * shown.width, (cy + h / 2) * shown.height)
    ImageDraw.Draw(shown).rectangle((*corners, *ends), outline="#ffe14a", width=2)


def draw_sampling(image: Image.Image, sampling: LayerSampling, query: int, box: Tensor | None = None) -> Image.Image:
    """One query's sampling points: the colour is the level, finest first, the area of a dot its weight; none without.

    Args:
        query: a row of the sampling.
        box: (4,) what the query found, as cx, cy, w, h in (0, 1).
    """
    shown = panel(image)
    if box is not None:
        draw_box(shown, box)
    pen, size = ImageDraw.Draw(shown), np.array(shown.size)
    locations, weights = sampling.locations[query], sampling.weights[query]
    for level in range(weights.shape[1]):
        pen.text((6, shown.height - 14 * (weights.shape[1] - level)), f"level {level}", fill=COLOURS[level])
        points, shares = locations[:, level].flatten(0, 1).numpy() * size, weights[:, level].flatten().numpy()
        for (x, y), share in zip(points[shares > 0], shares[shares > 0], strict=True):
            radius = 1 + 22 * float(share) ** 0.5
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=COLOURS[level], width=2)
    x, y = sampling.reference[query].numpy() * size
    pen.line((x - 8, y, x + 8, y), fill="white", width=2)
    pen.line((x, y - 8, x, y + 8), fill="white", width=2)
    return shown


def draw_samplings(image: Image.Image, found: Trace, queries: list[int], layers: list[str]) -> Image.Image:
    """Sampling points of queries (rows) in layers (columns).

    A layer of the decoder shows the queries themselves, one of the encoder the tokens that lie nearest to what they
    found. The white cross is the reference.

    Args:
        layers: keys of `found.samplings`.
    """
    rows = []
    for query in queries:
        box = found.output.boxes[0, query]
        for name in layers:
            sampling, row = found.samplings[name], query
            if name.startswith("encoder"):
                row = int((sampling.reference - box[:2]).square().sum(-1).argmin())
            title = f"query {query}, {name}" if row == query else f"token {row} near query {query}, {name}"
            rows.append(titled(draw_sampling(image, sampling, row, box), title))
    return tiled(rows, len(layers))


def draw_attention(image: Image.Image, found: Trace, queries: list[int], layers: list[str]) -> Image.Image:
    """Where queries (rows) of a dense decoder look in layers (columns), as the mean of the heads.

    Args:
        layers: keys of `found.attentions`.
    """
    ((height, width),) = found.shapes
    taken = found.output.aux.get("sample_index")  # PnP-DETR: tokens that were taken; its sums lie nowhere
    rows = []
    for query in queries:
        for name in layers:
            seen = found.attentions[name][:, query].mean(0)
            if taken is not None:
                seen = seen.new_zeros(height * width).scatter(0, taken[0], seen[: taken.shape[1]])
            shown = overlay(image, seen.view(height, width))
            draw_box(shown, found.output.boxes[0, query])
            rows.append(titled(shown, f"query {query}, {name}"))
    return tiled(rows, len(layers))


def draw_selection(image: Image.Image, found: Trace) -> Image.Image:
    """Sparse DETR: the tokens that were updated (left) and what the decoder looks at (right), a row for each level."""
    selection = found.output.aux["selection"]
    chosen = selection.chosen[0][selection.kept[0]]
    kept = torch.zeros_like(selection.scores[0]).scatter(0, chosen, 1.0)
    asked = [sampling for name, sampling in found.samplings.items() if name.startswith("decoder")]
    samplings = [Sampling(one.locations[None], one.weights[None]) for one in asked]
    looked = decoder_attention_map(samplings, selection.shapes)[0]
    share = float((looked * kept).sum() / looked.sum().clamp(min=1e-12))
    sizes, rows = [h * w for h, w in selection.shapes], []
    for level, (mask, seen) in enumerate(zip(kept.split(sizes), looked.split(sizes), strict=True)):
        shape = selection.shapes[level]
        rows.append(titled(highlight(image, mask.view(shape)), f"level {level}: {int(mask.sum())} of {len(mask)} kept"))
        title = f"decoder attention, of which kept tokens of all levels receive {share:.0%}"
        rows.append(titled(overlay(image, seen.view(shape)), title))
    return tiled(rows, 2)


def draw_updates(found: Trace) -> Image.Image:
    """Which levels (rows, finest first) each layer of the encoder (columns) updates, and how many tokens that is."""
    cell, left, top = 92, 150, 30
    sheet = Image.new("RGB", (left + cell * len(found.asking), top + 40 * len(found.shapes) + 24), "white")
    pen = ImageDraw.Draw(sheet)
    for column, counts in enumerate(found.asking.values()):
        x = left + column * cell
        pen.text((x + 8, 8), f"layer {column}", fill="black")
        for level, count in enumerate(counts):
            y, all_of_them = top + 40 * level, found.shapes[level][0] * found.shapes[level][1]
            colour = COLOURS[2] if count == all_of_them else "#9fb3ee" if count else "#eeeeee"
            pen.rectangle((x + 2, y + 2, x + cell - 2, y + 38), fill=colour)
            pen.text((x + 10, y + 12), str(count or "-"), fill="white" if count == all_of_them else "black")
        pen.text((x + 8, top + 40 * len(counts) + 6), f"sum {sum(counts)}", fill="black")
    for level, (height, width) in enumerate(found.shapes):
        pen.text((6, top + 40 * level + 12), f"level {level}: {height} x {width}", fill="black")
    return sheet


def draw_augmented(dataset: DetectionDataset, indices: list[int], epochs: int = 3, columns: int = 0) -> Image.Image:
    """Training images as the model gets them, with their boxes: each in a row, as it is in each of several epochs."""
    shown = []
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZATIONS[dataset.normalize])
    for index in indices:
        for epoch in range(epochs):
            tensor, target = dataset[index, epoch]
            pixels = (tensor * std + mean) * 255
            image = Image.fromarray(pixels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
            scale = torch.tensor(image.size * 2)
            centres, halves = (target["boxes"] * scale).split(2, 1)[0], (target["boxes"] * scale)[:, 2:] / 2
            corners = torch.cat([centres - halves, centres + halves], 1).tolist()
            names = dataset.annotations.categories.labels
            boxes = [Box(tuple(c), s, names[s]) for c, s in zip(corners, target["labels"].tolist(), strict=True)]
            drawn = draw_boxes(image, boxes)
            drawn.thumbnail((SIDE // 2, SIDE // 2))
            title = f"{dataset.annotations.name(index)}, epoch {epoch}: {image.width}x{image.height}"
            shown.append(titled(drawn, title))
    return tiled(shown, columns or epochs)
