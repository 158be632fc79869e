"""Stage 7: a training that goes on: N + N steps against 2N, bit for bit with --deterministic; how far apart without."""

import shutil
import subprocess
import sys
from pathlib import Path

from datasets.shapes import make_shapes
from tools.dev.gpu.results import Results, distance
from tools.dev.gpu.stages import ROOT, Setting
from util.checkpoints.files import read_checkpoint

CONFIG = "config/small/lite_dino_r18_shapes.py"
OPTIONS = ("schedule.epochs=2", "training.save_every=1", "training.eval_every=2")
HALF = "checkpoint0001.pth"


def run(setting: Setting, results: Results):
    """Whole trainings first, all at once; then the second halves from the checkpoints between."""
    images = setting.work / "resume"
    make_shapes(images, train=8 if setting.dry_run else 64, val=2)
    ways = {"deterministic": ["--deterministic"]}
    if not setting.dry_run:
        ways |= {"as it comes": [], "deterministic, bfloat16": ["--deterministic", "--amp"]}
    folders = {way: setting.work / f"resume_{number}" for number, way in enumerate(ways)}
    whole = {way: start(setting, images, folders[way] / "whole", *flags) for way, flags in ways.items()}
    ended = {way: process.wait() for way, process in whole.items()}
    halves = {}
    for way, flags in ways.items():
        results.check(f"{way}: the whole training", ended[way] == 0)
        if ended[way] == 0:
            folder = folders[way] / "half"
            folder.mkdir(parents=True)
            shutil.copy(folders[way] / "whole" / HALF, folder / "checkpoint.pth")
            halves[way] = start(setting, images, folder, *flags)
    for way, process in halves.items():
        if process.wait():
            results.check(f"{way}: the training that goes on", False)
            continue
        apart = difference(folders[way] / "whole", folders[way] / "half")
        results.row("weights after 2N steps against N + N", way=way, **{"largest distance of a tensor": apart})
        if "deterministic" in way:
            results.check(f"{way}: the same bits", apart == 0.0)


def start(setting: Setting, images: Path, out: Path, *flags: str) -> subprocess.Popen:
    """A training of two epochs, or what is left of it, on the setting's device."""
    words = ["-c", CONFIG, "--coco_path", str(images), "--device", setting.device, "--num_workers", "0"]
    command = [sys.executable, "main.py", *words, "--output_dir", str(out), *flags, "--options", *OPTIONS]
    return subprocess.Popen(command, cwd=ROOT)


def difference(whole: Path, half: Path) -> float:
    """How far apart the weights are: the largest over all tensors of norm of difference over norm."""
    ours, theirs = (read_checkpoint(folder / "checkpoint.pth")["model"] for folder in (half, whole))
    return max(distance(ours[name], theirs[name]) for name in theirs)
