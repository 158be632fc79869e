"""Whether weights are sound, and why they do not fit a model, in words."""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from util.checkpoints.errors import CheckpointError

SHOWN = 4
CLASSES = ("class_embed", "label_embed")
"""What the names of weights hold whose shapes follow from the number of classes."""


def non_finite(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """What is wrong with weights that are not all numbers: {name: "3 NaN, 1 infinite of 64"}."""
    found = {}
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            counts = {"NaN": int(value.isnan().sum()), "infinite": int(value.isinf().sum())}
            said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            found[name] = f"{said} of {value.numel()}"
    return found


def describe_non_finite(found: Mapping[str, str], total: int) -> str:
    """A line about what `non_finite` found among so many weights."""
    shown = "; ".join(f"{name}: {said}" for name, said in list(found.items())[:SHOWN])
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"non-finite values in {len(found)} of {total} weights ({shown}{more})"


def check_finite(weights: Mapping[str, Tensor], source: str, remedy: str = ""):
    """Raises CheckpointError for weights with which nothing can be computed; it names them."""
    found = non_finite(weights)
    if found:
        remedy = remedy or "a training that diverged leaves such: take an earlier checkpoint"
        raise CheckpointError(f"{source}: {describe_non_finite(found, len(weights))}; {remedy}")


def likely_reason(problems: Mapping[str, list[str]], shared: int) -> str:
    """Why weights do not fit a model, as far as their names and shapes tell.

    Args:
        problems: names by what is wrong: missing, unexpected, mis-shaped.
        shared: how many names both have.
    """
    names = [name for wrong in problems.values() for name in wrong]
    if not shared:
        return "not one of its names is of this model: another program's weights, or another part of the file is meant"
    if problems["mis-shaped"] == names and all(any(part in name for part in CLASSES) for name in names):
        return (
            "another number of classes: --options model.num_classes=... takes the checkpoint's, "
            "--pretrain_model_path starts from all other weights"
        )
    parts = Counter(name.split(".")[0] for name in names)
    if len(parts) == 1 and "backbone" in parts:
        return "another backbone (model.backbone in the config)"
    where = ", ".join(f"{part} ({count})" for part, count in parts.most_common())
    return (
        f"another config, which differs in {where}; training writes the one it used beside its checkpoints (config.py)"
    )
