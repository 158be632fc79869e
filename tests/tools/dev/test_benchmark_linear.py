"""The comparison of linear layers by library: a row for every layer and kind of work, with a rate of what is here."""

import torch

from models.ops import linear as products
from tools.dev import benchmark_linear


def test_every_layer_has_a_rate(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_linear, "ROWS", 12)
    monkeypatch.setattr(benchmark_linear, "LAYERS", ((12, 8, 16),))
    monkeypatch.setattr(benchmark_linear, "HIDDEN", (16,))
    monkeypatch.setattr(benchmark_linear, "keep_freed_memory", lambda: True)
    monkeypatch.setenv("LEANDETR_LINEAR", "pytorch")  # brought back afterwards
    out, threads = tmp_path / "linear.md", str(torch.get_num_threads())
    monkeypatch.setattr("sys.argv", ["benchmark_linear.py", "--rounds", "1", "--threads", threads, "--out", str(out)])
    try:
        benchmark_linear.main()
    finally:
        products.linear_products.cache_clear()
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")][2:]
    assert [row[1] for row in rows] == [
        "forward",
        "forward and backward",
        "forward, bfloat16",
        "forward",
        "forward, bfloat16",
    ]
    assert all(float(row[-1]) >= 0 for row in rows)
