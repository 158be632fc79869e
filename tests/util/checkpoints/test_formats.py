"""Files that are no checkpoints, or have another ending than they should: each in one line that says what helps."""

import argparse
import collections
import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from util.checkpoints.files import CheckpointError, read_checkpoint, save_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


class Bar:
    """Anything that is no tensor."""


def packed(**members):
    """A zip archive of members with these names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def tarred(*names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def saved(content, zipped=True):
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


TRUST = r"if you trust it, convert it: python tools/convert_checkpoint\.py --trust \S+x\.pth"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"
LEGACY = tarred("sys_info", "pickle", "storages", "tensors")
ZEROS = {"w": torch.zeros(9999)}
ODD = {
    "empty": (b"", r"damaged: it is empty \(0 bytes\); copy or download it again"),
    "web page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, .*; download the file itself"),
    "error of a store": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page, not a checkpoint"),
    "git-lfs pointer": (POINTER, "is a pointer of Git LFS, not the file itself; `git lfs pull`"),
    "error as text": (b"404: Not Found", 'is text, not a checkpoint; it begins with "404: Not Found"'),
    "error as JSON": (b'{"message": "Not Found"}\n', r"is text, not a checkpoint; it begins with .*Not Found"),
    "zip of images": (packed(a__jpg=b"x"), r"is a zip archive without a checkpoint.*holds a.jpg\); unpack"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "damaged, or not a PyTorch checkpoint: "),
    "Keras": (packed(config__json=b"{}", model__weights__h5=b""), "is a model of Keras; only weights of PyTorch"),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "is an HDF5 file, as Keras and TensorFlow write them"),
    "legacy tar": (LEGACY, rf"tar file of a PyTorch before version 0.1.10.*{TRUST}"),
    "tar": (tarred("model.pth"), r"is a tar archive \(it holds model.pth\); unpack it first"),
    "gzip": (gzip.compress(saved(WEIGHTS)), r"is compressed with gzip; unpack it first"),
    "npy": (b"\x93NUMPY\x01\x00", "is an array of NumPy"),
    "truncated": (saved(ZEROS)[:20000], r"damaged: 20000 bytes, its end is missing; copy or download"),
    "truncated legacy": (saved(ZEROS, zipped=False)[:20000], "damaged, or not a PyTorch checkpoint: .*again"),
    "a tensor": (saved(torch.ones(2)), "holds a Tensor, not a dict of weights"),
    "a list": (saved([1]), "holds a list, not a dict of weights"),
    "numpy scalar": (saved({"AP": np.float64(1)}), rf"\(numpy scalar: numpy\.\S+\.scalar\) and is not.*{TRUST}"),
    "numpy array": (saved({"w": np.ones(2)}), r"\(numpy array: numpy\.\S+\._reconstruct\)"),
    "class": (saved({"w": Bar()}), rf"\(class {Bar.__module__}\.Bar\) and is not loaded, since .* run code.*{TRUST}"),
    "legacy class": (saved({"w": Bar()}, zipped=False), rf"\(class {Bar.__module__}\.Bar\)"),
    "whole model": (saved({"model": nn.Linear(1, 1)}), r"\(class torch\.nn\.modules\.linear\.Linear"),
    "function": (saved({"w": WEIGHTS, "f": re.compile}), r"\(re\.compile\)"),
    "binary": (bytes(range(128, 256)) * 9, "damaged, or not a PyTorch checkpoint"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_told_apart(kind, tmp_path):
    content, said = ODD[kind]
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "x.pth")
    assert str(error.value).startswith(f"{tmp_path}/x.pth: ")
    assert re.search(said, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)
    assert "GLOBAL" not in str(error.value)


def test_a_torchscript_archive(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "x.pth"))
    with pytest.raises(CheckpointError, match=f"is a TorchScript archive.*{TRUST}"):
        read_checkpoint(tmp_path / "x.pth")


def test_endings_do_not_matter(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.pth")
    torch.save({"model": WEIGHTS}, tmp_path / "b.safetensors")
    torch.save(collections.OrderedDict(WEIGHTS), tmp_path / "c.ckpt", _use_new_zipfile_serialization=False)
    for found in (
        read_checkpoint(tmp_path / "a.pth"),
        read_checkpoint(tmp_path / "b.safetensors")["model"],
        read_checkpoint(tmp_path / "c.ckpt"),
    ):
        assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_safetensors_that_are_cut_short(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=rf"damaged: {len(whole) - 4} bytes of {len(whole)} are there"):
        read_checkpoint(tmp_path / name)
    (tmp_path / name).write_bytes(whole[:30])
    with pytest.raises(CheckpointError, match="damaged: 30 bytes of unknown are there"):
        read_checkpoint(tmp_path / name)


def test_a_namespace_is_named_with_nothing_that_is_refused(tmp_path):
    torch.save({"args": argparse.Namespace(x=1), "w": Bar()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "x.pth")
    assert "Namespace" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- folders


def sharded(folder, suffix=".safetensors", index=True):
    """A folder as transformers writes it, of two files."""
    stem, write = ("model", save_file) if suffix == ".safetensors" else ("pytorch_model", torch.save)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    where = {name: f"{stem}-0000{number}-of-00002{suffix}" for number, name in enumerate(WEIGHTS, 1)}
    for name, file in where.items():
        write({name: WEIGHTS[name]}, folder / file)
    if index:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("index", [True, False])
def test_a_folder_of_shards_is_one_checkpoint(tmp_path, suffix, index):
    found = read_checkpoint(sharded(tmp_path / "hub", suffix, index))
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    second = next((tmp_path / "hub").glob("*-00002-of-*"))
    with pytest.raises(CheckpointError, match=rf"{second.name}: is part 2 of 2; give their folder, \S+hub"):
        read_checkpoint(second)
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"hub: {second.name} of its 2 files of weights is missing; fetch"):
        read_checkpoint(tmp_path / "hub")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_one_file(tmp_path, name):
    (save_file if name.endswith("safetensors") else torch.save)(WEIGHTS, tmp_path / name)
    assert read_checkpoint(str(tmp_path)).keys() == WEIGHTS.keys()


def test_an_index_is_a_path_too_and_names_no_files_elsewhere(tmp_path):
    index = sharded(tmp_path) / "model.safetensors.index.json"
    assert read_checkpoint(index).keys() == WEIGHTS.keys()
    for text, said in (
        ('{"weight_map": {"a": "../secret.bin"}}', r"names \.\./secret\.bin, which is no file beside it"),
        ('{"weight_map": {}}', "names no files"),
        ("[]", "is no index of weights by file"),
        ("nonsense", "is no index of weights by file"),
    ):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=said):
            read_checkpoint(tmp_path)


def test_a_folder_of_ours_is_no_checkpoint_but_holds_some(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder without model.safetensors.*; name a checkpoint file"):
        read_checkpoint(tmp_path)
    save_checkpoint({"model": WEIGHTS}, tmp_path / "checkpoint.pth", tmp_path / "checkpoint_best_ema.pth")
    with pytest.raises(CheckpointError, match=r"it holds checkpoint.pth, checkpoint_best_ema.pth: name one of them"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="absent: there is no such checkpoint"):
        read_checkpoint(Path(tmp_path / "absent"))
