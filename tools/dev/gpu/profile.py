"""Stage 8: what NVIDIA's tools see of the kernels: bad accesses, races, bandwidth, occupancy."""

import csv
import os
import re
import shutil
import subprocess
import sys

from tools.dev.gpu.results import Results
from tools.dev.gpu.stages import ROOT, Setting

SANITIZERS = ("memcheck", "racecheck")
METRICS = {
    "gpu__time_duration.sum": "us",
    "dram__bytes.sum.per_second": "GB/s of device memory",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "% of its peak",
    "lts__t_sector_hit_rate.pct": "% hits in L2",
    "l1tex__t_sector_hit_rate.pct": "% hits in L1",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "% occupancy",
    "launch__registers_per_thread": "registers",
}
"""{what ncu calls it: its column}."""
FACTORS = {
    **{unit + end: 10.0**power for unit, power in (("n", -3), ("u", 0), ("m", 3)) for end in ("s", "second")},
    **{f"{unit}byte/{end}": 10.0**power for unit, power in (("", -9), ("K", -6), ("M", -3), ("G", 0), ("T", 3))
       for end in ("s", "second")},
}  # fmt: skip
"""From ncu's units, of which it picks one for each number, to those of the columns."""


def run(setting: Setting, results: Results):
    """The calls alone first: what is wrong with them is not the tools' doing."""
    command = [sys.executable, "-m", "tools.dev.gpu.kernels", "--device", setting.device]
    results.check("the calls themselves", _said(command)[0] == 0)
    for tool in SANITIZERS:
        if setting.dry_run or shutil.which("compute-sanitizer") is None:
            results.note(f"{tool}: there is no compute-sanitizer here, or no GPU.")
            continue
        with results.attempt(tool):
            status, said = _said(["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *command])
            found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", said)
            results.check(tool, status == 0 and bool(found), "; ".join(found))
    if setting.dry_run or shutil.which("ncu") is None:
        results.note("There is no ncu here, or no GPU.")
        return
    with results.attempt("ncu"):
        counters = ["ncu", "--csv", "--page", "raw", "--clock-control", "none", "--metrics", ",".join(METRICS)]
        _, said = _said([*counters, "--kernel-name", "regex:plain|aware|scatter", *command, "--large"])
        for row in kernels(said):
            results.row("counters, N=2, encoder, bfloat16", **row)
        results.check("ncu read counters", bool(kernels(said)))


def _said(command: list[str]) -> tuple[int, str]:
    """The exit status of a command and what it printed."""
    # Left to its cache, PyTorch takes memory in pieces, and nobody sees who reaches beyond a tensor.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, check=False, encoding="utf-8", errors="replace"
    )
    print(done.stdout, done.stderr)
    return done.returncode, done.stdout


def kernels(text: str) -> list[dict[str, str]]:
    """One row for every kernel of what `ncu --csv --page raw` printed: names above, then units, then numbers."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    names, units, *table = [*csv.reader(lines[start:]), [], []][: len(lines) - start] or [[], []]
    rows = []
    for numbers in table:
        cells, unit = dict(zip(names, numbers, strict=True)), dict(zip(names, units, strict=True))
        row = {"kernel": re.sub(r"^void |leandetr::cuda::|\(anonymous namespace\)::|\(.*\)$", "", cells["Kernel Name"])}
        for metric, column in METRICS.items():
            value = float(cells[metric].replace(",", "")) * FACTORS.get(unit[metric], 1.0)
            row[column] = f"{value:.4g}"
        rows.append(row)
    return rows
