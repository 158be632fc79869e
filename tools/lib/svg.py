"""Charts as SVG that stands in a web page: text in the page's colours, lines told apart by dashes too, no script."""

import math
from dataclasses import dataclass
from xml.etree import ElementTree

WIDTH, HEIGHT = 400, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
DASHES = ("", "7 4", "2 3", "9 3 2 3")
LEGEND = 18
"""Height of a line of the legend."""


@dataclass(frozen=True)
class Line:
    """A named line through points, from left to right."""

    name: str
    xs: list[float]
    ys: list[float]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, roughly as many as asked for."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def line_chart(
    lines: list[Line],
    title: str,
    across: str,
    up: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """An <svg> element; any text may be given, it is escaped.

    Args:
        lines: at least one with a point. They take the classes line-0, line-1, ... for a style sheet to colour.
        title: what it shows, for those who do not see it; is not drawn.
        across, up: names of the axes.
        x_range, y_range: ends of the axes; those of the points where not given.
    """
    x0, x1 = x_range or _ends([x for line in lines for x in line.xs])
    y0, y1 = y_range or _ends([y for line in lines for y in line.ys])
    box = f"0 0 {WIDTH} {HEIGHT + LEGEND * len(lines)}"
    svg = ElementTree.Element("svg", {"viewBox": box, "role": "img", "class": "chart", "aria-label": title})
    for value in ticks(x0, x1):
        _rule(svg, _x(value, x0, x1), HEIGHT - BOTTOM, 0, TOP)
        _text(svg, _x(value, x0, x1), HEIGHT - BOTTOM + 14, _label(value), "middle")
    for value in ticks(y0, y1):
        _rule(svg, LEFT, _y(value, y0, y1), WIDTH - RIGHT, 0)
        _text(svg, LEFT - 5, _y(value, y0, y1) + 4, _label(value), "end")
    _text(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across, "middle")
    label = _text(svg, 0, 0, up, "middle")
    label.set("transform", f"translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)")
    for number, line in enumerate(lines):
        points = " ".join(f"{_x(x, x0, x1):.1f},{_y(y, y0, y1):.1f}" for x, y in zip(line.xs, line.ys, strict=True))
        _line(svg, points, number)
        if len(line.xs) == 1:
            ElementTree.SubElement(svg, "circle", {
                "cx": points.split(",")[0], "cy": points.split(",")[1], "r": "3", "class": f"line-{number} dot",
            })  # fmt: skip
        height = HEIGHT + LEGEND * number + 8
        _line(svg, f"{LEFT},{height - 4} {LEFT + 30},{height - 4}", number)
        _text(svg, LEFT + 38, height, line.name, "start")
    return ElementTree.tostring(svg, encoding="unicode")


def _label(value: float) -> str:
    return f"{value:.4g}" if value == 0 or abs(value) >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def _ends(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _rule(svg: ElementTree.Element, x: float, y: float, to_x: float, to_y: float):
    ends = {"x1": f"{x:.1f}", "y1": f"{y:.1f}", "x2": f"{to_x or x:.1f}", "y2": f"{to_y or y:.1f}"}
    ElementTree.SubElement(svg, "line", ends | {"class": "rule"})


def _line(svg: ElementTree.Element, points: str, number: int):
    dashes = DASHES[number % len(DASHES)]
    style = {"stroke-dasharray": dashes} if dashes else {}
    ElementTree.SubElement(svg, "polyline", {"points": points, "class": f"line-{number}", "fill": "none", **style})


def _text(svg: ElementTree.Element, x: float, y: float, text: str, anchor: str) -> ElementTree.Element:
    element = ElementTree.SubElement(svg, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor})
    element.text = text
    return element
