"""Weights from files into detectors, whichever names they were saved under."""

import logging
import re
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.official_keys import convert_official, convert_scrl, families_with, huggingface_family
from util.checkpoints.files import (
    CheckpointError,
    ema_weights,
    format_key_problems,
    load_matching_weights,
    load_strictly,
    model_weights,
    read_checkpoint_in_all_processes,
    with_key,
)
from util.checkpoints.fitting import check_finite, describe_non_finite, non_finite

log = logging.getLogger(__name__)

SHOWN = 8
"""How many names of weights a message lists of a kind."""

FEW, LARGE = 5_000, 20_000_000
"""Images and parameters: training more parameters on fewer images needs pretrained weights."""


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
    head = _foreign_head(weights, detector)
    if head and not huggingface_family(weights):
        log.info("%s: '%s' before all names is taken off", source, head)
        return our_names(detector, {n.removeprefix(head): v for n, v in weights.items()}, family, source)
    if family is None or _are_ours(weights, detector, family):
        log.info("%s: a checkpoint of this project, %d weights", source, len(weights))
        return weights
    log.info("%s: an official %s checkpoint, %d weights", source, family, len(weights))
    try:
        return convert_official(weights, family)
    except KeyError as error:
        others = families_with(weights)
        reason = (
            f"its names are those of {', '.join(others)}: take a config of that family"
            if others
            else ("it is of another program, or another part of the file is meant (--checkpoint_key)")
        )
        raise CheckpointError(f"{source}: {error.args[0]}; likely reason: {reason}") from error


def _foreign_head(weights: dict[str, Tensor], detector: nn.Module) -> str:
    """What stands before all names and begins neither ours nor official ones: the attribute that held the detector."""
    heads = {name[: name.find(".") + 1] for name in weights}
    parts = {f"{name.partition('.')[0]}." for name in detector.state_dict()}
    return heads.pop() if len(heads) == 1 and not heads & parts and not families_with(weights) else ""


def _are_ours(weights: dict[str, Tensor], detector: nn.Module, family: str) -> bool:
    """Whether most names are the detector's, or all begin as its names do: a detector of ours of another config.

    Not where all are the family's official names, of which most may be ours, too, as those of RT-DETR's backbone.
    """
    if family in families_with(weights):
        return False
    own = detector.state_dict().keys()
    if len(weights.keys() & own) > len(weights) / 2:
        return True
    parts = {name.partition(".")[0] for name in own}
    return all(name.partition(".")[0] in parts for name in weights)


def load_checkpoint(detector: nn.Module, content: dict, family: str | None, source: str):
    """Fills a detector with a checkpoint's weights, all of them or none.

    Args:
        content: what `read_checkpoint` returned.
        family, source: as in `our_names`.

    Raises:
        CheckpointError: lists missing, unexpected and mis-shaped keys together; names weights that are not finite; or
            the checkpoint holds several tensors where the detector shares one, and would fit by its shapes alone.
    """
    weights = _with_second_names(detector, our_names(detector, model_weights(content, source), family, source))
    if non_finite(weights):
        averaged = ema_weights(content)
        sound = averaged is not None and not non_finite(averaged)
        check_finite(weights, source, "its EMA is finite: --checkpoint_key ema takes that" if sound else "")
    shared = _contradicted(detector, weights)
    if shared:
        remedy = "a checkpoint of iterative refinement needs a config with decoder.share_head=False, refine='iterative'"
        raise CheckpointError(
            f"{source}: {' and '.join(shared)} differ there and are one tensor of this model; {remedy}"
        )
    load_strictly(detector, weights, source)


def load_initial_weights(
    detector: nn.Module,
    content: dict | None,
    source: str,
    family: str | None,
    pretrained: str | None,
    ignored: list[str],
    categories: dict,
    num_images: int,
    key: str | None = None,
):
    """Gives a training the weights it starts from: of the checkpoint that it goes on from, of the one to fine-tune, or
    of the backbone that the config names. In all processes together.

    Args:
        content, source: the checkpoint to go on from, or None.
        family: as in `our_names`.
        pretrained: a file or a URL, or None.
        ignored, categories, key: as in `load_for_finetuning`.
        num_images: that there are to learn from.
    """
    if content is not None:
        load_checkpoint(detector, content, family, source)
    elif pretrained:
        load_for_finetuning(detector, pretrained, family, ignored, categories, key)
    else:
        load_pretrained_backbone(detector)
        warn_of_scratch(detector, num_images)


def load_trained_weights(detector: nn.Module, content: dict, family: str | None, source: str) -> Iterator[str]:
    """Fills a detector with a checkpoint's weights, "regular", and then with their EMA, "ema", if there is one.

    An EMA that is not finite is left out, and said to be.

    Args:
        content, family, source: as in `load_checkpoint`.

    Yields:
        which of them the detector holds now.
    """
    load_checkpoint(detector, content, family, source)
    yield "regular"
    averaged = sound_ema(content, source)
    if averaged is not None:
        load_checkpoint(detector, {"model": averaged}, family, f"{source}, its EMA")
        yield "ema"


def sound_ema(content: dict, source: str) -> dict[str, Tensor] | None:
    """The EMA in a checkpoint of ours; None where there is none, and where it is not finite, which is said."""
    averaged = ema_weights(content)
    spoilt = non_finite(averaged or {})
    if averaged is None or not spoilt:
        return averaged
    text = "%s: its EMA has %s and is left out; its weights themselves are taken"
    log.warning(text, source, describe_non_finite(spoilt, len(averaged)))
    return None


def _with_second_names(detector: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under all names of a parameter that has several: programs save it under one of them alone."""
    names: dict[Tensor, list[str]] = {}
    for name, parameter in detector.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    found = {}
    for same in names.values():
        first = next((name for name in same if name in weights), None)
        found |= {name: weights[first] for name in same if first is not None and name not in weights}
    return {**weights, **found} if found else weights


def _contradicted(detector: nn.Module, weights: dict[str, Tensor]) -> tuple[str, str] | None:
    """Two names of one parameter for which there are different weights; None where there are none."""
    names = {}
    for name, parameter in detector.named_parameters(remove_duplicate=False):
        first = names.setdefault(parameter, name)
        if first in weights and name in weights and not torch.equal(weights[first], weights[name]):
            return first, name
    return None


def load_for_finetuning(
    detector: nn.Module,
    source: str,
    family: str | None,
    ignored: list[str],
    categories: dict | None = None,
    key: str | None = None,
):
    """Fills what fits of a detector from a checkpoint and says what became of every weight. In all processes together.

    Args:
        source: a file or a URL.
        family: as in `our_names`.
        ignored: weights whose name, official or ours, contains one of these are skipped.
        categories: what the detector is to find, as a checkpoint of ours says it.
        key: where in the checkpoint the weights are, see `with_key`; None to look for them.

    Raises:
        CheckpointError: nothing fits, or what fits is not finite.
    """
    content = with_key(read_checkpoint_in_all_processes(source), key, source)
    weights = model_weights(content, source)
    say_ema_is_left_out(content, source)
    kept = {key: value for key, value in weights.items() if not any(name in key for name in ignored)}
    named = _with_second_names(detector, our_names(detector, kept, family, source))
    problems = load_matching_weights(detector, named, ignored, source)
    problems["ignored"] += [key for key in weights if key not in kept]
    problems["missing"] = [key for key in problems["missing"] if key not in problems["ignored"]]
    fresh = {key.split(" ")[0] for key in problems["mis-shaped"]} | set(problems["missing"]) | set(problems["ignored"])
    loaded = [key for key in detector.state_dict() if key in named and key not in fresh]
    if not loaded:
        raise CheckpointError(
            f"{source}: none of its {len(weights)} weights fit this model:\n{format_key_problems(problems)}"
        )
    log.info("%s:\n%s", source, _table(detector, loaded, problems))
    theirs = content.get("categories")
    known = isinstance(theirs, dict) and "names" in theirs  # else another program's
    if categories and known and any("class_embed" in key for key in loaded):
        names, own = list(theirs["names"]), list(categories["names"])
        if names != own:
            what = "the same classes in another order" if sorted(names) == sorted(own) else "other classes"
            log.warning(
                "%s: was trained for %s (%s, ...), and just as many; --finetune_ignore class_embed label_embed starts "
                "their weights anew",
                source,
                what,
                ", ".join(name for name in names if name)[:60],
            )


def say_ema_is_left_out(content: dict, source: str):
    """For who takes the weights of a checkpoint of ours and could have its EMA."""
    if ema_weights(content) is not None:
        log.info("%s: its weights themselves are taken; the checkpoint key 'ema' stands for their EMA", source)


def _table(detector: nn.Module, loaded: list[str], problems: dict[str, list[str]]) -> str:
    """How many weights of each part were loaded and re-initialised; names of those that were not loaded."""
    ours = [key for key in detector.state_dict() if not key.endswith("num_batches_tracked")]
    counts = [Counter(key.split(".")[0] for key in keys) for keys in (loaded, set(ours) - set(loaded))]
    lines = [f"{'':<12}{'loaded':>8}{'re-initialised':>16}"]
    lines += [
        f"{part:<12}{counts[0][part]:>8}{counts[1][part]:>16}" for part in dict.fromkeys(k.split(".")[0] for k in ours)
    ]
    titles = {
        "mis-shaped": "re-initialised, since their shapes differ",
        "missing": "re-initialised, since the file lacks them",
        "ignored": "skipped by --finetune_ignore",
        "unexpected": "skipped, since this model has no such weights",
    }
    for kind, title in titles.items():
        names = Counter(re.sub(r"\.\d+(?=\.)", ".*", key) for key in problems[kind])
        shown = [f"{name} x{times}" if times > 1 else name for name, times in names.items()]
        more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        if names:
            lines.append(f"{title} ({sum(names.values())}): {'; '.join(shown[:SHOWN])}{more}")
    return "\n".join(lines)


def warn_of_scratch(detector: nn.Module, images: int):
    """Says so when a large model is trained on few images without any pretrained weights: that has never worked."""
    size = sum(p.numel() for p in detector.parameters())
    if detector.backbone.pretrained_source() is None and images < FEW and size > LARGE:
        log.warning(
            "%.0f M parameters are trained from scratch on %d images, which will not find much: give "
            "--pretrain_model_path, name weights in model.backbone.pretrained, or take a model of config/small",
            size / 1e6,
            images,
        )


def load_pretrained_backbone(detector: nn.Module):
    """Fills the backbone with the weights that its config names, if it names any. May download them. In all processes
    together.

    The file holds the backbone's own key names, or is a checkpoint of SCRL.

    Raises:
        CheckpointError: they cannot be had or do not fit; says how to do without.
    """
    source = detector.backbone.pretrained_source()
    if source is None:
        return
    try:
        content = read_checkpoint_in_all_processes(source)
        if "online_network_state_dict" in content:
            weights = convert_scrl(model_weights({"model": content["online_network_state_dict"]}, source))
        else:
            weights = model_weights(content, source)
        check_finite(weights, source)
        detector.backbone.load_pretrained(weights)
    except (CheckpointError, RuntimeError) as error:
        hint = "--options model.backbone.pretrained=none trains without"
        raise CheckpointError(f"model.backbone.pretrained: {error}; {hint}") from error
    log.info("backbone: weights of %s", source)
