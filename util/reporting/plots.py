"""Images for people: detections beside the ground truth, and training curves."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from util.files.writing import whole_file
from util.reporting.logger import Journal, journal_points

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")
HEIGHT = 260
WIDEST = 16 * HEIGHT
"""Pixels of a shown image: all are HEIGHT high, but for those that would be wider than this."""
MARGIN = 6


@dataclass(frozen=True)
class Box:
    """What is drawn: corners in pixels, a slot of the classifier for the colour, and a text."""

    corners: tuple[float, float, float, float]
    slot: int
    text: str


def draw_boxes(image: Image.Image, boxes: list[Box]) -> Image.Image:
    """A copy of an image with boxes on it."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 200))
    font = ImageFont.load_default(max(10, min(image.size) / 32))
    for box in boxes:
        colour = COLOURS[box.slot % len(COLOURS)]
        x0, y0, x1, y1 = box.corners
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=line)
        if box.text:
            label = pen.textbbox((x0, max(0, y0)), box.text, font=font, anchor="lt")
            pen.rectangle((label[0], label[1], label[2] + 2, label[3] + 2), fill=colour)
            pen.text((x0 + 1, max(0, y0) + 1), box.text, fill="white", font=font, anchor="lt")
    return image


def contact_sheet(rows: list[tuple[Image.Image, list[Box], list[Box]]], path: Path, columns: int = 2):
    """Writes one image of many: each detection on the left, with its ground truth on the right.

    Args:
        rows: image, detections, ground truth.
        path: of the PNG; its folder is made.
        columns: pairs beside each other.

    Raises:
        UnwritableError: the disk is full, say.
    """
    pairs = []
    for image, found, ground_truth in rows:
        factor = min(HEIGHT / image.height, WIDEST / image.width)
        small = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BILINEAR)
        pairs.append([draw_boxes(small, [_scaled(box, factor) for box in boxes]) for boxes in (found, ground_truth)])
    width = max((pair[0].width for pair in pairs), default=0)
    title = 20
    sheet = Image.new(
        "RGB",
        (columns * (2 * width + 3 * MARGIN), title + -(-len(pairs) // columns) * (HEIGHT + MARGIN) + MARGIN),
        "white",
    )
    pen = ImageDraw.Draw(sheet)
    for column in range(columns):
        left = column * (2 * width + 3 * MARGIN) + MARGIN
        pen.text((left, 4), "detections", fill="black")
        pen.text((left + width + MARGIN, 4), "ground truth", fill="black")
    for number, pair in enumerate(pairs):
        left = number % columns * (2 * width + 3 * MARGIN) + MARGIN
        top = title + number // columns * (HEIGHT + MARGIN) + MARGIN
        for side, image in enumerate(pair):
            sheet.paste(image, (left + side * (width + MARGIN), top))
    with whole_file(path) as part:
        sheet.save(part)


def _scaled(box: Box, factor: float) -> Box:
    x0, y0, x1, y1 = (value * factor for value in box.corners)
    return Box((x0, y0, x1, y1), box.slot, box.text)


def _pyplot():
    """matplotlib's, drawing to files; imported where it is needed, since that takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: Path):
    """Writes a figure and lets go of it."""
    from matplotlib import pyplot

    try:
        with whole_file(path) as part:
            figure.savefig(part, dpi=110)
    finally:
        pyplot.close(figure)


def plot_journal(journal: Journal):
    """Losses and AP of a training so far, in vis/curves.png beside its log."""
    if entries := journal.read():
        plot_curves(entries, journal.folder / "vis" / "curves.png")


def plot_curves(entries: list[dict], path: Path):
    """Writes losses and AP over the epochs.

    Args:
        entries: epochs as in log.txt, with train_loss, test_loss, test_AP, test_AP50, ema_test_AP, ema_test_AP50.
        path: of the PNG; its folder is made.

    Raises:
        UnwritableError: the disk is full, say.
    """
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axes, title, names in (
        (left, "loss", ("train_loss", "test_loss")),
        (right, "average precision", ("test_AP", "test_AP50", "ema_test_AP", "ema_test_AP50")),
    ):
        for name in names:
            points = journal_points(entries, name)
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    _save(figure, path)


def scatter_plot(points: list[tuple], across: tuple[str, ...], up: str, path: Path):
    """Writes one named point per row, once over each of several quantities.

    Args:
        points: (name, height, x of the first quantity, x of the second, ...).
        across: what the quantities are.
        up: what the height is.
        path: of the PNG.
    """
    pyplot = _pyplot()
    figure, all_axes = pyplot.subplots(
        1, len(across), figsize=(7.5 * len(across), 6), layout="constrained", sharey=True
    )
    for number, (axes, title) in enumerate(zip(all_axes, across, strict=True)):
        for name, height, *xs in points:
            axes.scatter(xs[number], height, s=18)
            axes.annotate(name, (xs[number], height), xytext=(4, 3), textcoords="offset points", fontsize=6.5)
        axes.set(xlabel=title, ylabel=up)
        axes.grid(alpha=0.3)
    _save(figure, path)


def line_plots(lines: dict[str, list[tuple]], across: str, up: tuple[str, ...], path: Path):
    """Writes one line per name, once for each of several quantities.

    Args:
        lines: by name (x, the first quantity, the second, ...) of every point.
        across: what x is.
        up: what the quantities are.
        path: of the PNG.
    """
    pyplot = _pyplot()
    figure, all_axes = pyplot.subplots(1, len(up), figsize=(4.5 * len(up), 4), layout="constrained")
    for number, (axes, title) in enumerate(zip(all_axes, up, strict=True), 1):
        for name, points in lines.items():
            axes.plot([point[0] for point in points], [point[number] for point in points], marker=".", label=name)
        axes.set(xlabel=across, title=title, xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
    all_axes[0].legend(fontsize=7)
    _save(figure, path)
