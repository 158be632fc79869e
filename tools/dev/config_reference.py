"""Writes docs/reference.md: what configs may hold, from the signatures and docstrings of what they name.

usage: python tools/dev/config_reference.py
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datasets.coco import Limits
from datasets.distortion import DistortZoomCrop
from datasets.mixing import MixUp, Mosaic
from datasets.multi_scale import MultiScale
from datasets.transforms import EvalTransform, Stretch, TrainTransform
from models.criteria.criterion import Supervision
from models.registry import PARTS
from tools.dev.tables import markdown_table
from util.config.registry import named_parameters
from util.training.optimizer import build_ema, build_optimizer, build_schedule
from util.training.options import TrainingOptions
from util.training.restart import Restart

FILE = ROOT / "docs/reference.md"
HEAD = """\
# Config reference

Written by `python tools/dev/config_reference.py` from signatures and docstrings. How configs inherit and merge is
said in [the architecture](architecture.md#configs), every config stands in [models](models.md).

Options without a default must be given, except those that are handed down: what stands in `model` beside the five
stages (`d_model`, `num_levels`, `num_classes`, `attention`, `head`, ...) reaches every part that has an option of that
name, and `in_channels` is the backbone's to say. An option of type "part" is a dict with a `type` of its own.
"""
SECTIONS = {
    "data.augment": TrainTransform,
    "data.augment, type='DistortZoomCrop'": DistortZoomCrop,
    "data.multi_scale": MultiScale,
    "data.mosaic": Mosaic,
    "data.mixup": MixUp,
    "data.resize": EvalTransform,
    "data.resize, type='Stretch'": Stretch,
    "data.corrupt": Limits,
    "optimizer": build_optimizer,
    "schedule": build_schedule,
    "training": TrainingOptions,
    "training.ema": build_ema,
    "training.restart": Restart,
    "criterion.supervise": Supervision,
}
"""Sections of a config, and what is called with them."""
GIVEN = {"model", "optimizer", "steps_per_epoch", "batch_size", "state", "folder"}
"""Parameters that no config gives: the program does."""
STAGES = {
    "models.backbones": "Backbones: `model.backbone`",
    "models.neck": "Necks: `model.neck`",
    "models.encoders": "Encoders: `model.encoder`",
    "models.queries": "Queries: `model.queries`",
    "models.decoders": "Decoders: `model.decoder`",
    "models.layers": "What parts are made of",
    "models.criteria": "Losses, matching, further terms: `criterion`",
    "models.postprocess": "Post-processing: `postprocess`",
    "models.faster_rcnn": "Whole models: `model`",
}
"""Chapters, by where their parts live."""


def entry(name: str, target: Callable, level: str) -> Iterator[str]:
    """Heading, docstring and options of something that a config names."""
    yield f"{level} {name}\n"
    yield f"```text\n{inspect.getdoc(target)}\n```\n"
    rows = [
        (f"`{option}`", _annotation(parameter), _default(parameter))
        for option, parameter in named_parameters(target).items()
        if option not in GIVEN
    ]
    if rows:
        yield markdown_table(("option", "type", "default"), rows)


def _annotation(parameter: inspect.Parameter) -> str:
    text = inspect.formatannotation(parameter.annotation)
    if parameter.annotation is parameter.empty or "Callable" in text:  # what makes a part
        return "part or `None`" if "None" in text else "part"
    return f"`{text}`".replace("|", "\\|")


def _default(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"


def reference() -> str:
    """The whole page."""
    lines = [HEAD, "## Sections\n"]
    for name, target in SECTIONS.items():
        lines += entry(f"`{name}`", target, "###")
    for module, title in STAGES.items():
        lines.append(f"## {title}\n")
        for name, cls in sorted(PARTS.classes.items()):
            if f"{cls.__module__}.".startswith(f"{module}."):
                lines += entry(name, cls, "###")
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
