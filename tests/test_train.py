"""main.py from the command line to its files, in one process and in two."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.lr_scheduler import OneCycleLR

import main as program
from datasets.shapes import make_shapes
from engine import evaluate, train_one_epoch
from models import build_criterion, build_detector, build_postprocessor
from tests.golden import objects
from tests.tiny import shrunk, write_tiny_config
from util.checkpoints.files import read_checkpoint
from util.cli.arguments import parse_arguments
from util.cli.options import output_folder
from util.config import load_config
from util.files.writing import UnwritableError
from util.processes.preemption import PreemptedError
from util.reporting.logger import Journal
from util.tensors.precision import Precision
from util.training.optimizer import build_ema, build_schedule
from util.training.state import TrainingState
from util.training.stepper import TrainingDivergedError

ROOT = Path(__file__).parents[1]
CONFIG = "config/small/lite_dino_r18_shapes.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight training and four other images of synthetic shapes."""
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=8, val=4)
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config whose model is as small as can be."""
    return write_tiny_config(tmp_path_factory.mktemp("config"), epochs=2)


def command(config, data, output, *more):
    return ["-c", str(config), "--coco_path", str(data), "--output_dir", str(output), "--num_workers", "0", *more]


def run(*arguments):
    """main.py within this process."""
    return program.main(parse_arguments(list(arguments)))


@pytest.fixture(scope="module")
def trained(config, data, tmp_path_factory):
    """The output of a whole training."""
    output = tmp_path_factory.mktemp("trained")
    assert run(*command(config, data, output)) == 0
    return output


def entries(output):
    return [json.loads(line) for line in (output / "log.txt").read_text().splitlines()]


def test_training_leaves_everything_behind(trained, config):
    names = {path.name for path in trained.iterdir()}
    kept = {"checkpoint.pth", "checkpoint0001.pth", "checkpoint_best_regular.pth", "checkpoint_best_ema.pth"}
    assert kept | {"config.py", "info.txt", "log.txt", "vis"} <= names
    for image in ("detections.png", "curves.png"):
        assert np.asarray(Image.open(trained / "vis" / image)).std() > 1
    first, last = entries(trained)
    assert (first["epoch"], last["epoch"]) == (0, 1)
    assert {"train_loss", "train_loss_ce_dn_0", "train_grad_norm", "test_loss", "test_AP", "ema_test_AP"} <= set(last)
    assert len(last["test_coco_eval_bbox"]) == 12
    assert last["train_lr"] == pytest.approx(0.1 * first["train_lr"])
    merged = load_config(trained / "config.py")
    assert merged.model.num_classes == 5  # from the annotations
    assert merged.model.encoder == load_config(config).model.encoder
    content = read_checkpoint(trained / "checkpoint.pth")
    assert content["epoch"] == 2
    assert content["categories"]["names"][0] == "disc"
    assert "lite_dino" in content["config"]


def test_evaluation_repeats_what_training_measured(trained, data, tmp_path):
    arguments = command(trained / "config.py", data, tmp_path, "--eval", "--save_results", "--resume")
    assert run(*arguments, str(trained / "checkpoint.pth")) == 0
    numbers = json.loads((tmp_path / "eval.json").read_text())
    last = entries(trained)[-1]
    assert numbers["regular"]["AP"] == last["test_AP"]
    assert numbers["ema"]["AP"] == last["ema_test_AP"]
    assert numbers["regular"]["loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found[0]) == {"image_id", "category_id", "bbox", "score"}
    assert {row["image_id"] for row in found} == {1, 2, 3, 4}
    assert (tmp_path / "vis" / "detections.png").is_file()


def test_a_config_that_a_run_wrote_belongs_to_its_folder(config, data, tmp_path, monkeypatch):
    """As docs/using.md has it: an evaluation finds the checkpoint, and a training goes on."""
    output = tmp_path / "output/mine"
    assert run(*command(config, data, output), "--options", "schedule.epochs=1", "schedule.drop=(1,)") == 0
    monkeypatch.chdir(tmp_path)
    own = ["-c", "output/mine/config.py", "--num_workers", "0"]
    assert run(*own, "--eval", "--save_results") == 0
    assert (output / "eval.json").is_file()
    assert (output / "results.json").is_file()
    assert run(*own, "--options", "schedule.epochs=2") == 0
    assert [entry["epoch"] for entry in entries(output)] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("there", "words", "folder"),
    [
        (["info.txt"], [], "mine"),
        (["checkpoint_best_ema.pth"], [], "mine"),
        (["info.txt"], ["--output_dir", "other"], "other"),
        (["notes.txt"], [], "output/config"),  # nobody has run there
    ],
)
def test_where_everything_is_written(there, words, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in there:
        (tmp_path / "mine" / name).touch()
    assert output_folder(parse_arguments(["-c", "mine/config.py", *words])) == Path(folder)
    assert output_folder(parse_arguments(["-c", "mine/tiny.py"])) == Path("output/tiny")


def test_a_resumed_training_equals_an_uninterrupted_one(trained, config, data, tmp_path):
    short = command(config, data, tmp_path)
    assert run(*short, "--options", "schedule.epochs=1", "schedule.drop=(1,)") == 0
    assert run(*short) == 0  # finds its own checkpoint
    whole, resumed = (read_checkpoint(path / "checkpoint.pth") for path in (trained, tmp_path))
    assert whole["epoch"] == resumed["epoch"] == 2
    assert all(torch.equal(whole["model"][key], resumed["model"][key]) for key in whole["model"])
    assert all(torch.equal(whole["ema"][key], resumed["ema"][key]) for key in whole["ema"])
    assert [entry["epoch"] for entry in entries(tmp_path)] == [0, 1]


def test_a_training_goes_on_after_the_disk_was_full(trained, config, data, tmp_path, monkeypatch, capsys):
    """Where the log could not take an epoch that was not evaluated, the epoch is there to go on from."""
    words = [*command(config, data, tmp_path), "--options", "training.eval_every=2"]
    with monkeypatch.context() as disk:
        disk.setattr(Journal, "write", refuse)
        assert run(*words) == 2
    assert "log.txt: full; make space" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "checkpoint.pth")["epoch"] == 1
    assert run(*words) == 0
    assert [entry["epoch"] for entry in entries(tmp_path)] == [0, 1]
    assert entries(tmp_path)[0]["train_loss"] == entries(trained)[0]["train_loss"]


def refuse(*_):
    raise UnwritableError("log.txt: full; make space")


def test_detecting_without_ground_truth(trained, data, tmp_path):
    options = ["--options", "data.test.images=val2017", "data.test.annotations=annotations/instances_val2017.json"]
    arguments = command(trained / "config.py", data, tmp_path, "--test", "--resume", str(trained / "checkpoint.pth"))
    assert run(*arguments, *options) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())) > 0


def test_measuring(config, data, tmp_path):
    assert run(*command(config, data, tmp_path, "--benchmark", "--benchmark_train", "--benchmark_only")) == 0
    measured = json.loads((tmp_path / "benchmark.json").read_text())
    assert measured["gmacs"] == pytest.approx(sum(measured["gmacs_by_part"].values()))
    assert measured["real_time"]["gflops"] == 2 * measured["real_time"]["gmacs"] < 2 * measured["gmacs"]
    assert measured["batches"]["1"]["images_per_second"] > 0
    assert measured["batches"]["4"]["peak_mb"] > measured["batches"]["1"]["peak_mb"] > 0
    assert measured["training"]["peak_mb"] > measured["batches"]["1"]["peak_mb"]
    assert list(measured["training"]["parts_ms"]) == ["forward", "loss", "backward", "optimiser"]
    assert measured["training"]["hours_per_schedule"] > measured["training"]["hours_per_epoch"]


def test_finetuning_to_other_classes(trained, config, tmp_path):
    make_shapes(tmp_path / "data", train=4, val=2)
    for path in (tmp_path / "data/annotations").glob("*.json"):
        content = json.loads(path.read_text())
        content["categories"] = [{"id": 10, "name": "round"}, {"id": 20, "name": "other"}]
        for entry in content["annotations"]:
            entry["category_id"] = 10 if entry["category_id"] in (1, 5) else 20
        path.write_text(json.dumps(content))
    arguments = command(config, tmp_path / "data", tmp_path / "out", "--options", "schedule.epochs=1")
    more = ["--pretrain_model_path", str(trained / "checkpoint.pth"), "--finetune_ignore", "label_embed"]
    assert run(*arguments, *more) == 0
    content = read_checkpoint(tmp_path / "out/checkpoint.pth")
    assert content["model"]["decoder.heads.0.class_embed.bias"].shape == (2,)


@pytest.mark.parametrize("amp", [[], ["--amp"]])
def test_accumulation_and_half_precision(config, data, tmp_path, amp):
    options = ["--options", "training.accumulate=2", "schedule.epochs=1", "training.ema=None"]
    assert run(*command(config, data, tmp_path, "--batch_size", "2", *amp), *options) == 0
    assert np.isfinite(entries(tmp_path)[0]["train_loss"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--options", "model.encoder.num_layer=3"], r"did you mean 'num_layers'"),
        (["--options", "training.clipnorm=1"], r"no 'clipnorm' for option"),
        (["--coco_path", "absent"], r"no image folder absent"),
        (["--resume", "absent.pth"], r"absent.pth: there is no such checkpoint"),
        (["--eval"], r"--eval: no checkpoint in .*--resume"),
        (["--pretrain_model_path", "absent.pth"], r"there is no such checkpoint"),
        (["--batch_size", "9"], r"do not fill one batch of 9"),
    ],
)
def test_what_is_wrong_is_said(config, data, tmp_path, capsys, arguments, message):
    assert run(*command(config, data, tmp_path), *arguments) == 2
    said = capsys.readouterr().out
    assert re.search(message, said), said


def test_a_checkpoint_of_another_model_is_refused(trained, config, data, tmp_path, capsys):
    arguments = command(config, data, tmp_path, "--eval", "--resume", str(trained / "checkpoint.pth"))
    assert run(*arguments, "--options", "model.num_levels=3") == 2
    said = capsys.readouterr().out
    assert "mis-shaped" in said
    assert "missing" in said


def test_corrupt_images_are_counted_and_training_goes_on(config, tmp_path, capsys):
    make_shapes(tmp_path / "data", train=4, val=2)
    (tmp_path / "data/train2017/000002.jpg").write_bytes(b"broken")
    (tmp_path / "data/val2017/000001.jpg").unlink()
    assert run(*command(config, tmp_path / "data", tmp_path / "out"), "--options", "schedule.epochs=1") == 0
    (entry,) = entries(tmp_path / "out")
    assert entry["train_corrupt_images"] == 1
    assert entry["test_corrupt_images"] == 1
    said = capsys.readouterr().out
    assert "skipped an image" in said
    assert "000002.jpg: cannot be read" in said


def test_nothing_to_find_is_an_ap_of_none(config, tmp_path):
    make_shapes(tmp_path / "data", train=6, val=2)
    file = tmp_path / "data/annotations/instances_val2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    assert run(*command(config, tmp_path / "data", tmp_path / "out")) == 0
    assert [entry["test_AP"] for entry in entries(tmp_path / "out")] == [-1.0, -1.0]
    assert read_checkpoint(tmp_path / "out/checkpoint_best_regular.pth")["epoch"] == 2  # the newest; none is better
    assert read_checkpoint(tmp_path / "out/checkpoint.pth")["best"] == {"regular": -1.0, "ema": -1.0}
    assert (tmp_path / "out/vis/curves.png").is_file()


def test_an_unknown_section_is_an_error(data, tmp_path, capsys):
    (tmp_path / "c.py").write_text(f"_base_ = {str(ROOT / CONFIG)!r}\noptimiser = dict(lr=1)\n")
    assert run(*command(tmp_path / "c.py", data, tmp_path)) == 2
    assert "did you mean 'optimizer'" in capsys.readouterr().out


class Diverging(torch.nn.Module):
    """A criterion whose loss is not finite now and then."""

    def __init__(self, criterion, bad):
        super().__init__()
        self.criterion, self.bad, self.calls = criterion, bad, 0

    def forward(self, output, targets):
        losses, metrics = self.criterion(output, targets)
        self.calls += 1
        if self.bad(self.calls):
            losses["loss_ce"] = losses["loss_ce"] * float("nan")
        return losses, metrics


def batches(count):
    from datasets.loader import Batch

    facts = {"image_id": torch.tensor(7), "orig_size": torch.tensor([64, 64])}
    items = [(torch.randn(3, 64, 64), {**target, **facts}) for target in objects(2, 5)]
    return [Batch.of([(image, {**target, "corrupt": []}) for image, target in items]) for _ in range(count)]


def one_epoch(criterion, steps, model, cfg, **more):
    loader = batches(steps)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    schedule = build_schedule(optimizer, steps, 1)
    precision = Precision("cpu", False)
    state = TrainingState(model, optimizer, schedule, precision.scaler, None, {}, {"steps_per_epoch": steps})
    return train_one_epoch(model, criterion, loader, state, precision, clip_norm=0.1, **more)


def test_steps_that_are_not_finite_are_thrown_away(caplog):
    cfg = shrunk(CONFIG)
    model = build_detector(cfg)
    means = one_epoch(Diverging(build_criterion(cfg), lambda call: call == 2), 3, model, cfg)
    assert means["skipped"] == 1
    assert np.isfinite(means["loss"])
    assert "step 2 is skipped: not finite: loss, loss_ce; no module: the forward is finite" in caplog.text
    assert "images: 7, 7" in caplog.text
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(TrainingDivergedError, match="10 steps in a row"):
        one_epoch(Diverging(build_criterion(cfg), lambda call: True), 12, model, cfg)


def test_the_last_step_of_an_epoch_may_be_of_fewer_batches():
    cfg, seen = shrunk(CONFIG), []
    criterion = build_criterion(cfg).eval()  # as an evaluation leaves it
    one_epoch(criterion, 3, build_detector(cfg), cfg, accumulate=2, after_step=seen.append)
    assert seen == [False, False]
    assert criterion.training  # in which processes agree on the number of objects


class Received(list):
    """An evaluator that only keeps what it gets."""

    def update(self, results, targets):
        self.extend(results)


def test_losses_of_an_evaluation_are_each_processes_own(monkeypatch):
    """Processes may have different numbers of batches: who exchanged something at each would wait for ever."""
    cfg, found = shrunk(CONFIG), Received()
    model, criterion = build_detector(cfg), build_criterion(cfg).train()
    monkeypatch.delattr("models.criteria.criterion.mean_over_processes")
    postprocess = build_postprocessor(cfg)
    numbers = evaluate(model, criterion, postprocess, batches(2), found, Precision("cpu", False))
    assert len(found) == 4
    assert numbers["loss"] == pytest.approx(sum(value for name, value in numbers.items() if name.startswith("loss_")))
    assert not any(name.endswith("_dn") for name in numbers)  # nothing is denoised but in training
    assert "loss_ce_interm" in numbers


def test_all_processes_leave_an_evaluation_when_one_is_asked_to(monkeypatch):
    monkeypatch.setattr("engine.gather_objects", lambda value: [value, True] if isinstance(value, bool) else [value])
    with pytest.raises(PreemptedError, match="begins anew"):
        evaluate(torch.nn.Identity(), None, None, [], Received(), Precision("cpu", False))


def rates(kind, **more):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule = build_schedule(optimizer, 10, 4, kind=kind, **more)
    seen = []
    for _ in range(40):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_schedules():
    step = rates("step", drop=(2, 3), gamma=0.1)
    assert (step[0], step[19]) == (1.0, 1.0)
    assert step[20] == pytest.approx(0.1)
    assert step[30] == pytest.approx(0.01)
    assert rates("step", drop=2)[20] == pytest.approx(0.1)
    warm = rates("step", warmup_steps=5)
    assert warm[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    cosine = rates("cosine")
    assert cosine[0] == 1.0
    assert cosine[-1] < 0.01
    cycle = rates("onecycle")
    assert max(cycle) == pytest.approx(1.0, abs=0.01)
    assert cycle.index(max(cycle)) in range(6, 10)
    with pytest.raises(ValueError, match="none of step, cosine, onecycle"):
        rates("linear")


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_a_cycle_of_any_number_of_steps(epochs):
    for steps in range(1, 31):
        total = steps * epochs
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], 0.5)
        schedule = build_schedule(optimizer, steps, epochs, kind="onecycle")
        rates = [optimizer.param_groups[0]["lr"]]
        for _ in range(total):
            optimizer.step()
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
        assert np.isfinite(rates).all()
        assert 0.5 * 0.93 < max(rates[:-1]) <= 0.5
        assert 0 < rates[-1] < 1e-5
        if total > 4:  # PyTorch's curve itself
            other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], 0.5)
            curve = OneCycleLR(other, 0.5, total_steps=total + 1, pct_start=0.2, cycle_momentum=False)
            assert rates[0] == other.param_groups[0]["lr"]
            for rate in rates[1:]:
                other.step()
                curve.step()
                assert rate == other.param_groups[0]["lr"]


def test_build_ema_counts_tied_weights_once():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1] = model[0]
    average = build_ema(model, decay=0.9, warmup=False)
    average.update_parameters(model)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update_parameters(model)
    torch.testing.assert_close(average.module[0].weight, start + 0.1)
    warm = build_ema(model, decay=0.9)
    warm.update_parameters(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    warm.update_parameters(model)
    torch.testing.assert_close(warm.module[0].weight, model[0].weight - 1 + (1 - 2 / 11))


# ----------------------------------------------------------------------------------------------------- two processes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(*words, launcher="run"):
    """Runs a script in two processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m", f"torch.distributed.{launcher}", "--nproc_per_node=2", "--master_port", free_port()]
    done = subprocess.run([*start, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-10000:]
    return done.stdout + done.stderr


def scores_by_image(path):
    found = {}
    for row in json.loads(path.read_text()):
        found.setdefault(row["image_id"], []).append(row["score"])
    return {image: sorted(scores) for image, scores in found.items()}


@pytest.mark.parametrize("launcher", ["run", "launch"])
def test_two_processes_train_and_evaluate(config, data, trained, tmp_path, launcher):
    arguments = command(
        config, data, tmp_path, "--device", "cpu", "--batch_size", "2", "--options", "schedule.epochs=1"
    )
    launch("main.py", *arguments, launcher=launcher)
    (entry,) = entries(tmp_path)
    assert np.isfinite(entry["train_loss"])
    evaluation = command(trained / "config.py", data, tmp_path / "eval", "--device", "cpu", "--eval", "--save_results")
    launch("main.py", *evaluation, "--resume", str(trained / "checkpoint.pth"), launcher=launcher)
    alone = command(trained / "config.py", data, tmp_path / "alone", "--device", "cpu", "--eval", "--save_results")
    assert run(*alone, "--resume", str(trained / "checkpoint.pth")) == 0
    together, alone = (scores_by_image(tmp_path / name / "results.json") for name in ("eval", "alone"))
    assert together.keys() == alone.keys() == {1, 2, 3, 4}
    for image, scores in alone.items():
        np.testing.assert_allclose(together[image], scores, atol=1e-4)


STEP = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from models import build_criterion, build_detector
from tests.golden import objects, make_image
from tests.tiny import shrunk, write_tiny_config
from util.processes.distributed import barrier, init_processes, leave_processes, mean_over_processes, rank, world_size

torch.nn.functional.relu = torch.nn.functional.silu  # a ReLU near zero may switch with rounding
torch.rand_like = lambda t: torch.full(t.shape, 0.4)
torch.randint_like = lambda t, low, high: torch.arange(t.numel()).remainder(high - low).view(t.shape).to(t.dtype) + low


def step(config, output):
    cfg = shrunk(config, **{"model.backbone.norm": "frozen"})
    torch.manual_seed(0)
    detector, criterion = build_detector(cfg).train(), build_criterion(cfg).train()
    for module in detector.modules():
        if hasattr(module, "dropout"):  # a layer's own, or the rate of nn.MultiheadAttention
            module.dropout = torch.nn.Identity() if isinstance(module.dropout, torch.nn.Module) else 0.0
        if hasattr(module, "sampling_offsets"):  # new ones fall on pixel centres, where bilinear gradients jump
            torch.nn.init.uniform_(module.sampling_offsets.bias, -2, 2)
    images = [make_image(64, 96, float(i)) for i in range(2)]
    targets = objects(1, 5) * 2
    targets[1] = {"labels": (targets[0]["labels"] + 1) % 5, "boxes": targets[0]["boxes"].flip(0)}
    model = detector
    if world_size() > 1:
        images, targets = images[rank() : rank() + 1], targets[rank() : rank() + 1]
        model = DistributedDataParallel(detector)
    losses, _ = criterion(model(images, targets), targets)
    total = sum(losses.values())
    total.backward()
    total = mean_over_processes(total.detach())
    if rank() == 0:
        grads = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
        torch.save({"loss": total, "grads": grads}, output)


init_processes("cpu")
step(*sys.argv[1:])
barrier()
leave_processes()
"""


@pytest.mark.parametrize("name", ["small/lite_dino_r18_shapes", "deformable_detr/deformable_detr_r50_box_refine"])
def test_two_processes_take_the_step_of_one(name, tmp_path):
    """Loss and gradients of two images, one per process, equal those of a batch of both."""
    (tmp_path / "step.py").write_text(STEP)
    path = str(ROOT / f"config/{name}.py")
    launch(str(tmp_path / "step.py"), path, str(tmp_path / "two.pth"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    one = [sys.executable, str(tmp_path / "step.py"), path, str(tmp_path / "one.pth")]
    subprocess.run(one, cwd=ROOT, env=environment, check=True, timeout=600)
    one, two = (torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in ("one", "two"))
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-5, atol=0)
    assert one["grads"].keys() == two["grads"].keys()
    whole = norm(one["grads"].values())
    assert norm(two["grads"][key] - grad for key, grad in one["grads"].items()) < 1e-5 * whole
    for key, grad in one["grads"].items():
        assert norm([two["grads"][key] - grad]) < 1e-4 * norm([grad]) + 1e-5 * whole, key


def norm(tensors):
    return sum(tensor.double().square().sum() for tensor in tensors).sqrt()


def test_launch_scripts_speak_the_papers_convention(config, data, tmp_path):
    environment = {**os.environ, "GPUS_PER_NODE": "1", "PYTHON": sys.executable, "MASTER_PORT": free_port()}
    arguments = ["--coco_path", str(data), "--output_dir", str(tmp_path), "--device", "cpu", "--benchmark_only"]
    for words in ([str(config)], ["python", "main.py", "-c", str(config)]):
        start = ["bash", "tools/run_dist_launch.sh", "1", *words, *arguments]
        done = subprocess.run(start, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "benchmark.json").is_file()
        (tmp_path / "benchmark.json").unlink()


def test_the_slurm_script_passes_everything_on(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS_PER_NODE": "8"}
    words = ["bash", "tools/run_dist_slurm.sh", "part", "job", "16", "config/x.py", "--amp"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    assert {"--partition=part", "--job-name=job", "--gres=gpu:8", "--ntasks=16", "--ntasks-per-node=8"} <= set(lines)
    assert "--signal=USR1@180" in lines
    assert lines[-2:] == ["config/x.py", "--amp"]


@pytest.mark.parametrize(
    ("status", "state", "queued"), [(75, "RUNNING", True), (75, "COMPLETING", False), (1, "RUNNING", False)]
)
def test_the_slurm_script_queues_a_preempted_job_again(tmp_path, status, state, queued):
    for name, code in (("srun", f"exit {status}"), ("squeue", f"echo {state}"), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "123"}
    words = ["bash", "tools/run_dist_slurm.sh", "part", "job", "8", "config/x.py"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert (done.stdout.strip() == "requeue 123") == queued


def test_help_needs_no_pytorch():
    code = "import sys; sys.argv = ['main.py', '--help']; sys.modules['torch'] = None; exec(open('main.py').read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--coco_path" in done.stdout
