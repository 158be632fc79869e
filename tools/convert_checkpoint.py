"""Writes the weights of a checkpoint as safetensors, with config and categories beside them.

usage: python tools/convert_checkpoint.py checkpoint.pth [model.safetensors] [--ema]

The file is read like a checkpoint: `main.py --eval --resume model.safetensors`, `--pretrain_model_path`.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from safetensors.torch import save_file

from util.checkpoints.files import CheckpointError, ema_weights, model_weights, read_checkpoint
from util.cli.outputs import writable_file
from util.cli.tools import run_tool
from util.files.writing import whole_file


def convert(source: Path, target: Path, averaged: bool = False):
    """Writes `source`'s weights to `target`.

    Args:
        averaged: the EMA instead of the weights themselves.

    Raises:
        CheckpointError: `source` cannot be read, or holds no weights, or no average.
        UnwritableError: the disk is full, say.
    """
    content = read_checkpoint(source)
    weights = ema_weights(content) if averaged else model_weights(content)
    if not weights:
        raise CheckpointError(f"{source}: holds no {'EMA' if averaged else 'weights'}")
    metadata = {name: content[name] for name in ("config", "categories", "versions") if name in content}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    # Tied weights share their memory, which the format does not know: each gets its own.
    own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    with whole_file(target) as part:
        save_file(own, part, texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=writable_file, nargs="?")
    parser.add_argument("--ema", action="store_true", help="the EMA of the weights")
    args = parser.parse_args()
    target = args.target or args.source.with_suffix(".safetensors")
    convert(args.source, target, args.ema)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_tool(main, CheckpointError)
