"""Writes the weights of a checkpoint as safetensors, with config and categories beside them.

usage: python tools/convert_checkpoint.py CHECKPOINT [model.safetensors] [--ema] [--checkpoint_key KEY] [--trust]

The file is read like a checkpoint: `main.py --eval --resume model.safetensors`, `--pretrain_model_path`, predict.py.

Files that hold more than tensors and plain values (pickled classes, numbers of NumPy, whole models), TorchScript
archives and tar files of old releases are not loaded anywhere in this project, since reading them can run code of
whoever wrote them. --trust reads such a file, here and nowhere else: give it for files of people you trust alone.
"""

import argparse
import json
import logging
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from safetensors.torch import save_file
from torch import nn

from models.weights import say_ema_is_left_out
from util.checkpoints.files import CheckpointError, ema_weights, model_weights, read_checkpoint, with_key
from util.checkpoints.fitting import check_finite
from util.cli.outputs import writable_file
from util.cli.tools import run_tool
from util.files.writing import whole_file
from util.reporting.logger import setup_logging

log = logging.getLogger("convert")

FACTS = {"config": str, "categories": Mapping, "versions": Mapping}
"""What is kept of a checkpoint beside its weights, and what that is in ours."""


def convert(source: Path, target: Path, averaged: bool = False, key: str | None = None, trusted: bool = False):
    """Writes `source`'s weights to `target`.

    Args:
        averaged: the EMA instead of the weights themselves.
        key: where in the checkpoint the weights are, see `util.checkpoints.files.with_key`; None to look for them.
        trusted: read it even if that runs code of its author.

    Raises:
        CheckpointError: `source` cannot be read, or holds no weights, or no average, or such that are not finite.
        UnwritableError: the disk is full, say.
    """
    content = with_key(read_trusted(source) if trusted else read_checkpoint(source), key, str(source))
    weights = ema_weights(content) if averaged else model_weights(content, str(source))
    if not weights:
        raise CheckpointError(f"{source}: holds no EMA")
    if not averaged:
        say_ema_is_left_out(content, str(source))
    check_finite(weights, str(source))
    metadata = {name: content[name] for name, kind in FACTS.items() if isinstance(content.get(name), kind)}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in metadata.items()
    }
    # Tied weights share their memory, which the format does not know: each gets its own.
    own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    with whole_file(target) as part:
        save_file(own, part, texts)


def read_trusted(source: Path) -> dict:
    """What a file holds that can run code while it is read. Whole models become their state dicts.

    Raises:
        CheckpointError: it cannot be read even so; names the module that is missing, where that is why.
    """
    log.warning("%s: is read with --trust: whatever code its author put into it runs now, with your rights", source)
    try:
        if zipfile.is_zipfile(source) and any(n.endswith("constants.pkl") for n in zipfile.ZipFile(source).namelist()):
            content = torch.jit.load(source, map_location="cpu")
        else:
            with source.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        remedy = "run this where the program that wrote it can be imported (PYTHONPATH)"
        raise CheckpointError(f"{source}: needs the code of its author: {error}; {remedy}") from error
    except Exception as error:  # code of a stranger can raise anything
        raise CheckpointError(f"{source}: cannot be read: {type(error).__name__}: {error}") from error
    content = _state_dicts(content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source}: holds a {type(content).__name__}, not a dict of weights")
    return dict(content)


def _state_dicts(node):
    if isinstance(node, nn.Module):
        return node.state_dict()
    if isinstance(node, Mapping):
        return {key: _state_dicts(value) for key, value in node.items()}
    return node


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=writable_file, nargs="?")
    parser.add_argument("--ema", action="store_true", help="the EMA of the weights")
    parser.add_argument("--checkpoint_key", metavar="KEY", help="where the weights are, if not what is found by itself")
    parser.add_argument("--trust", action="store_true", help="read a file that can run code while it is read")
    args = parser.parse_args()
    target = args.target or args.source.with_suffix(".safetensors")
    setup_logging(None)
    convert(args.source, target, args.ema, args.checkpoint_key, args.trust)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_tool(main, CheckpointError)
