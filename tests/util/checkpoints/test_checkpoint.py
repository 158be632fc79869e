"""Checkpoints: whole or not at all, never run, and explained when they do not fit."""

import argparse
import functools
import json
import os
import pickle
import stat
import threading
from http.server import HTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import main as program
from models import build_detector
from models.official_keys import FAMILIES, convert_official
from models.weights import load_checkpoint, load_for_finetuning
from tests.golden import Recording, recordings
from tests.harness.forked import prepare
from tests.harness.server import FileServer
from tools.convert_checkpoint import convert
from util.checkpoints.download import cached_path, sha256
from util.checkpoints.files import CheckpointError, load_strictly, model_weights, read_checkpoint, save_checkpoint
from util.cli.arguments import parse_arguments
from util.config import ConfigError, load_config

CONFIG = "config/small/lite_dino_r18_shapes.py"


def test_what_is_written_is_read(tmp_path):
    content = {"model": {"w": torch.randn(3)}, "epoch": 3, "list": [1, None, "a", 2.5]}
    save_checkpoint(content, tmp_path / "a.pth", tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        found = read_checkpoint(tmp_path / name)
        assert torch.equal(found["model"]["w"], content["model"]["w"])
        assert (found["epoch"], found["list"]) == (3, content["list"])
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "b.pth"}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    save_checkpoint({"epoch": 1}, tmp_path / "a.pth")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint({"epoch": 2, "bad": lambda: 1}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["epoch"] == 1


def test_content_and_name_reach_the_disk_in_this_order(tmp_path, monkeypatch):
    """What a loss of power leaves is the old file or the new one."""
    events, fsync, rename = [], os.fsync, Path.replace

    def note_sync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    def note_name(self, target):
        events.append("name")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_name)
    save_checkpoint({"epoch": 1}, tmp_path / "a.pth", tmp_path / "b.pth")
    assert events == ["content", "name", "folder"] * 2


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_does_nothing_but_raise(tmp_path, zipped):
    marker = tmp_path / "marker"
    torch.save({"model": {}, "x": Malicious(marker)}, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"bad.pth: holds more than tensors.*system.*not loaded"):
        read_checkpoint(tmp_path / "bad.pth")
    assert not marker.exists()


@pytest.mark.parametrize("flag", ["--resume", "--pretrain_model_path"])
def test_a_malicious_pickle_on_the_command_line(tmp_path, flag, capsys):
    marker, base = tmp_path / "marker", prepare(tmp_path, train=4, val=1)
    torch.save({"model": {}, "x": Malicious(marker)}, tmp_path / "bad.pth")
    arguments = [*base, "--num_workers", "0", "--output_dir", str(tmp_path / "out"), flag, str(tmp_path / "bad.pth")]
    assert program.main(parse_arguments(arguments)) == 2
    assert "holds more than tensors" in capsys.readouterr().out
    assert not marker.exists()


@pytest.mark.parametrize("averaged", [False, True])
def test_weights_as_safetensors(tmp_path, averaged):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1] = model[0]  # tied
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    average = {"n_averaged": torch.tensor(3), **{f"module.{key}": value + 1 for key, value in weights.items()}}
    facts = {"config": "x = 1", "categories": {"ids": [1, None]}}
    save_checkpoint({"model": model.state_dict(), "ema": average, **facts}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors", averaged)
    load_strictly(model, model_weights(read_checkpoint(tmp_path / "a.safetensors")), "a.safetensors")
    assert all(torch.equal(value, weights[key] + averaged) for key, value in model.state_dict().items())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["config"] == "x = 1"
        assert json.loads(file.metadata()["categories"]) == {"ids": [1, None]}
    save_checkpoint({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="empty.pth: holds no"):
        convert(tmp_path / "empty.pth", tmp_path / "b.safetensors", averaged)


def test_a_truncated_file_is_named(tmp_path):
    save_checkpoint({"w": torch.zeros(10000)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:20000])
    with pytest.raises(CheckpointError, match="cut.pth: damaged"):
        read_checkpoint(tmp_path / "cut.pth")


def test_the_papers_files_hold_a_namespace(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1, x=[2])}, tmp_path / "official.pth")
    assert read_checkpoint(tmp_path / "official.pth")["args"].lr == 1


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, the URL at which it is served, and an empty cache of PyTorch's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    with HTTPServer(("127.0.0.1", 0), functools.partial(FileServer, tmp_path / "served")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def in_cache(tmp_path):
    return [path for path in (tmp_path / "cache/hub/checkpoints").iterdir() if path.suffix != ".lock"]


def test_a_url_is_downloaded_once(tmp_path, served):
    folder, url = served
    for name, epoch in (("a", 7), ("b", 8)):
        save_checkpoint({"epoch": epoch}, folder / f"{name}.pth")
    assert read_checkpoint(f"{url}/a.pth?x=1")["epoch"] == 7
    (folder / "a.pth").unlink()
    assert read_checkpoint(f"{url}/a.pth?x=1")["epoch"] == 7
    save_checkpoint({"epoch": 9}, folder / "a.pth")  # of the same last part
    assert [read_checkpoint(f"{url}/{path}")["epoch"] for path in ("b.pth", "other/a.pth", "a.pth?x=2")] == [8, 9, 9]
    assert len((folder / "requests.txt").read_text().split()) == len(in_cache(tmp_path)) == 4


@pytest.mark.parametrize("right", [True, False])
def test_a_hash_in_the_name_is_compared(tmp_path, served, right):
    folder, url = served
    save_checkpoint({"epoch": 7}, folder / "a.pth")
    name = f"model-{sha256(folder / 'a.pth')[:8] if right else '0123abcd'}.pth"
    (folder / "a.pth").rename(folder / name)
    if right:
        assert read_checkpoint(f"{url}/{name}")["epoch"] == 7
        assert [path.name for path in in_cache(tmp_path)] == [name]  # where torchvision and timm keep it too
    else:
        with pytest.raises(CheckpointError, match="SHA-256 should begin with 0123abcd"):
            read_checkpoint(f"{url}/{name}")
        assert in_cache(tmp_path) == []


def test_half_a_download_is_none(tmp_path, served):
    folder, url = served
    save_checkpoint({"epoch": 7}, folder / "a.pth")
    with pytest.raises(CheckpointError, match=r"cannot be downloaded.*ended after \d+ of \d+ bytes.*by hand"):
        read_checkpoint(f"{url}/cut/a.pth")
    assert in_cache(tmp_path) == []


def test_a_download_that_fails_says_what_to_do(tmp_path, served):
    url = f"{served[1]}/absent.pth"
    with pytest.raises(CheckpointError, match=r"cannot be downloaded.*404.*by hand") as error:
        read_checkpoint(url)
    assert "absent.pth (" not in str(error.value)
    former = cached_path(url).with_name("absent.pth")
    save_checkpoint({"epoch": 7}, former)
    with pytest.raises(CheckpointError, match=rf"{former} may come from another URL and is not used"):
        read_checkpoint(url)
    former.rename(cached_path(url))
    assert read_checkpoint(url)["epoch"] == 7


PARTS = st.text("ab-._=0é ", min_size=1, max_size=12)
URLS = st.builds("https://{}/{}/{}{}".format, PARTS, PARTS, st.just("m"), st.sampled_from(["", "?a", "?b", "#a"]))


@given(URLS, URLS, st.sampled_from([".pth", ".safetensors"]))
def test_every_url_has_a_place_of_its_own(first, second, suffix):
    first, second = (url.replace("/m", f"/m{suffix}") for url in (first, second))
    assert (cached_path(first) == cached_path(second)) == (first == second)
    assert cached_path(first).suffix == suffix
    assert cached_path(first).parent == cached_path(second).parent


def test_keys_that_do_not_fit_are_listed_together():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    weights = {
        "0.weight": torch.zeros(3, 2),
        "0.bias": torch.zeros(4),
        "1.weight": torch.zeros(1, 3),
        "x": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as error:
        load_strictly(model, weights, "file.pth")
    text = str(error.value)
    assert "file.pth does not fit" in text
    assert "missing (1): 1.bias" in text
    assert "unexpected (1): x" in text
    assert "mis-shaped (1): 0.bias (4,), here (3,)" in text


def test_our_own_and_official_checkpoints_load_alike(caplog):
    recording = Recording("deformable_detr/deformable_detr_r50_single_scale")
    detector = build_detector(recording.cfg)
    caplog.set_level("INFO")
    official = {f"module.{key}": value for key, value in recording.checkpoint().items()}
    load_checkpoint(detector, {"model": official}, "deformable_detr", "theirs.pth")
    assert "an official deformable_detr checkpoint" in caplog.text
    weights = {key: value.clone() for key, value in detector.state_dict().items()}
    load_checkpoint(build_detector(recording.cfg), {"model": weights, "format": "x"}, "deformable_detr", "ours.pth")
    assert "ours.pth: a checkpoint of this project" in caplog.text
    assert torch.equal(weights["decoder.heads.3.class_embed.bias"], official["module.class_embed.0.bias"])
    with pytest.raises(CheckpointError, match="not keys of an official deformable_detr checkpoint: odd.key"):
        load_checkpoint(detector, {"model": {**official, "odd.key": torch.zeros(1)}}, "deformable_detr", "odd.pth")


def test_weights_of_several_heads_do_not_fit_a_shared_one():
    """Their shapes would: a checkpoint of iterative refinement under a config without it."""
    recording = Recording("deformable_detr/deformable_detr_r50_single_scale")
    weights = recording.checkpoint()
    detector = build_detector(recording.cfg)
    before = detector.decoder.heads[0].class_embed.bias.clone()
    weights["class_embed.4.bias"] = weights["class_embed.4.bias"] + 1
    with pytest.raises(CheckpointError, match=r"refined\.pth: .*heads\.0\..* and .*heads\.4\..*share_head=False"):
        load_checkpoint(detector, {"model": weights}, "deformable_detr", "refined.pth")
    assert torch.equal(detector.decoder.heads[0].class_embed.bias, before)


def test_finetuning_takes_what_fits(tmp_path, caplog):
    caplog.set_level("INFO")
    source = build_detector(load_config(CONFIG, {"model.num_classes": 7}))
    torch.save({"model": source.state_dict()}, tmp_path / "seven.pth")
    detector = build_detector(load_config(CONFIG, {"model.num_classes": 3}))
    bias = detector.queries.base.head.class_embed.bias.clone()
    load_for_finetuning(detector, str(tmp_path / "seven.pth"), None, ["label_embed"])
    assert "re-initialised, since their shapes differ (8)" in caplog.text
    assert "skipped by --finetune_ignore (1): queries.label_embed.weight" in caplog.text
    assert torch.equal(detector.queries.base.head.class_embed.bias, bias)
    assert torch.equal(detector.encoder.layers[0].linear1.weight, source.encoder.layers[0].linear1.weight)


@pytest.mark.parametrize("name", recordings())
def test_official_keys_map_one_to_one(name):
    recording = Recording(name)
    entries = recording.spec["state_dict"]
    family = recording.cfg.official_keys
    ours = build_detector(recording.cfg).state_dict()
    target = {}
    for key, entry in entries.items():
        for new in convert_official({key: torch.zeros(1)}, family):
            assert new not in target, f"{key} and {target[new]} both become {new}"
            target[new] = key
            shape = entries[entry] if isinstance(entry, str) else entry
            assert list(ours[new].shape) == shape
    assert set(target) == {key for key in ours if not key.endswith("num_batches_tracked")}


def test_a_head_of_its_own_goes_before_the_first():
    weights = {f"class_embed.{i}.bias": torch.tensor([i]) for i in (2, 0, 1)}
    found = convert_official(weights, "huggingface_deformable_detr")
    assert [found[f"decoder.heads.{i}.class_embed.bias"].item() for i in range(6)] == [0, 1, 2, 0, 0, 0]


def test_an_unknown_family_is_named():
    with pytest.raises(ConfigError, match=r"'dinos'.*did you mean 'dino'"):
        convert_official({}, "dinos")
    assert set(FAMILIES) >= {"deformable_detr", "dino", "lite_dino"}
