"""The detectors and images that the stages measure."""

from collections.abc import Mapping

from tools.dev.gpu.stages import Setting
from tools.dev.tables import all_configs
from util.config import ConfigDict, load_config

TINY = ("lite_dino_r18_shapes",)
"""The detectors of a dry run."""
REAL_TIME = ("rtdetr_r18vd", "rtdetr_r50vd", "dfine_hgnetv2_s", "dfine_hgnetv2_m")
"""Those that are measured on squares of 640 pixels, as in their papers."""


def config_of(name: str, options: Mapping | None = None) -> ConfigDict:
    """A config by its name; options as of util.config.load_config."""
    return load_config(all_configs()[name], dict(options or {}))


def image_size(setting: Setting, name: str = "") -> tuple[int, int]:
    """Height and width of the images, of those for a detector."""
    if setting.dry_run:
        return 64, 96
    return (640, 640) if name in REAL_TIME else (800, 1066)
