"""How images reach a model, by the section `data` of a config: in training, and in evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from datasets.distortion import DistortZoomCrop
from datasets.mixing import MixUp, Mosaic
from datasets.multi_scale import MultiScale
from datasets.transforms import NORMALIZATIONS, EvalTransform, Sample, Stretch, TrainTransform
from util.config import ConfigDict, ConfigError, nearest_name, node_location
from util.config.registry import call_with_config

T = TypeVar("T")
AUGMENTATIONS = {"TrainTransform": TrainTransform, "DistortZoomCrop": DistortZoomCrop}
"""What `data.augment` may name as its `type`; the first where it names none."""
RESIZES = {"EvalTransform": EvalTransform, "Stretch": Stretch}
"""What `data.resize` may name as its `type`; the first where it names none."""


@dataclass(frozen=True)
class Preparation:
    """What happens to an image before a model detects on it.

    Attributes:
        resize: brings it to its size.
        normalize: one of NORMALIZATIONS.
    """

    resize: EvalTransform | Stretch
    normalize: str | None

    def __call__(self, image: Image.Image) -> Tensor:
        """The (3, h, w) tensor of an RGB image."""
        sample = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        return self.resize(sample).tensors(self.normalize)[0]


def build_preparation(data: ConfigDict) -> Preparation:
    """Of evaluation. Raises ConfigError."""
    return Preparation(_chosen(RESIZES, data, "resize"), normalization(data))


def build_augmentation(data: ConfigDict) -> TrainTransform | DistortZoomCrop:
    """Of training. Raises ConfigError."""
    return _chosen(AUGMENTATIONS, data, "augment")


def build_multi_scale(data: ConfigDict, augmentation) -> MultiScale | None:
    """What gives training batches their sizes, if they are to have sizes of their own.

    Raises:
        ConfigError: the augmentation leaves images of a batch at different sizes, or the section is wrong.
    """
    _check_one_size(data, "multi_scale", augmentation)
    return _optional(MultiScale, data, "multi_scale")


def build_mosaic(data: ConfigDict) -> Mosaic | None:
    """What makes mosaics of training images, if there are to be any. Raises ConfigError."""
    return _optional(Mosaic, data, "mosaic")


def build_mixup(data: ConfigDict, augmentation) -> MixUp | None:
    """What blends the images of training batches, if they are to be blended. Raises ConfigError as for multi-scale."""
    _check_one_size(data, "mixup", augmentation)
    return _optional(MixUp, data, "mixup")


def _check_one_size(data: ConfigDict, section: str, augmentation):
    """Raises ConfigError where a section is given whose images have to have one size, and they have not."""
    if data.get(section) is not None and not isinstance(augmentation, DistortZoomCrop):
        have = f"{type(augmentation).__name__} gives the images of a batch different sizes"
        where = node_location(data, section)
        raise ConfigError(f"{where}: needs data.augment of the type 'DistortZoomCrop': {have}")


def _optional(kind: Callable[..., T], data: ConfigDict, section: str) -> T | None:
    """An object of what a section describes; none where it says none, or an older config does not have it."""
    given = data.get(section)
    return None if given is None else call_with_config(kind, given, where=node_location(data, section))


def describe_preparation(data: ConfigDict) -> list[str]:
    """A line about the sizes to which images are brought, and one about what mixes them. Raises ConfigError."""
    said, mixed = [], []
    if data.get("augment"):
        augmentation = build_augmentation(data)
        multi_scale = build_multi_scale(data, augmentation)
        said.append(f"in training {augmentation.describe()}" + (f", {multi_scale.describe()}" if multi_scale else ""))
        mixed = [mix.describe() for mix in (build_mosaic(data), build_mixup(data, augmentation)) if mix is not None]
    if data.get("resize"):
        said.append(f"in evaluation {build_preparation(data).resize.describe()}")
    sizes = f"shorter side in pixels: {'; '.join(said)}"
    return [sizes, f"in training {', '.join(mixed)}"] if mixed else [sizes]


def normalization(data: Mapping) -> str | None:
    """Which of NORMALIZATIONS a config asks for; older ones do not say. Raises ConfigError."""
    chosen = data.get("normalize", "imagenet")
    if chosen not in list(NORMALIZATIONS):
        known = ", ".join(map(repr, NORMALIZATIONS))
        raise ConfigError(f"{node_location(data, 'normalize')}: {chosen!r} is none of {known}")
    return chosen


def _chosen(classes: dict[str, type], data: ConfigDict, section: str):
    """An object of the class that a section names."""
    node, where, (kind, *_) = data[section], node_location(data, section), classes
    if isinstance(node, Mapping):
        kind = node.get("type", kind)
        if kind not in list(classes):
            raise ConfigError(f"{where}: there is no type {kind!r}; {nearest_name(kind, classes)}")
        node = {key: value for key, value in node.items() if key != "type"}
    return call_with_config(classes[kind], node, where=where)
