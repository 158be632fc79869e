"""Stage 1: the op is built for the GPUs of this machine, and all that is needed is there."""

import os
import re
import subprocess
import sys
import time

import torch

from tools.dev.benchmark_ops import build_classic
from tools.dev.gpu.results import Results
from tools.dev.gpu.stages import ROOT, Setting


def run(setting: Setting, results: Results):
    """Builds with all cores and for no other GPU than those here; then asks the doctor."""
    environment = {"LEANDETR_CUDA": "0"}
    if not setting.dry_run:
        cards = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
        environment = {"TORCH_CUDA_ARCH_LIST": ";".join(f"{major}.{minor}" for major, minor in sorted(cards))}
    environment["MAX_JOBS"] = str(os.cpu_count())
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    if setting.dry_run:  # what is built stays as it is
        command = [sys.executable, "setup.py", "--version"]
    start = time.monotonic()
    status = _start(command, "models/ops", environment).wait()
    results.row("the build", **environment, seconds=time.monotonic() - start)
    results.check("setup.py builds", status == 0, " ".join(command[1:]))
    if not setting.dry_run:
        with results.attempt("the classic kernels, to compare with, are built"):
            build_classic(torch.cuda.get_device_capability())
    status, found = doctor()
    results.check("the doctor runs", status == 0)
    wanted = "reference" if setting.dry_run else "cuda"
    results.check(f"backend {wanted} is there", wanted in found, ", ".join(found))


def doctor() -> tuple[int, list[str]]:
    """Its exit status and the backends that it finds. This process may have looked before the op was built."""
    command = [sys.executable, "tools/doctor.py"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False, encoding="utf-8", errors="replace")
    print(done.stdout)
    found = re.search(r"^backends, fastest first: (.*)$", done.stdout, re.MULTILINE)
    return done.returncode, found[1].split(", ") if found else []


def _start(command: list[str], folder: str, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(command, cwd=ROOT / folder, env=os.environ | environment)
