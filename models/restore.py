"""A detector out of a checkpoint alone: training writes its config and its classes beside the weights."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from models import build_detector, build_postprocessor
from models.weights import load_checkpoint, sound_ema
from util.checkpoints.files import CheckpointError, read_checkpoint, with_key
from util.config import ConfigDict, load_config, parse_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestoredDetector:
    """A trained detector and what belongs to it.

    Attributes:
        detector: in eval mode, on its device.
        postprocess: (output, sizes (B, 2)) -> results; see models.postprocess.
        cfg: the config that it was built from.
        categories: {"ids": [...], "names": [...]} by slot of the classifier; None where the checkpoint does not say.
    """

    detector: nn.Module
    postprocess: Callable
    cfg: ConfigDict
    categories: dict[str, list] | None


def restore_detector(
    checkpoint: str | Path,
    config: str | Path | None = None,
    options: Mapping | None = None,
    device: str = "cpu",
    key: str | None = None,
) -> RestoredDetector:
    """Builds the detector that a checkpoint holds and fills it; of weights and their EMA, the average if it is finite.

    Nothing in the checkpoint is executed, its config neither.

    Args:
        checkpoint: a file, folder or URL, as `util.checkpoints.files.read_checkpoint` takes it.
        config: a config file, to be taken instead of the checkpoint's own. The papers' files need it.
        options: {path: value} over `config`.
        device: "cpu" or "cuda".
        key: where in the checkpoint the weights are, see `util.checkpoints.files.with_key`; None to look for them.

    Raises:
        CheckpointError: it cannot be read, holds no config and none is given, or its weights do not fit.
        ConfigError: a config that cannot be built.
    """
    source = str(checkpoint)
    content = with_key(read_checkpoint(checkpoint), key, source)
    categories = stored_categories(content, source)
    if config is not None:
        cfg = load_config(config, options)
        if categories is not None:
            cfg.model.num_classes = len(categories["ids"])
    elif (stored := stored_config(content, source)) is not None:
        cfg = stored
    else:
        remedy = "give the model's with -c, for instance -c config/DINO/dino_4scale_r50.py; docs/models.md lists all"
        raise CheckpointError(f"{source}: holds no config, as the papers' own files do not; {remedy}")
    detector = build_detector(cfg)
    averaged = sound_ema(content, source)
    if averaged is not None:
        log.info("%s: of its weights and their EMA, the average", source)
        content = {"model": averaged}
    load_checkpoint(detector, content, cfg.get("official_keys"), source)
    return RestoredDetector(detector.eval().to(device), build_postprocessor(cfg), cfg, categories)


def stored_config(content: Mapping, source: str, options: Mapping | None = None) -> ConfigDict | None:
    """The config in a checkpoint of ours, with overrides; None in one of anybody else.

    Raises:
        ConfigError: it is not what training writes, or an override does not exist.
    """
    text = content.get("config")
    return parse_config(text, source, options) if isinstance(text, str) and "model = " in text else None


FREE = ("num_classes", "pretrained")
"""What a model may have of its own under the same config."""


def contradictions(cfg: ConfigDict, stored: ConfigDict) -> list[str]:
    """Where two configs' models differ, number of classes aside: ["model.encoder.type is 'A', not 'B'"]."""
    ours, theirs = dict(_values(cfg.model, "model")), dict(_values(stored.model, "model"))
    return [
        f"{path} is {theirs.get(path, 'not there')!r}, not {ours.get(path, 'not there')!r}"
        for path in dict.fromkeys([*ours, *theirs])
        if ours.get(path, FREE) != theirs.get(path, FREE) and path.rsplit(".", 1)[-1] not in FREE
    ]


def _values(node, path: str) -> Iterator[tuple[str, object]]:
    """All values under a node of a config by path; lists and tuples alike, since files of text tell no difference."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _values(value, f"{path}.{key}")
    else:
        yield path, list(node) if isinstance(node, tuple) else node


def stored_categories(content: Mapping, source: str) -> dict[str, list] | None:
    """The classes of a checkpoint, {"ids": [...], "names": [...]} by slot; None where it does not say.

    Raises:
        CheckpointError: they are not what they should be.
    """
    found = content.get("categories")
    if found is None:
        return None
    ids, names = (found.get("ids"), found.get("names")) if isinstance(found, Mapping) else (None, None)
    if (
        isinstance(ids, list)
        and isinstance(names, list)
        and len(ids) == len(names)
        and all(isinstance(key, int | None) for key in ids)
        and all(isinstance(name, str) for name in names)
    ):
        return {"ids": ids, "names": names}
    raise CheckpointError(f"{source}: its 'categories' are not lists of ids and names of one length")
