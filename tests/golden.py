"""Recordings of the papers' own code: how to read them and how to put their weights into our models.

A recording's checkpoint is not stored. Every weight follows from its official key name and its shape, by `filled`.
"""

import json
import math
import re
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import build_detector
from models.official_keys import convert_official
from util.config import load_config

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "recordings"
VARIANT = re.compile(r"_(sizes\d|spread|tame)$")


def recordings(*families: str, with_: str | None = None) -> list[str]:
    """'family/name' of all recordings of these families, or of all; or of those among them that recorded a thing."""
    found = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.npz"))
    found = [name for name in found if not families or name.split("/")[0] in families]
    return [name for name in found if with_ is None or Recording(name).spec.get(with_) is not None]


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The values of one weight of every recorded checkpoint."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        values = 1.0 + 0.2 * rng.random(shape)
    elif leaf == "running_mean":
        values = 0.1 * rng.standard_normal(shape)
    elif name.endswith("sampling_offsets.bias"):
        values = 2.0 * rng.standard_normal(shape)
    elif len(shape) > 1:
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    elif leaf == "bias" or leaf.endswith("_bias"):
        values = 0.05 * rng.standard_normal(shape)
    else:
        values = 1.0 + 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(values, np.float32))


def make_image(height: int, width: int, phase: float = 0.0) -> Tensor:
    """The (3, height, width) input of the recordings: smooth waves."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin(x / (7.0 + c) + phase) + np.cos(y / (11.0 - c) + 0.5 * phase + x / 31.0) for c in range(3)]
    return torch.from_numpy(np.stack(waves).astype(np.float32))


def objects(num_images: int, num_labels: int) -> list[dict[str, Tensor]]:
    """The targets of the recordings: 3, 4, ... objects per image."""
    targets = []
    for i in range(num_images):
        k = np.arange(3 + i, dtype=np.float64) + 1 + 7 * i
        centre = [0.5 + 0.3 * np.sin(k * 1.7), 0.5 + 0.3 * np.cos(k * 2.3)]
        size = [0.15 + 0.1 * np.abs(np.sin(k * 0.9)), 0.12 + 0.12 * np.abs(np.cos(k * 1.1))]
        boxes = torch.from_numpy(np.stack([*centre, *size], -1).astype(np.float32))
        labels = torch.from_numpy(1 + (k.astype(np.int64) * 13) % (num_labels - 1))
        targets.append({"labels": labels, "boxes": boxes})
    return targets


class Recording:
    """One recorded model."""

    def __init__(self, name: str):
        self.family, self.name = name.split("/")
        with np.load(FOLDER / f"{name}.npz") as file:
            self.arrays = {key: file[key] for key in file.files}
        self.spec = json.loads(self.arrays.pop("spec").tobytes())

    @cached_property
    def cfg(self):
        """The config of the model's namesake, or what reference_options.json says of a variant."""
        name = VARIANT.sub("", self.name)
        variant = json.loads((ROOT / "tests/reference_options.json").read_text()).get(name, {})
        (path,) = (ROOT / "config").rglob(f"{variant.get('config', name)}.py")
        return load_config(path, variant.get("options"))

    @property
    def aliases(self) -> dict[str, str]:
        """Second names of tied weights, and the names that they are tied to."""
        return {key: entry for key, entry in self.spec["state_dict"].items() if isinstance(entry, str)}

    def checkpoint(self) -> dict[str, Tensor]:
        """The official state dict."""
        entries = self.spec["state_dict"]
        factors = self.spec.get("scale_after_fill") or {}
        values = {}
        for key, entry in entries.items():
            first = entry if isinstance(entry, str) else key
            values[key] = filled(first, tuple(entries[first]))
            for pattern, factor in factors.items():
                if re.search(pattern, key):
                    values[key] = values[key] * factor
        return values

    def detector(self):
        """Our model with the recording's weights, in eval mode."""
        detector = build_detector(self.cfg).eval()
        detector.load_state_dict(convert_official(self.checkpoint(), self.cfg.official_keys), strict=True)
        return detector

    def images(self, sizes: str = "sizes") -> list[Tensor]:
        """The input images."""
        return [make_image(h, w, float(i)) for i, (h, w) in enumerate(self.spec[sizes])]

    def targets(self, sizes: str = "sizes") -> list[dict[str, Tensor]]:
        """The objects that the losses were computed for."""
        return objects(len(self.spec[sizes]), self.spec["num_labels"])
