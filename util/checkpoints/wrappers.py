"""Weights in checkpoints of all kinds: under which key they stand, and what wrappers have put before their names.

Programs save `model`, `state_dict`, `ema.module` and so on; DistributedDataParallel, torch.compile and Lightning put
`module.`, `_orig_mod.` and `model.` before every name, one before the other. Nothing here knows a model.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from util.checkpoints.errors import CheckpointError

log = logging.getLogger(__name__)

KEYS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "detector", "weights")
"""Where programs keep a model's weights; what stands under an earlier one is taken rather."""
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|teacher)([._]|$)", re.IGNORECASE)
"""Keys of averages, which stand back behind the weights themselves."""
HOLDERS = (
    "module", "model", "net", "network", "detector", "state_dict", "ema_model", "model_ema", "ema", "averaged_model",
    "student", "teacher", "base_model", "_model", "detr",
)  # fmt: skip
"""Attributes under which programs hold a model: what stands before all of its names is taken off."""
WRAPPER = re.compile(r"^module\.|(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Of classes that wrap a module. No module of a detector is called so; torch.compile stands within names, too."""
TRANSFORMERS = re.compile(r"model\.backbone\.(conv_encoder|model)\.")
"""Names of transformers begin with "model." themselves, not all of them."""
OPTIMIZER = re.compile("optim", re.IGNORECASE)
DEEP = 4
TOP = "."
"""What the top level of a file is called, as a key."""


@dataclass(frozen=True)
class FoundWeights:
    """Weights in a checkpoint.

    Attributes:
        key: where: "model", "ema.module"; TOP for the file itself. Within names, too: "state_dict.ema_model".
        prefixes: what was taken off the names.
        weights: by their own names.
        beside: names under the same key that are not of the model.
    """

    key: str
    prefixes: tuple[str, ...]
    weights: dict[str, Tensor]
    beside: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"'{self.key}'{' (its top level)' if self.key == TOP else ''} of {len(self.weights)} weights"


def find_weights(content: Mapping) -> list[FoundWeights]:
    """All that may be a model's weights in a checkpoint, what is most likely meant first."""
    found = _walk(content, "", DEEP)
    most = max((len(one.weights) for one in found), default=0)

    def rank(one: FoundWeights) -> tuple:
        places = [KEYS.index(part) if part in KEYS else len(KEYS) for part in one.key.split(".")]
        return 10 * len(one.weights) < most, bool(AVERAGED.search(one.key)), places, -len(one.weights)

    return sorted(found, key=rank)


def _walk(node: Mapping, key: str, depth: int) -> list[FoundWeights]:
    found = _split(node, key or TOP) if _holds_weights(node) else []
    for name, value in node.items():
        if depth and isinstance(name, str) and isinstance(value, Mapping) and not OPTIMIZER.search(name):
            found += _walk(value, f"{key}.{name}" if key else name, depth - 1)
    return found


def _holds_weights(node: Mapping) -> bool:
    """Whether there is a matrix or vector among the values; counters and random states are none."""
    return any(isinstance(value, Tensor) and value.is_floating_point() and value.dim() for value in node.values())


def _split(node: Mapping, key: str) -> list[FoundWeights]:
    """The weights of one dict: one model's, or those of several that one program held under different names."""
    tensors = {n: v for n, v in node.items() if isinstance(n, str) and isinstance(v, Tensor) and n != "n_averaged"}
    return [
        FoundWeights(where, _prefixes(names), {new: tensors[old] for old, new in names.items()}, beside)
        for where, names, beside in _models(key, {name: name for name in tensors})
    ]


def _models(key: str, names: dict[str, str]) -> list[tuple[str, dict[str, str], tuple[str, ...]]]:
    """The models that names belong to: key, names, and names beside them that are of none.

    Args:
        key: where all of them stand.
        names: {as stored: as far as they are unwrapped}.
    """
    names = _without_wrappers(names)
    heads = {_head(name) for name in names.values()}
    holders = [holder for holder in HOLDERS if holder in heads]
    if not holders or any(map(TRANSFORMERS.match, names.values())):
        return [(key, names, ())]
    groups = {h: {old: new.removeprefix(f"{h}.") for old, new in names.items() if _head(new) == h} for h in holders}
    if len(heads) == 1:
        return _models(key, groups[holders[0]])
    outside = {old: new for old, new in names.items() if _head(new) not in holders}
    found: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
    if 2 * len(outside) > max(map(len, groups.values())):
        found.append((key, outside, ()))
        outside = {}
    for holder, group in groups.items():
        inner = _models(holder if key == TOP else f"{key}.{holder}", group)
        found += [(where, names, (*beside, *outside)) for where, names, beside in inner]
    return found


def _without_wrappers(names: dict[str, str]) -> dict[str, str]:
    """Names without what wrappers put before them, however often; as they are where two would become one."""
    bare = {}
    for old, new in names.items():
        while (shorter := WRAPPER.sub("", new)) != new:
            new = shorter
        bare[old] = new
    return bare if len(set(bare.values())) == len(bare) else names


def _head(name: str) -> str:
    """The first part of a name that has several."""
    first, _, rest = name.partition(".")
    return first if rest else ""


def _prefixes(names: dict[str, str]) -> tuple[str, ...]:
    """What was taken off, each once; what was taken out of the middle of a name is given by its first part."""
    removed = dict.fromkeys(
        old.removesuffix(new) if old.endswith(new) else "".join(m.group() for m in WRAPPER.finditer(old)) or old
        for old, new in names.items()
    )
    return tuple(prefix for prefix in removed if prefix)


def weights_under(content: Mapping, key: str, source: str) -> FoundWeights:
    """The weights that a person has named.

    Raises:
        CheckpointError: there are none of that name; lists the names that there are.
    """
    found = find_weights(content)
    exact = [one for one in found if one.key == key]
    # "ema" means "ema.module" where that is all it holds, and "state_dict.model" the names that begin with "model.".
    inside = [one for one in found if one.key.startswith(f"{key}.")]
    by_prefix = [
        one
        for one in found
        if len(one.prefixes) == 1 and f"{one.key}.{one.prefixes[0]}".removeprefix(f"{TOP}.").startswith(f"{key}.")
    ]
    chosen = exact or inside or by_prefix
    if len(chosen) != 1:
        what = "holds several" if chosen else "there are no weights of that name"
        there = ", ".join(map(str, chosen or found)) or "none"
        raise CheckpointError(f"{source}: checkpoint key '{key}': {what}; there are {there}")
    return chosen[0]


def say_what_was_taken(taken: FoundWeights, others: list[FoundWeights], source: str):
    """A line about weights that do not simply stand under "model", or are not the only ones."""
    off = f", without '{_several(taken.prefixes)}' before their names" if taken.prefixes else ""
    beside = f"; left out beside them: '{_several(taken.beside)}'" if taken.beside else ""
    said = f"{source}: takes {taken}{off}{beside}"
    if others:
        left = ", ".join(map(str, others))
        log.warning("%s; leaves out %s, which --checkpoint_key %s would take", said, left, others[0].key)
    elif taken.key != KEYS[0] or taken.prefixes or taken.beside:
        log.info("%s", said)


def _several(names: tuple[str, ...]) -> str:
    return "', '".join([*names[:3], *([f"... ({len(names)} in all)"] if len(names) > 3 else [])])
