"""Every config as a torch.hub entry point: torch.hub.load(FOLDER, "lite_dino_r50_h3l1_2p1x3_kda", source="local").

An entry point takes

    pretrained: a checkpoint, this project's or the paper's own, as a path or URL; False for fresh weights.
    return_postprocessor: also return what turns an output and image sizes into scores, labels and boxes in pixels.
    options: values of the config by path, as a dict: {"model.num_classes": 3}.
"""

import importlib.util
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# By its place: `tools` may be another's, too, as the modules may be that are imported below.
_spec = importlib.util.spec_from_file_location("leandetr_own_modules", ROOT / "tools/lib/own_modules.py")
_own_modules = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_own_modules)
_own_modules.check_own_modules("models", "util")

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
