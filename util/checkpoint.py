"""Checkpoints: written so that a crash destroys nothing, read so that a file can do nothing but fill tensors."""

import argparse
import functools
import logging
import os
import pickle
import platform
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from util.distributed import barrier, is_main

log = logging.getLogger(__name__)

FORMAT = "leandetr-1"
SHOWN = 12
HUB = "hf-hub:"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and what helps."""


def save_checkpoint(content: dict, *paths: Path, before: Callable[[Path], object] | None = None):
    """Writes one checkpoint to several files, in the main process. A reader finds the old file or the new one, whole.

    Args:
        content: tensors and plain values only, so that it can be read with weights_only=True.
        before: called with each path when its new content is safely on the disk, but has not taken the name yet.

    Raises:
        CheckpointError: the disk is full, say; the old file is still there.
    """
    if not is_main():
        return
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
            temporary.unlink(missing_ok=True)
            kept = " The file that was there is unchanged." if path.is_file() else ""
            raise CheckpointError(f"{path}: cannot be written: {str(error).splitlines()[0]}.{kept}") from error


def _sync_folder(folder: Path):
    """Makes a new name in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def versions() -> dict[str, str]:
    """Of what a checkpoint was made with: PyTorch, Python, and the git revision where this is a checkout."""
    found = {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
    root = Path(__file__).parent.parent
    if (root / ".git").exists():
        words = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return found
        if done.returncode == 0:
            found["git"] = done.stdout.strip()
    return found


def read_checkpoint(source: str | Path) -> dict:
    """Reads a checkpoint of ours, of the papers' repositories, of torchvision or of timm, from a file or a URL.

    A URL, or "hf-hub:OWNER/NAME" on the Hugging Face hub, is downloaded once. Nothing in the file is ever executed:
    beside tensors and plain values only argparse.Namespace is admitted, which the papers' files contain and which
    merely holds values.

    Raises:
        CheckpointError: the file is not there, is damaged, or contains something else.
    """
    path = _fetched(str(source))
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make its reader stumble in any way
        reason = re.search(r"GLOBAL (\S+)|Unsupported (?:global|class):?\s+(\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and reason:
            named = next(filter(None, reason.groups()))
            refusal = f"holds more than tensors and plain values ({named}) and is not loaded, since such a file can run"
            raise CheckpointError(f"{path}: {refusal} code. Ask its author for one with the weights alone") from error
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: damaged, or not a PyTorch checkpoint: {said}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    if content.get("format") == FORMAT:
        _verify(path)
    return content


def _verify(path: Path):
    """Compares every record of a checkpoint of ours with its checksum, which PyTorch writes but does not read."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: {damaged} in it does not have its checksum")


def _fetched(source: str) -> Path:
    """The file behind a path, a URL or a name on the hub."""
    if source.startswith(("http://", "https://")):
        return _download(source)
    if source.startswith(HUB):
        return _download_from_hub(source.removeprefix(HUB))
    return Path(source)


def _download_from_hub(name: str) -> Path:
    """The weights of OWNER/NAME on the Hugging Face hub, from its cache if they are there."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "model.safetensors"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{HUB}{name}: cannot be downloaded: {reason}. Get the file by hand and name it"
        ) from error


def _download(url: str) -> Path:
    """The file behind a URL, from the cache if it is there. A hash in its name (name-0123abcd.pth) is checked."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    if path.is_file():
        return path
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s to %s", url, path)
        prefix = re.search(r"-([a-f0-9]{8,})\.", path.name)
        try:
            torch.hub.download_url_to_file(url, str(path), prefix[1] if prefix else None, progress=False)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{url}: cannot be downloaded to {path}: {error}. Put the file there by hand"
            ) from error
    barrier()
    return path


def weights_of(content: dict) -> dict[str, Tensor]:
    """The state dict in a checkpoint, whatever it is called there and however it was wrapped."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    return {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def averaged_weights(content: dict) -> dict[str, Tensor] | None:
    """The moving average in a checkpoint of ours, under the model's own names; None where there is none."""
    average = content.get("ema")
    if average is None:
        return None
    return {key.removeprefix("module."): value for key, value in average.items() if key.startswith("module.")}


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source: str):
    """Fills a model; every key must be there and fit.

    Raises:
        CheckpointError: lists missing, unexpected and mis-shaped keys together.
    """
    problems = difference(model, weights)
    if any(problems.values()):
        raise CheckpointError(f"{source} does not fit this model:\n{describe(problems)}")
    model.load_state_dict(weights)


def load_what_fits(model: nn.Module, weights: dict[str, Tensor], ignored: list[str]) -> dict[str, list[str]]:
    """Fills what fits and leaves the rest as initialised, for fine-tuning.

    Args:
        ignored: weights whose name contains one of these are left out.

    Returns:
        keys by what became of them: missing, unexpected, mis-shaped, ignored.
    """
    left_out = [key for key in weights if any(part in key for part in ignored)]
    weights = {key: value for key, value in weights.items() if key not in left_out}
    problems = difference(model, weights)
    problems["ignored"] = left_out
    problems["missing"] = [key for key in problems["missing"] if key not in left_out]
    current = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in current and v.shape == current[k].shape}
    model.load_state_dict(fitting, strict=False)
    return problems


def difference(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, list[str]]:
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


def describe(problems: dict[str, list[str]]) -> str:
    """A few lines about keys that were not loaded."""
    lines = []
    for kind, keys in problems.items():
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            lines.append(f"  {kind} ({len(keys)}): {', '.join(keys[:SHOWN])}{more}")
    return "\n".join(lines)
