"""Weights from files into detectors, whichever names they were saved under."""

import logging

import torch
from torch import Tensor, nn

from models.official_keys import convert_official, convert_scrl, huggingface_family
from util.checkpoint import CheckpointError, describe, load_strictly, load_what_fits, read_checkpoint, weights_of

log = logging.getLogger(__name__)


def our_names(detector: nn.Module, weights: dict[str, Tensor], family: str | None, source: str) -> dict[str, Tensor]:
    """Weights under our names, from a checkpoint of ours, of a paper's or of transformers; says which it was.

    Args:
        detector: tells what our names are.
        family: whose official names the detector's config expects (`official_keys`); None where there are none.
        source: where the weights come from, for messages.

    Raises:
        CheckpointError: keys that neither we nor the family have.
    """
    family = huggingface_family(weights) or family
    shared = weights.keys() & detector.state_dict().keys()
    if family is None or len(shared) > len(weights) / 2:
        log.info("%s: a checkpoint of this project, %d weights", source, len(weights))
        return weights
    log.info("%s: an official %s checkpoint, %d weights", source, family, len(weights))
    try:
        return convert_official(weights, family)
    except KeyError as error:
        raise CheckpointError(f"{source}: {error.args[0]}") from error


def load_checkpoint(detector: nn.Module, content: dict, family: str | None, source: str):
    """Fills a detector with a checkpoint's weights, all of them or none.

    Args:
        content: what `read_checkpoint` returned.
        family, source: as in `our_names`.

    Raises:
        CheckpointError: lists missing, unexpected and mis-shaped keys together; or the checkpoint holds several tensors
            where the detector shares one, and would fit by its shapes alone.
    """
    weights = our_names(detector, weights_of(content), family, source)
    shared = _contradicted(detector, weights)
    if shared:
        remedy = "a checkpoint of iterative refinement needs a config with decoder.share_head=False, refine='iterative'"
        raise CheckpointError(
            f"{source}: {' and '.join(shared)} differ there and are one tensor of this model; {remedy}"
        )
    load_strictly(detector, weights, source)


def _contradicted(detector: nn.Module, weights: dict[str, Tensor]) -> tuple[str, str] | None:
    """Two names of one parameter for which there are different weights; None where there are none."""
    names = {}
    for name, parameter in detector.named_parameters(remove_duplicate=False):
        first = names.setdefault(parameter, name)
        if first in weights and name in weights and not torch.equal(weights[first], weights[name]):
            return first, name
    return None


def load_for_finetuning(detector: nn.Module, source: str, family: str | None, ignored: list[str]):
    """Fills what fits of a detector from a checkpoint and says what did not.

    Args:
        source: a file or a URL.
        family: as in `our_names`.
        ignored: weights whose name, official or ours, contains one of these are left out.
    """
    weights = weights_of(read_checkpoint(source))
    kept = {key: value for key, value in weights.items() if not any(name in key for name in ignored)}
    problems = load_what_fits(detector, our_names(detector, kept, family, source), ignored)
    log.info("%s: left out by --finetune_ignore: %d weights", source, len(weights) - len(kept))
    log.info("%s: not loaded:\n%s", source, describe(problems) or "  everything else was")


def load_pretrained_backbone(detector: nn.Module):
    """Fills the backbone with the weights that its config names, if it names any. May download them.

    The file holds the backbone's own key names, or is a checkpoint of SCRL.

    Raises:
        CheckpointError: they cannot be had or do not fit; says how to do without.
    """
    source = detector.backbone.pretrained_source()
    if source is None:
        return
    try:
        content = read_checkpoint(source)
        if "online_network_state_dict" in content:
            weights = convert_scrl(weights_of({"model": content["online_network_state_dict"]}))
        else:
            weights = weights_of(content)
        detector.backbone.load_pretrained(weights)
    except (CheckpointError, RuntimeError) as error:
        hint = "--options model.backbone.pretrained=none trains without"
        raise CheckpointError(f"model.backbone.pretrained: {error}; {hint}") from error
    log.info("backbone: weights of %s", source)
