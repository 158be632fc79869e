"""The detectors and images that the stages measure."""

from collections.abc import Mapping

from tools.dev.gpu.stages import Setting
from tools.dev.tables import all_configs
from util.config import ConfigDict, load_config

TINY = ("lite_dino_r18_shapes",)
"""The detectors of a dry run."""


def config_of(name: str, options: Mapping | None = None) -> ConfigDict:
    """A config by its name; options as of util.config.load_config."""
    return load_config(all_configs()[name], dict(options or {}))


def image_size(setting: Setting) -> tuple[int, int]:
    """Height and width of the images."""
    return (64, 96) if setting.dry_run else (800, 1066)
