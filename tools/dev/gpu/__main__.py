"""Runs the stages one after the other, each in a process of its own that is ended at its limit.

usage: tools/gpu_check.sh [--stages build,op] [--out FOLDER] [--data BCCD] [--seconds N] [--limits op=30]
       tools/gpu_check.sh --device cpu        a dry run: all stages' code, at tiny sizes, without a GPU

FOLDER gets STAGE.jsonl, which a stage writes as it goes, STAGE.log, and REPORT.md, made anew after every stage: a run
that is cut off leaves all that was found until then. Ends with 0 if all checks hold.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.dev.gpu.report import render_report, summarise_stages
from tools.dev.gpu.results import read_results
from tools.dev.gpu.stage import FAILED
from tools.dev.gpu.stages import ROOT, STAGES, TOTAL
from util.cli.outputs import writable_folder

GRACE = 5.0
"""Seconds that an ended process has to leave."""


def run_stage(name: str, arguments: list[str], out: Path, limit: float) -> str:
    """Runs a stage to its end or its limit; returns how it ended."""
    command = [sys.executable, "-m", "tools.dev.gpu.stage", name, *arguments, "--out", str(out), "--limit", str(limit)]
    (out / f"{name}.jsonl").write_text("", encoding="utf-8")
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        # In a group of its own, to end with it what it starts.
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"cut off after {limit:g} s"
        finally:
            _end(process)
    if status in (0, FAILED) and any(entry["kind"] != "note" for entry in read_results(out / f"{name}.jsonl")):
        return "failed" if status else "passed"
    return f"broke with status {status}; {name}.log says more"


def _end(process: subprocess.Popen):
    """Ends a stage and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def head(device: str) -> str:
    """What ran where."""
    import torch

    card = torch.cuda.get_device_name() if device == "cuda" else "a dry run on the CPU: no figure here means anything"
    where = f"{time.strftime('%Y-%m-%d %H:%M')}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    where += f", Python {platform.python_version()}, {os.cpu_count()} cores."
    command = " ".join(["tools/gpu_check.sh", *sys.argv[1:]])
    return f"# {card}\n\n{where}\n\n```sh\n{command}\n```\n\n"


def limits(text: str) -> dict[str, float]:
    """{stage: seconds} of "op=30,speed=20"."""
    pairs = [part.split("=") for part in text.split(",")]
    return {_known(name): float(seconds) for name, seconds in pairs}


def stages(text: str) -> list[str]:
    """The stages of "build,op", in their own order."""
    named = {_known(name) for name in text.split(",")}
    return [name for name in STAGES if name in named]


def _known(name: str) -> str:
    if name not in STAGES:
        raise argparse.ArgumentTypeError(f"no stage is named '{name}'; there are {', '.join(STAGES)}")
    return name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--stages", type=stages, default=list(STAGES), metavar="A,B")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--out", type=writable_folder, default=str(ROOT / "output/gpu_check"), metavar="FOLDER")
    add("--data", type=Path, metavar="BCCD", help="train on it too: a folder in COCO's layout")
    add("--seconds", type=float, default=TOTAL, metavar="N", help=f"for all stages (default: {TOTAL:g})")
    add("--limits", type=limits, default={}, metavar="A=N,B=M", help="other limits of single stages, in seconds")
    args = parser.parse_args()
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("PyTorch finds no GPU here; --device cpu is a dry run, `python tools/doctor.py` says more")
    args.out = args.out.resolve()
    shutil.rmtree(args.out / "work", ignore_errors=True)  # of an earlier run, as are its findings
    for name in STAGES:
        (args.out / f"{name}.jsonl").unlink(missing_ok=True)
    arguments = ["--device", args.device, *(["--data", str(args.data.resolve())] if args.data else [])]
    title, begun = head(args.device), time.monotonic()
    for name in args.stages:
        start = time.monotonic()
        limit = min(args.limits.get(name, STAGES[name].limit), args.seconds - (start - begun))
        print(f"{name}: {STAGES[name].title}, at most {max(limit, 0):.0f} s", flush=True)
        outcome = run_stage(name, arguments, args.out, limit) if limit > 0 else "not begun: no time was left"
        with (args.out / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": "end", "outcome": outcome, "seconds": time.monotonic() - start}) + "\n")
        (args.out / "REPORT.md").write_text(title + render_report(args.out), encoding="utf-8")
    files = {name: read_results(args.out / f"{name}.jsonl") for name in args.stages}
    print(f"\n{summarise_stages(files)}\n{args.out / 'REPORT.md'}")
    return int(any(entries[-1]["outcome"] != "passed" for entries in files.values()))


if __name__ == "__main__":
    sys.exit(main())
