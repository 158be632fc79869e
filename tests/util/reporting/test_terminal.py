"""What training says at a terminal and to others, and the dry run that tries all of it."""

import io
import json
import logging
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import main as program
from datasets.annotations import read_annotations
from datasets.coco_eval import NUMBERS, Evaluation
from datasets.splits import describe_names
from tests.harness.forked import prepare
from util.cli.arguments import parse_arguments
from util.reporting.logger import Journal, journal_points
from util.reporting.progress import Meter, Progress, format_duration, main_losses, peak_memory
from util.reporting.trackers import close_trackers

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Arguments of a training of two epochs of three steps of two batches of two, on synthetic shapes."""
    return prepare(tmp_path_factory.mktemp("base"), train=12, val=2)


def run(base, output, *more):
    """main.py within this process."""
    return program.main(parse_arguments([*base, "--output_dir", str(output), "--num_workers", "0", *more]))


@pytest.fixture(scope="module")
def said(base, tmp_path_factory):
    """What a whole training said."""
    output = tmp_path_factory.mktemp("whole")
    assert run(base, output) == 0
    return (output / "info.txt").read_text()


def lines_with(text, *words):
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_a_training_begins_with_a_table(said, base):
    table = said.split("epoch 0 2/6")[0]
    for stage, kind in {
        "backbone": "ResNet",
        "neck": "PyramidNeck",
        "encoder": "InterleavedEncoder, DeformableEncoderLayer, SplitFFNEncoderLayer",
        "queries": "WithDenoising, TopKProposals",
        "decoder": "DeformableDecoder, DeformableDecoderLayer",
    }.items():
        (line,) = lines_with(table, stage, " M  ", kind)
        assert float(line.split()[1]) >= 0
    assert "attention: KeyAwareDeformAttn" in table
    assert lines_with(table, "train: 12 images with ", "instances_train2017.json")
    assert lines_with(table, "val: 2 images with ")
    assert "classes 5: disc, " in table
    assert "in training 48 to 64, longer side at most 96; in evaluation 64" in table
    assert "2 epochs of 3 steps; 4 images a step (batch of 2 x 1 processes x 2 accumulated)" in table
    assert "learning rate 0.0007, step; meant for 4 images a step\n" in table
    assert lines_with(table, "1 x CPU, float32")
    assert lines_with(table, "kernels", "reference")


def test_a_line_tells_how_training_gets_on(said):
    first, last = lines_with(said, "epoch 0 ", " in all  loss ")[0], lines_with(said, "epoch 1 6/6")[0]
    for word in ("loss ", "loss_ce ", "loss_bbox ", "loss_giou ", "class_error ", " lr ", "images/s", "s/it"):
        assert word in first
    assert "loss_ce_" not in first  # other layers and places
    assert "% waiting" in first
    assert first.endswith(" GB")
    assert "  0 s left  " in last  # nothing follows the last epoch
    assert lines_with(said, "eval regular 2/2")


def test_an_evaluation_is_compared_with_the_best_so_far(said):
    starts = [line.split(" ")[0] for line in said.splitlines()]
    assert starts.count("now") == 4  # two epochs, the model and its average
    assert starts.count("best") == starts.count("change") == 2  # not in the first epoch
    now = Evaluation(dict.fromkeys(NUMBERS, 0.25) | {"APs": -1.0}, {"disc": (0.25, 0.5)}, 1)
    best = dict.fromkeys(NUMBERS, 0.2) | {"APs": -1.0, "AP": 0.5, "AR1": 0.25}
    header, numbers, before, change, *_ = (line.split() for line in now.table(best).splitlines())
    assert header == list(NUMBERS)
    assert (numbers[0], before[0], change[0]) == ("now", "best", "change")
    assert change[1:5] == ["-0.250", "+0.050", "+0.050", "="]
    assert change[7] == "="


def test_the_journal_knows_the_best_epoch(tmp_path):
    journal = Journal(tmp_path)
    assert journal.best("test_") is None
    for epoch, value in enumerate((0.1, 0.3, 0.2)):
        journal.write({"epoch": epoch, "test_AP": value, "test_AP50": 2 * value, "ema_test_AP": 1 - value})
    assert journal.best("test_") == {"AP": 0.3, "AP50": 0.6}
    assert journal.best("ema_test_") == {"AP": 0.9}


def test_of_an_epoch_that_was_run_twice_the_later_counts(tmp_path):
    journal = Journal(tmp_path)
    for epoch, value in ((0, 0.1), (1, 0.9), (2, 0.9), (1, 0.3)):
        journal.write({"epoch": epoch, "test_AP": value})
    assert [(entry["epoch"], entry["test_AP"]) for entry in journal.read()] == [(0, 0.1), (1, 0.3), (2, 0.9)]


DAMAGED = [b'{"epoch": 3, "test_AP": 0.', b"\x00\x00\xff", b"[1]", b'{"test_AP": 0.9}', b'{"epoch": "1"}']


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_line_of_the_journal_is_left_out(tmp_path, damage, caplog):
    path = tmp_path / "log.txt"
    path.write_bytes(b'{"epoch": 0, "test_AP": 0.1}\n' + damage)
    journal = Journal(tmp_path)
    assert journal.best("test_") == {"AP": 0.1}
    journal.write({"epoch": 1, "test_AP": 0.3})
    journal.write({"epoch": 2, "test_AP": -1.0})
    assert path.read_bytes().split(b"\n")[1] == damage
    assert [entry["epoch"] for entry in journal.read()] == [0, 1, 2]
    assert journal.best("test_") == {"AP": 0.3}
    said = [record.message for record in caplog.records]
    assert len(said) == 1  # once, however often it is read
    assert f"{path}, line 2: no entry of an epoch" in said[0]
    assert "left out" in said[0]


def test_an_ap_of_nothing_is_no_point_of_a_curve():
    entries = [{"epoch": 0, "test_AP": -1.0}, {"epoch": 1}, {"epoch": 2, "test_AP": 0.5}]
    assert journal_points(entries, "test_AP") == [(2, 0.5)]
    now = Evaluation(dict.fromkeys(NUMBERS, 0.25), {"disc": (0.25, 0.5)}, 1)
    change = now.table(dict.fromkeys(NUMBERS, -1.0)).splitlines()[3].split()
    assert change == ["change", *["-"] * 12]


def test_rate_and_time_left():
    progress = Progress("epoch 0", meters={"seconds": Meter(), "waiting": Meter()}, more=2)
    progress.update({"seconds": 2.0, "waiting": 0.5, "loss": 3.0})
    progress.images.update(8)
    line = progress.line(40, 100)
    assert line.startswith("epoch 0 40/100  4 images/s  2 min left, 9 min in all  loss 3  2 s/it  25 % waiting  peak ")
    assert peak_memory() > 1e7


def test_no_rate_is_said_before_it_is_known(caplog):
    """As when an epoch goes on: what it summed up is known then, but no recent time."""
    caplog.set_level(logging.INFO)
    before = Meter()
    before.total, before.count = 8.0, 4
    for _ in Progress("epoch 0", 1, {"seconds": before, "waiting": before}, done=4).over(range(7)):
        pass
    assert "epoch 0 5/7" not in caplog.text
    assert "epoch 0 6/7" in caplog.text


class Terminal(io.StringIO):
    """What a person sees."""

    def isatty(self):
        return True


def test_on_a_terminal_the_line_is_live(monkeypatch):
    seen = Terminal()
    monkeypatch.setattr(sys, "stdout", seen)
    progress = Progress("epoch 7")
    for number in progress.over(range(3)):
        progress.update({"loss": float(number)})
        time.sleep(0.12)  # faster than that, it would not be drawn anew
    assert "\n" not in seen.getvalue().strip()
    assert "epoch 7 0/3" in seen.getvalue()
    assert "epoch 7 2/3  0 s left  loss 0.5" in seen.getvalue()


def test_what_people_look_for_fits_on_a_terminal_of_80_columns():
    progress = Progress("epoch 123", more=376)
    progress.update({"seconds": 1.234, "waiting": 0.1, "loss": 12.3})
    progress.images.update(128)
    bar = 8 + 1
    assert len(progress.line(12345, 14786).split("  loss")[0]) + bar <= 80


def test_times_for_people():
    seconds = (0, 61, 600, 5400, 90000, 400000)
    assert [format_duration(s) for s in seconds] == ["0 s", "61 s", "10 min", "1 h 30 min", "25 h 00 min", "4 d 15 h"]


def test_losses_that_stand_for_all():
    names = ["loss", "loss_ce", "loss_bbox", "loss_ce_0", "loss_ce_dn", "loss_bbox_interm", "class_error", "loss_mask"]
    assert main_losses(names) == ["loss_ce", "loss_bbox", "loss_mask"]


def test_names_of_many_classes_are_cut():
    assert describe_names(["a", "b"]) == "2: a, b"
    text = describe_names([f"class{number}" for number in range(80)])
    assert text.startswith("80: class0, class1, ")
    assert text.endswith(" more")
    assert len(text) < 130


# ------------------------------------------------------------------------------------------------------------ dry run


def test_a_dry_run_proves_the_set_up_and_leaves_the_rest_alone(base, tmp_path):
    (tmp_path / "checkpoint.pth").write_bytes(b"of the real training")
    assert run(base, tmp_path, "--dry_run", "--wandb", "nothing-goes-there") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pth", "dry_run"}
    assert (tmp_path / "checkpoint.pth").read_bytes() == b"of the real training"
    text = (tmp_path / "dry_run/info.txt").read_text()
    assert "checkpoint.pth: going on after 0 epochs and 4 batches" in text
    assert "val: 2 images, 2 of them taken, with " in text
    assert lines_with(text, "epoch 0 6/6")  # 12 images are fewer than it would take
    verdict = text.splitlines()[-1]
    assert "dry run: PASSED in" in verdict
    assert "3 steps, loss" in verdict
    assert "2 images evaluated; 0 corrupt ones" in verdict
    assert "6 batches of an epoch take" in verdict
    assert not list(tmp_path.glob("dry_run/*.pth"))
    (entry,) = [json.loads(line) for line in (tmp_path / "dry_run/log.txt").read_text().splitlines()]
    assert "test_AP" in entry
    assert len(lines_with(text, "parameters, ", " M of them trainable")) == 1  # one table
    assert (tmp_path / "dry_run/vis/detections.png").is_file()


def test_a_dry_run_that_fails_says_what_it_was_doing(base, tmp_path, capsys, monkeypatch):
    assert run(base, tmp_path, "--dry_run", "--batch_size", "13") == 2
    *_, verdict, why = capsys.readouterr().out.splitlines()
    assert "dry run: FAILED while training" in verdict
    assert "do not fill one batch of 13" in why
    monkeypatch.setattr(program.CocoEvaluator, "evaluate", lambda self, detections: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(base, tmp_path, "--dry_run")
    assert "dry run: FAILED while going on from a checkpoint and evaluating" in capsys.readouterr().out


def test_a_dry_run_is_of_a_training(base, capsys):
    with pytest.raises(SystemExit):
        parse_arguments([*base, "--dry_run", "--eval"])
    assert "--dry_run tries a training" in capsys.readouterr().err


TWO = """
import sys
from pathlib import Path
from tests.harness.forked import Forked
said = Path(sys.argv[1])
print(Forked(sys.argv[2:], 2, said).wait(120), said.read_text())
"""


def test_a_dry_run_of_two_processes(base, tmp_path):
    words = [*base, "--output_dir", str(tmp_path), "--num_workers", "0", "--batch_size", "1", "--dry_run"]
    start = [sys.executable, "-c", TWO, str(tmp_path / "said.txt"), *words]
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("[0, 0]"), done.stdout + done.stderr
    assert len(lines_with(done.stdout, "dry run: PASSED")) == 1
    assert "2 x CPU" in done.stdout
    assert "4 images a step (batch of 1 x 2 processes x 2 accumulated)" in done.stdout


def test_the_first_images_of_a_data_set(base):
    whole = read_annotations(Path(base[3]) / "annotations/instances_train2017.json")
    few = whole.head(5)
    assert len(few) == 5
    assert len(few.boxes) == len(few.category_ids) == len(few.areas) == int(whole.first[5]) > 0
    for index in range(5):
        assert (few.boxes[few.objects(index)] == whole.boxes[whole.objects(index)]).all()
    assert len(whole.head(99)) == 12


# ---------------------------------------------------------------------------------------- TensorBoard, Weights & Biases


class StubRun:
    """What wandb.init returns."""

    id = "abc123"

    def __init__(self):
        self.logged = []

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.logged.append("finished")


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place that keeps what it is given."""
    stub = types.ModuleType("wandb")
    stub.calls, stub.runs = [], []

    def init(**options):
        stub.calls.append(options)
        stub.runs.append(StubRun())
        return stub.runs[-1]

    stub.init = init
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    return stub


def test_weights_and_biases_get_the_numbers_and_a_resumed_run_goes_on(wandb, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for epoch in (0, 1):
        journal = Journal(tmp_path)
        journal.track("cells", {"model": {"d_model": 32}})
        journal.write({"epoch": epoch, "test_AP": 0.5, "classes": {"disc": (0.1, 0.2)}})
    first, second = wandb.calls
    assert (first["project"], first["id"], first["config"]) == ("cells", None, {"model": {"d_model": 32}})
    assert (second["id"], second["resume"], second["dir"]) == ("abc123", "allow", str(tmp_path))
    assert wandb.runs[1].logged == [(1, {"test_AP": 0.5})]
    assert "pip install tensorboard" in caplog.text


def test_who_cannot_be_reached_is_done_without(wandb, tmp_path, caplog):
    def refuse(**options):
        raise RuntimeError("api_key not configured\nlong story")

    wandb.init = refuse
    journal = Journal(tmp_path)
    journal.track("cells", {})
    journal.write({"epoch": 0, "loss": 1.0})
    assert "Weights & Biases: api_key not configured. `wandb login`, or WANDB_MODE=offline" in caplog.text
    assert "long story" not in caplog.text
    assert len(journal.read()) == 1


def test_a_tracker_that_is_not_there_or_breaks_is_said_once(wandb, tmp_path, caplog, monkeypatch):
    journal = Journal(tmp_path)
    journal.track("cells", {})
    wandb.runs[0].log = lambda *_, **__: 1 / 0
    for epoch in range(3):
        journal.write({"epoch": epoch, "loss": 1.0})
    assert caplog.text.count("WeightsAndBiases is left: division by zero") == 1
    assert len(journal.read()) == 3
    monkeypatch.setitem(sys.modules, "wandb", None)
    Journal(tmp_path).track("cells", {})
    assert caplog.text.count("pip install wandb") == 1


def test_trackers_are_closed_when_a_training_is_through(wandb, tmp_path, caplog):
    journal = Journal(tmp_path)
    journal.track("cells", {})
    journal.write({"epoch": 0, "loss": 1.0})
    close_trackers(journal.trackers)
    assert wandb.runs[0].logged == [(0, {"loss": 1.0}), "finished"]
    wandb.runs[0].finish = lambda: 1 / 0
    close_trackers(journal.trackers)
    assert "WeightsAndBiases may lack the last numbers: division by zero" in caplog.text


def test_only_the_main_process_tracks(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr("util.reporting.logger.is_main", lambda: False)
    journal = Journal(tmp_path)
    journal.track("cells", {})
    journal.write({"epoch": 0, "loss": 1.0})
    assert not wandb.calls
    assert not list(tmp_path.iterdir())


def test_nothing_is_sent_unless_asked(wandb, tmp_path):
    Journal(tmp_path).track(None, {})
    assert not wandb.calls
