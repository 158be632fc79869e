"""The comparison with other runtimes: what it times is our models' work, in turns."""

import csv

import pytest
import torch

from tools.dev import benchmark_peers as peers
from tools.dev.products import product_seconds, products_of
from util.measuring.flops import count_gmacs

NAME = "lite_dino_r18_shapes"
SIZE = (64, 96)


def macs(shape):
    kind, *sizes = shape
    if kind != "convolution":
        return torch.Size(sizes).numel()
    (batch, _, height, width), weight, stride, padding, dilation, _ = sizes
    out = [
        (side + 2 * pad - step * (size - 1) - 1) // by + 1
        for side, pad, step, size, by in zip((height, width), padding, dilation, weight[2:], stride, strict=True)
    ]
    return batch * out[0] * out[1] * torch.Size(weight).numel()


def test_products_are_all_that_the_model_multiplies():
    counts = products_of(peers.our_detector(NAME), peers.example(SIZE))
    assert {kind for kind, *_ in counts} == {"linear", "bmm", "convolution"}
    found = sum(count * macs(shape) for shape, count in counts.items()) / 1e9
    # What is counted beside products: bilinear samples and norms.
    everything = count_gmacs(peers.our_detector(NAME), list(peers.example(SIZE)), inference=True)
    assert 0.85 * everything < found < everything
    assert all(product_seconds(shape, 1) > 0 for shape in counts)


def test_every_side_is_timed_in_every_round(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "TIME_LIMIT", 120)
    monkeypatch.setattr(peers, "installed", lambda package: None)
    out = tmp_path / "new/rounds.csv"
    words = [NAME, "--rounds", "2", "--size", *map(str, SIZE), "--bfloat16", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["benchmark_peers.py", *words])
    peers.main()
    said = capsys.readouterr()
    assert "left out: transformers, onnx, onnxscript, onnxruntime, openvino; pip install -r" in said.err
    rows = [line.split(" | ") for line in said.out.splitlines() if line.startswith(f"| {NAME}")]
    assert [(row[1], float(row[3])) for row in rows if row[1].startswith("ours")] == [
        ("ours", 1.0),
        ("ours, bfloat16", 1.0),
    ]
    with out.open() as file:
        measured = [(row["round"], row["side"]) for row in csv.DictReader(file)]
    assert measured == [(turn, side) for turn in "12" for side in ("ours", "products", "ours, bfloat16")]


def test_an_unknown_model_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark_peers.py", "deformable_dino"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "no config is named deformable_dino" in capsys.readouterr().err
