"""Every config as a torch.hub entry point: torch.hub.load(FOLDER, "lite_dino_r50_h3l1_2p1x3_kda", source="local").

An entry point takes

    pretrained: a checkpoint, this project's or the paper's own, as a path or URL; False for fresh weights.
    return_postprocessor: also return what turns an output and image sizes into scores, labels and boxes in pixels.
    options: values of the config by path, as a dict: {"model.num_classes": 3}.
"""

import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
for _name in ("models", "util"):
    # Before the imports below: they would find another's module, and say that it lacks something.
    _other = sys.modules.get(_name)
    _places = [getattr(_other, "__file__", None) or "", *getattr(_other, "__path__", ())]
    if _other is not None and not any(Path(place).resolve().is_relative_to(ROOT) for place in _places if place):
        raise ImportError(
            f"LeanDETR imports its own modules under the names models and util, and '{_name}' is another one here "
            f"already, of {next(filter(None, _places), 'no file')}. Load LeanDETR in a process that has not imported "
            f"it, or call yours something else"
        )

from models import build_detector, build_postprocessor
from models.weights import load_checkpoint
from util.checkpoints.files import read_checkpoint
from util.config import load_config

dependencies = ["torch", "torchvision", "scipy", "addict", "yapf"]


def _load(config: Path, pretrained: str | Path | bool = False, return_postprocessor: bool = False, options=None):
    cfg = load_config(config, options)
    detector = build_detector(cfg)
    if pretrained:
        load_checkpoint(detector, read_checkpoint(pretrained), cfg.get("official_keys"), str(pretrained))
    return (detector, build_postprocessor(cfg)) if return_postprocessor else detector


for _config in (ROOT / "config").rglob("*.py"):
    if _config.parent.name != "_base_":
        globals()[_config.stem] = partial(_load, _config)
        globals()[_config.stem].__doc__ = _config.read_text(encoding="utf-8").split('"""')[1]
