"""Checkpoints: written so that a crash destroys nothing, read so that a file can do nothing but fill tensors."""

import argparse
import functools
import json
import logging
import os
import platform
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from util.checkpoints.download import DownloadError, fetch_checkpoint, sha256
from util.checkpoints.errors import CheckpointError
from util.checkpoints.fitting import check_finite, likely_reason
from util.checkpoints.folders import weight_files
from util.checkpoints.formats import foreign_format, is_safetensors, reading_problem
from util.checkpoints.wrappers import find_weights, say_what_was_taken, weights_under
from util.files.writing import storage_problem
from util.processes.distributed import gather_objects, run_in_all_processes, run_in_main_process, world_size

log = logging.getLogger(__name__)

FORMAT = "leandetr-1"
EMA = "ema"
"""The key of the EMA in a checkpoint of ours."""
FACTS = ("config", "categories")
"""What a checkpoint of ours says about its weights."""
SHOWN = 12


def save_checkpoint(content: dict, *paths: Path, before: Callable[[Path], object] | None = None):
    """Writes one checkpoint to several files, in the main process, while the others wait to hear that it worked.

    A reader finds the old file or the new one, whole.

    Args:
        content: tensors and plain values only, so that it can be read with weights_only=True.
        before: called with each path when its new content is safely on the disk, but has not taken the name yet.

    Raises:
        CheckpointError: in all processes; the disk is full, say. The old file is still there.
    """
    run_in_main_process(lambda: _write(content, paths, before), CheckpointError)


def _write(content: dict, paths: tuple[Path, ...], before: Callable[[Path], object] | None):
    for path in paths:
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save({"format": FORMAT, **content}, file)
                file.flush()
                os.fsync(file.fileno())
            if before is not None:
                before(path)
            temporary.replace(path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # PyTorch's writer turns one into the other
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            kept = " The file that was there is unchanged." if path.is_file() else ""
            reason = storage_problem(error) or str(error).splitlines()[0]
            raise CheckpointError(f"{path}: cannot be written: {reason}.{kept}") from error


def _sync_folder(folder: Path):
    """Makes a new name in a folder survive a loss of power, where folders can be opened: not on Windows."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def library_versions() -> dict[str, str]:
    """Of what a checkpoint was made with: PyTorch, Python, and the git revision where this is a checkout."""
    found = {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        words = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        try:
            done = subprocess.run(words, capture_output=True, timeout=10, encoding="utf-8", errors="replace")
        except (OSError, subprocess.TimeoutExpired):
            return found
        if done.returncode == 0:
            found["git"] = done.stdout.strip()
    return found


def read_checkpoint(source: str | Path) -> dict:
    """Reads a checkpoint of ours, of the papers' repositories, of transformers, of torchvision or of timm.

    From a file, from a folder as transformers writes it, or from a URL or "hf-hub:OWNER/NAME" on the Hugging Face hub,
    which is downloaded once. Nothing in the file is ever executed: beside tensors and plain values only
    argparse.Namespace is admitted, which the papers' files contain and which merely holds values. One process alone may
    ask; `read_checkpoint_in_all_processes` is for all together.

    Raises:
        CheckpointError: the file is not there, cannot be downloaded, is damaged, is no checkpoint, or contains
            something else; says what it is and what helps.
    """
    path = _located(source)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    parts = [_read_file(part) for part in weight_files(path)]
    return {name: value for part in parts for name, value in part.items()}


def _read_file(path: Path) -> dict:
    try:
        foreign = foreign_format(path)
        if foreign is None and is_safetensors(path):
            return _read_safetensors(path)
        if foreign is None:
            # A file, not its name: PyTorch goes by endings.
            with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make its reader stumble in any way
        raise CheckpointError(f"{path}: {reading_problem(path, error)}") from error
    if foreign is not None:
        raise CheckpointError(f"{path}: {foreign}")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    if content.get("format") == FORMAT and zipfile.is_zipfile(path):  # not so if other programs have written it anew
        _verify(path)
    return content


def _read_safetensors(path: Path) -> dict:
    """Weights by name; with their config and categories where tools/convert_checkpoint.py has kept those."""
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        said = file.metadata() or {}
    if not said.keys() >= set(FACTS):
        return weights
    return {"model": weights, "config": said["config"], "categories": json.loads(said["categories"])}


def read_checkpoint_in_all_processes(source: str | Path, content: dict | None = None) -> dict:
    """`read_checkpoint` in all processes together: all return the same content, or all raise.

    Args:
        content: what this process has read from there already.

    Raises:
        CheckpointError: in all processes, where one of them cannot read it or finds another file there.
    """

    def read() -> tuple[dict, str]:
        found = read_checkpoint(source) if content is None else content
        return found, "".join(map(sha256, weight_files(_located(source)))) if world_size() > 1 else ""

    found, digest = run_in_all_processes(read, CheckpointError, f"All machines have to see the same {source}")
    digests = gather_objects(digest)
    if len(set(digests)) > 1:
        other = next(number for number, theirs in enumerate(digests) if theirs != digests[0])
        raise CheckpointError(f"{source}: process {other} finds another file there; all machines have to see the same")
    return found


def _located(source: str | Path) -> Path:
    try:
        return fetch_checkpoint(str(source))
    except DownloadError as error:
        raise CheckpointError(str(error)) from error


def _verify(path: Path):
    """Compares every record of a checkpoint of ours with its checksum, which PyTorch writes but does not read."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: {damaged} in it does not have its checksum")


def with_key(content: dict, key: str | None, source: str) -> dict:
    """A checkpoint with the weights of one key alone, and what is said about them; as it is where no key is given.

    Args:
        key: where they are: "ema", "ema.module", "state_dict.ema_model"; "." for weights at the top level.

    Raises:
        CheckpointError: there are no such weights; lists the names that there are.
    """
    if key is None:
        return content
    chosen = weights_under(content, key, source)
    say_what_was_taken(chosen, [], source)
    return {"model": chosen.weights} | {name: content[name] for name in FACTS if name in content}


def model_weights(content: Mapping, source: str = "checkpoint") -> dict[str, Tensor]:
    """The state dict in a checkpoint, whatever it is called there and however it was wrapped; says which it was.

    Of several, the weights themselves rather than their averages; an EMA as ours counts as belonging to them.

    Raises:
        CheckpointError: there are no weights.
    """
    found = find_weights(content)
    if not found:
        there = ", ".join(map(str, content)) or "nothing"
        raise CheckpointError(f"{source}: holds no weights; at its top level there is {there[:200]}")
    taken, *others = found
    most = max(len(one.weights) for one in found)
    others = [one for one in others if 10 * len(one.weights) >= most]
    if _average(content, taken.weights.keys()) is not None:
        others = [one for one in others if one.key != EMA]
    elif not (content.get(EMA) is None or any(one.key.split(".")[0] == EMA for one in (taken, *others))):
        log.warning("%s: what it holds as '%s' is not an EMA of its weights and is left out", source, EMA)
    say_what_was_taken(taken, others, source)
    return taken.weights


def ema_weights(content: Mapping) -> dict[str, Tensor] | None:
    """The EMA in a checkpoint of ours, under the model's own names; None where there is none.

    What other programs keep under "ema" is none: its names are not those of the weights, or stand deeper.
    """
    if content.get(EMA) is None:
        return None
    found = find_weights(content)
    return _average(content, found[0].weights.keys()) if found and found[0].key != EMA else None


def _average(content: Mapping, names) -> dict[str, Tensor] | None:
    """An EMA as PyTorch's AveragedModel saves it, of weights of these names."""
    average = content.get(EMA)
    if not isinstance(average, Mapping) or not all(str(n).startswith("module.") or n == "n_averaged" for n in average):
        return None
    found = find_weights({EMA: average})
    return found[0].weights if found and found[0].weights.keys() == names else None


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source: str):
    """Fills a model; every key must be there and fit.

    Raises:
        CheckpointError: lists missing, unexpected and mis-shaped keys together, with what is likely the reason; or
            names weights that are not finite.
    """
    problems = compare_keys(model, weights)
    if any(problems.values()):
        reason = likely_reason(problems, len(weights.keys() & model.state_dict().keys()))
        raise CheckpointError(
            f"{source} does not fit this model:\n{format_key_problems(problems)}\n  likely reason: {reason}"
        )
    check_finite(weights, source)
    model.load_state_dict(weights)


def load_matching_weights(
    model: nn.Module, weights: dict[str, Tensor], ignored: list[str], source: str
) -> dict[str, list[str]]:
    """Fills what fits and leaves the rest as initialised, for fine-tuning.

    Args:
        ignored: weights whose name contains one of these are skipped.
        source: where the weights come from, for messages.

    Returns:
        keys by what became of them: missing, unexpected, mis-shaped, ignored.

    Raises:
        CheckpointError: what fits is not finite.
    """
    skipped = [key for key in weights if any(part in key for part in ignored)]
    weights = {key: value for key, value in weights.items() if key not in skipped}
    problems = compare_keys(model, weights)
    problems["ignored"] = skipped
    problems["missing"] = [key for key in problems["missing"] if key not in skipped]
    current = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in current and v.shape == current[k].shape}
    check_finite(fitting, source)
    model.load_state_dict(fitting, strict=False)
    return problems


def compare_keys(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, list[str]]:
    """Keys that a model and weights do not share, and those whose shapes differ."""
    current = model.state_dict()
    return {
        # Counters of batch norms are not weights: nothing reads them, and the papers' tables leave them out.
        "missing": [key for key in current if key not in weights and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in weights if key not in current],
        "mis-shaped": [
            f"{key} {tuple(value.shape)}, here {tuple(current[key].shape)}"
            for key, value in weights.items()
            if key in current and value.shape != current[key].shape
        ],
    }


def format_key_problems(problems: dict[str, list[str]]) -> str:
    """A few lines about keys that were not loaded."""
    lines = []
    for kind, keys in problems.items():
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            lines.append(f"  {kind} ({len(keys)}): {', '.join(keys[:SHOWN])}{more}")
    return "\n".join(lines)
