"""Sine encodings of positions in an image, of points and of boxes."""

import math

import torch
from torch import Tensor, nn

from models.registry import PARTS
from models.structures import Shapes, padding_mask
from util.tensors.cache import cached


def sine_features(values: Tensor, features: int, temperature: float) -> Tensor:
    """Sine and cosine of each value at `features` / 2 frequencies, interleaved (Attention Is All You Need, 3.5).

    Args:
        values: (...), angles in radians at the highest frequency.

    Returns:
        (..., features), float32.
    """
    exponent = 2 * torch.arange(features // 2, device=values.device, dtype=torch.float32) / features
    angles = values.float()[..., None] / temperature**exponent
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def box_sine_embedding(boxes: Tensor, order: tuple[int, ...], features: int = 128) -> Tensor:
    """Encodes points or boxes in (0, 1).

    Args:
        boxes: (..., 2 or 4).
        order: which coordinate comes first, second, ...: DINO writes y, x, w, h; Deformable DETR x, y, w, h.

    Returns:
        (..., len(order) * features), float32.
    """
    # Not boxes[..., list(order)]: every index would be copied from the host, and wait for the device.
    ordered = torch.stack([boxes[..., coordinate] for coordinate in order], -1)
    return sine_features(ordered * 2 * math.pi, features, temperature=10000).flatten(-2)


@PARTS.register
class SinePosition(nn.Module):
    """Position of every pixel within the unpadded part of its map (DETR, appendix A.4).

    Args:
        d_model: channels; the first half encodes y, the second x.
        offset: added to the pixel count before normalising. Deformable DETR and its children take pixel centres (-0.5),
            DETR, Conditional DETR, PnP-DETR and DINO do not (0).
        temperature: 10000, or 20 in DINO.
    """

    def __init__(self, d_model: int, offset: float = 0.0, temperature: float = 10000.0):
        super().__init__()
        self.features = d_model // 2
        self.offset = offset
        self.temperature = temperature

    def forward(self, extents: Shapes, shape: tuple[int, int], device) -> Tensor:
        """Of a map (H, W) of which the images cover (h, w) each: (B, d_model, H, W) float32, stored channels last."""
        settings = self.features, self.offset, self.temperature
        return torch.stack([_positions(extent, shape, device, *settings) for extent in extents]).permute(0, 3, 1, 2)


@PARTS.register
class IndexPosition(nn.Module):
    """Position of every pixel by its row and column as they are, whatever the image's size (RT-DETR, its code).

    That code writes row and column of a map that is not square in a wrong order; here they are as on square ones.

    Args:
        d_model: channels: sines and cosines of the row, then of the column, a quarter each.
        temperature: of the frequencies.
    """

    def __init__(self, d_model: int, temperature: float = 10000.0):
        super().__init__()
        if d_model % 4:
            raise ValueError(f"d_model={d_model} is not a multiple of 4")
        self.features, self.temperature = d_model // 4, temperature

    def forward(self, extents: Shapes, shape: tuple[int, int], device) -> Tensor:
        """Of a map (H, W): (B, d_model, H, W) float32, the same for every image."""
        encoded = _index_positions(shape, device, self.features, self.temperature)
        return encoded.permute(2, 0, 1).expand(len(extents), -1, -1, -1)


@cached
def _index_positions(shape: tuple[int, int], device, features: int, temperature: float) -> Tensor:
    """(H, W, 4 * features)."""
    rates = temperature ** (-torch.arange(features, device=device, dtype=torch.float32) / features)
    row, column = (torch.arange(size, device=device, dtype=torch.float32)[:, None] * rates for size in shape)
    waves = [
        wave.unsqueeze(other).expand(*shape, -1)
        for angle, other in ((row, 1), (column, 0))
        for wave in (angle.sin(), angle.cos())
    ]
    return torch.cat(waves, -1)


@cached
def _positions(
    extent: tuple[int, int], shape: tuple[int, int], device, features: int, offset: float, temperature: float
) -> Tensor:
    """(H, W, d_model)."""
    inside = ~padding_mask((extent,), shape, device)
    encoded = []
    for axis in (1, 2):
        count = inside.cumsum(axis).float()  # whole numbers are summed in one order only, on GPUs too
        last = count.narrow(axis, -1, 1)
        angle = (count + offset) / (last + 1e-6) * 2 * math.pi
        encoded.append(sine_features(angle, features, temperature))
    return torch.cat(encoded, -1)[0]
