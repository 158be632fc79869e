"""One stage, in a process of tools.dev.gpu: `python -m tools.dev.gpu.stage NAME --device cuda --out FOLDER`."""

import argparse
import importlib
import sys
from pathlib import Path

from tools.dev.gpu.results import Results
from tools.dev.gpu.stages import STAGES, Setting
from util.tensors.precision import allow_tf32

FAILED = 3
"""The exit status where a check did not hold; 1 is Python's own, where the stage itself broke."""


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STAGES)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    allow_tf32(False)  # so that float32 is float32, in convolutions too
    results = Results(args.out / f"{args.name}.jsonl")
    setting = Setting(args.device, args.out, args.limit, args.data)
    importlib.import_module(f"tools.dev.gpu.{args.name}").run(setting, results)
    return FAILED if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
