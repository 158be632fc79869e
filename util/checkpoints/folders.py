"""Folders as transformers writes them: weights in one file, or in several with an index of what is in which."""

import json
import re
from pathlib import Path

from util.checkpoints.errors import CheckpointError

NAMES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights; in this order they are looked for, as transformers does."""
INDEX = ".index.json"
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors", ".bin")


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a folder, of an index, or of a file by itself.

    Raises:
        CheckpointError: there are none, one of several is missing, or `path` is one of several.
    """
    if path.name.endswith(INDEX):
        return _indexed(path)
    if path.is_dir():
        return _of_folder(path)
    part = SHARD.fullmatch(path.name)
    if part and path.is_file() and int(part[3]) > 1:
        raise CheckpointError(f"{path}: is part {int(part[2])} of {int(part[3])}; give their folder, {path.parent}")
    return [path]


def _of_folder(folder: Path) -> list[Path]:
    for name in NAMES:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}{INDEX}").is_file():
            return _indexed(folder / f"{name}{INDEX}")
        stem, _, suffix = name.partition(".")
        parts = [part for part in map(SHARD.fullmatch, sorted(f.name for f in folder.iterdir())) if part]
        of_them = [part for part in parts if (part[1], part[4]) == (stem, f".{suffix}")]
        if of_them:  # their index is gone, but their names tell how many there are
            count = of_them[0][3]
            return _all_there(folder, [f"{stem}-{i:05d}-of-{count}.{suffix}" for i in range(1, int(count) + 1)])
    there = sorted(file.name for file in folder.iterdir() if file.suffix in CHECKPOINTS)
    wanted = "is a folder without model.safetensors or pytorch_model.bin, whole or in parts"
    remedy = f"it holds {', '.join(there[:8])}: name one of them" if there else "name a checkpoint file"
    raise CheckpointError(f"{folder}: {wanted}; {remedy}")


def _indexed(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError as error:
        raise CheckpointError(f"{index}: there is no such index") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: is no index of weights by file ('weight_map')") from error
    # Who wrote the index must not choose files elsewhere.
    foreign = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if foreign or not names:
        raise CheckpointError(f"{index}: names {foreign[0] if foreign else 'no files'}, which is no file beside it")
    return _all_there(index.parent, sorted(names))


def _all_there(folder: Path, names: list[str]) -> list[Path]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {', '.join(missing)} of its {len(names)} files of weights is missing; fetch the folder whole"
        )
    return [folder / name for name in names]
