"""Results are whole or not there, whatever the disk says; the message names the path and what helps."""

import errno
import logging
import os
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from util.checkpoints.files import CheckpointError, _sync_folder, read_checkpoint, save_checkpoint
from util.files.writing import UnwritableError, append_line, storage_problem, whole_file, write_text
from util.reporting.logger import Journal, setup_logging
from util.reporting.plots import contact_sheet, plot_curves
from util.reporting.trackers import TensorBoard, _leave_to_journal, open_trackers

FULL = f"cannot be written: {os.strerror(errno.ENOSPC)}; make space and start the same command again"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_and_fail(path, failure):
    with whole_file(path) as part:
        part.write_text("[1, ")
        failure()


class FullFile:
    """A file on a disk that has space for a few bytes."""

    def __init__(self, file, space):
        self.file, self.space = file, space

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        taken = bytes(content)[: self.space]
        if not taken:
            full()
        self.space -= len(taken)
        return self.file.write(taken)


@pytest.fixture
def full_disk(monkeypatch):
    """From now on files take ten bytes each."""
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda *words, **options: FullFile(original(*words, **options), 10))
    monkeypatch.setattr(Path, "write_text", full)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "made/results.json"
    write_text(path, "[1]")
    with pytest.raises(UnwritableError, match=f"{path}: {FULL}"):
        write_and_fail(path, full)
    assert path.read_text() == "[1]"
    assert list(path.parent.iterdir()) == [path]


def test_errors_of_other_kinds_are_not_of_the_disk(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(tmp_path / "a", lambda: 1 / 0)
    assert not list(tmp_path.iterdir())
    assert storage_problem(FileNotFoundError(errno.ENOENT, "no such file")) is None
    assert storage_problem(RuntimeError("matrices do not fit")) is None
    assert "make space" in storage_problem(RuntimeError("I/O error: No space left on device (os error 28)"))


def test_what_is_no_text_is_escaped(tmp_path):
    write_text(tmp_path / "a.txt", "größe \udce9")
    assert (tmp_path / "a.txt").read_bytes() == "größe \\udce9".encode()


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, request):
    path = tmp_path / "log.txt"
    append_line(path, '{"epoch": 0}')
    request.getfixturevalue("full_disk")
    with pytest.raises(UnwritableError, match=f"{path}: {FULL}"):
        append_line(path, '{"epoch": 1}')
    assert path.read_bytes() == b'{"epoch": 0}\n'


@pytest.mark.parametrize("draw", [lambda path: contact_sheet([], path), lambda path: plot_curves([{"epoch": 0}], path)])
def test_drawings(draw, tmp_path, monkeypatch):
    draw(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UnwritableError, match=f"a.png: {FULL}"):
        draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_fills_up_in_the_middle_of_a_checkpoint(tmp_path, request):
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"epoch": 1, "model": torch.zeros(100)}, path)
    request.getfixturevalue("full_disk")
    with pytest.raises(CheckpointError, match=f"{path}: {FULL}. The file that was there is unchanged"):
        save_checkpoint({"epoch": 2, "model": torch.zeros(100)}, path)
    request.getfixturevalue("monkeypatch").undo()
    assert read_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_not_flushed_where_they_cannot_be_opened(tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr("util.checkpoints.files.os.name", "nt")
    monkeypatch.setattr("util.checkpoints.files.os.open", lambda *_: 1 / 0)
    _sync_folder(tmp_path)


def test_info_that_cannot_be_written_is_said_once(tmp_path, monkeypatch, capsys):
    setup_logging(tmp_path)
    monkeypatch.setattr(logging.getLogger().handlers[1], "flush", full)
    for number in range(3):
        logging.getLogger("x").info("message %d", number)
    said = capsys.readouterr()
    assert said.out.count(f"{tmp_path / 'info.txt'}: cannot be written") == 1
    assert "message 2" in said.out
    assert "Logging error" not in said.err
    setup_logging(None)


def test_no_place_for_info(tmp_path):
    (tmp_path / "info.txt").mkdir()
    with pytest.raises(UnwritableError, match=r"info.txt: cannot be written: .* choose another place"):
        setup_logging(tmp_path)


def test_tensorboard_without_space(tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    (tmp_path / "tensorboard").touch()
    assert open_trackers(tmp_path, None, {}) == []
    assert f"no curves for TensorBoard: {tmp_path / 'tensorboard'}: " in caplog.text
    journal = Journal(tmp_path)
    journal.trackers = [TensorBoard(tmp_path / "other")]
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    with monkeypatch.context() as hooks:
        hooks.setattr(threading, "excepthook", partial(_leave_to_journal, lambda args: 1 / 0))
        journal.write({"epoch": 0, "loss": 1.0})
        journal.write({"epoch": 1, "loss": 1.0})
    assert caplog.text.count(f"TensorBoard is left: {tmp_path}: {os.strerror(errno.ENOSPC)}; make space") == 1
    assert len(journal.read()) == 2
