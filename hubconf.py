"""Every config as a torch.hub entry point: torch.hub.load(FOLDER, "lite_dino_r50_h3l1_2p1x3_kda", source="local").

An entry point takes

    pretrained: a checkpoint, this project's or the paper's own, as a path or URL; False for fresh weights. The model
        is then built as the checkpoint says, if it says so (this project's do), with a warning where that is not the
        model of the entry point.
    checkpoint_key: where in the checkpoint the weights are, if not what is found by itself: "ema", "ema.module".
    return_postprocessor: also return what turns an output and image sizes into scores, labels and boxes in pixels.
    options: values of the config by path, as a dict: {"model.num_classes": 3}.
"""

import importlib.util
import logging
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# By its place: `tools` may be another's, too, as the modules may be that are imported below.
_spec = importlib.util.spec_from_file_location("leandetr_own_modules", ROOT / "tools/lib/own_modules.py")
_own_modules = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_own_modules)
_own_modules.check_own_modules("models", "util")

from models import build_detector, build_postprocessor
from models.restore import contradictions, stored_config
from models.weights import load_checkpoint, say_ema_is_left_out
from util.checkpoints.files import read_checkpoint, with_key
from util.config import load_config

dependencies = ["torch", "torchvision", "scipy", "addict", "yapf", "safetensors"]

_log = logging.getLogger(__name__)


def _load(
    config: Path,
    pretrained: str | Path | bool = False,
    return_postprocessor: bool = False,
    options=None,
    checkpoint_key: str | None = None,
):
    cfg, source = load_config(config, options), str(pretrained)
    content = with_key(read_checkpoint(pretrained), checkpoint_key, source) if pretrained else None
    stored = stored_config(content, source, options) if content else None
    if stored is not None:
        found = contradictions(cfg, stored)
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            text = "%s: does not hold a %s (%s%s); the model is built as the checkpoint says"
            _log.warning(text, source, config.stem, "; ".join(found[:3]), more)
        cfg = stored
    detector = build_detector(cfg)
    if content:
        load_checkpoint(detector, content, cfg.get("official_keys"), source)
        say_ema_is_left_out(content, source)
    return (detector, build_postprocessor(cfg)) if return_postprocessor else detector


for _config in (ROOT / "config").rglob("*.py"):
    if _config.parent.name != "_base_":
        globals()[_config.stem] = partial(_load, _config)
        globals()[_config.stem].__doc__ = _config.read_text(encoding="utf-8").split('"""')[1]
