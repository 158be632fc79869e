"""Boxes of objects that a file gives as outlines alone."""

import numpy as np
from pycocotools import mask


def box_of_outline(outline) -> list[float] | None:
    """The smallest box around an object.

    Args:
        outline: COCO's `segmentation`: polygons [[x, y, x, y, ...], ...], one polygon alone, or a run-length encoded
            mask {"size": [height, width], "counts": a list or a string}.

    Returns:
        x, y, width, height in pixels; None for what is no outline.
    """
    try:
        if isinstance(outline, dict):
            return _box_of_mask(outline)
        flat = not any(isinstance(part, list) for part in outline)
        points = np.concatenate([_points(polygon) for polygon in ([outline] if flat else outline)])
    except (KeyError, TypeError, ValueError):
        return None
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _points(polygon: list) -> np.ndarray:
    """(n, 2) corners. Raises ValueError where there are fewer than three."""
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    if len(points) < 3:
        raise ValueError
    return points


def _box_of_mask(encoded: dict) -> list[float] | None:
    height, width = encoded["size"]
    counts = encoded["counts"]
    if type(height) is not int or type(width) is not int or min(height, width) < 1:  # the decoder divides by them
        return None
    if isinstance(counts, list):
        if sum(counts) != height * width or min(counts) < 0:
            return None
        encoded = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    elif not isinstance(counts, str):
        return None
    return mask.toBbox(encoded).tolist()
