"""The checkpoints of one training: the newest few, and those that stay."""

import logging
from pathlib import Path

from util.checkpoints.files import (
    CheckpointError,
    read_checkpoint,
    read_checkpoint_in_all_processes,
    save_checkpoint,
    with_key,
)
from util.processes.distributed import broadcast_object, is_main, run_in_all_processes

log = logging.getLogger(__name__)

NEWEST = "checkpoint.pth"
PREVIOUS = "checkpoint_previous{}.pth"


class CheckpointStore:
    """`checkpoint.pth` is the newest, `checkpoint_previous1.pth` the one before it, and so on.

    Args:
        folder: seen by all processes, on whichever machine.
        keep: how many of the newest there are at a time.
    """

    def __init__(self, folder: Path, keep: int):
        if keep < 1:
            raise CheckpointError(f"training.keep_checkpoints={keep}: at least the newest has to be kept")
        self.folder, self.keep = folder, keep

    def _paths(self) -> list[Path]:
        """All that are there, the newest first, also where more were kept once."""
        numbers = range(1, 1 + max(self.keep, len(list(self.folder.glob(PREVIOUS.format("*"))))))
        paths = [self.folder / NEWEST, *(self.folder / PREVIOUS.format(number) for number in numbers)]
        return [path for path in paths if path.is_file()]

    def save(self, content: dict, *more: str):
        """Writes the newest one, and the same under further names. At every moment the newest is there whole."""
        save_checkpoint(content, *(self.folder / name for name in more), self.folder / NEWEST, before=self._shift)

    def _shift(self, path: Path):
        """Makes room: what was the newest becomes the previous one too, until the new one takes its name."""
        if path.name != NEWEST or not path.is_file():
            return
        for number in range(self.keep - 1, 0, -1):
            older = self.folder / PREVIOUS.format(number)
            if number == 1:
                temporary = older.with_suffix(".link")
                temporary.unlink(missing_ok=True)
                _link(path, temporary)
                temporary.replace(older)
            elif (newer := self.folder / PREVIOUS.format(number - 1)).is_file():
                newer.replace(older)

    def find(self, source: str | None, training: bool = False, key: str | None = None) -> tuple[dict | None, str]:
        """The checkpoint to go on from or to evaluate, and where it is; None when there is none.

        To be called by all processes together: the main one chooses, and all read the same.

        Args:
            source: a file, a URL, or None or "auto" for the newest here.
            training: the newest here is taken too where it went on from `source` already: a command that names a
                checkpoint and is started again, after a crash say, does not lose what it had done.
            key: where in `source` the weights are, see `with_key`; what a training saved here itself is taken whole.

        Raises:
            CheckpointError: in all processes, where one of them cannot read it or finds another file there.
        """
        if source in (None, "auto"):
            content, newest = self.newest()
            return content if content is None or training else with_key(content, key, newest), newest
        content, newest, error = self._search() if training else (None, "", "")
        if error:
            log.warning("%s: not looked at: %s", self.folder, error)
        goes_on = content is not None and content.get("resumed_from") == source
        if goes_on:
            log.info("%s went on from %s already", newest, source)
        chosen = broadcast_object(newest if goes_on else source)
        found = read_checkpoint_in_all_processes(chosen, content if goes_on else None)
        return with_key(found, key, chosen) if chosen == source else found, chosen

    def newest(self) -> tuple[dict | None, str]:
        """The newest checkpoint that is whole, and where it is; None when there is none. The same in all processes.

        Damaged ones are passed over, with a warning.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged; or another process cannot see the one that the
                main process found.
        """
        content, source, error = self._search()
        source, error = broadcast_object((source, error))
        if error:
            raise CheckpointError(error)
        return (read_checkpoint_in_all_processes(source, content), source) if source else (None, "")

    def _search(self) -> tuple[dict | None, str, str]:
        """Content, path, and what is wrong when nothing can be used; empty in other processes than the main one."""
        return run_in_all_processes(self._look if is_main() else lambda: (None, "", ""), CheckpointError)

    def _look(self) -> tuple[dict | None, str, str]:
        problems = []
        for path in self._paths():
            try:
                return read_checkpoint(path), str(path), ""
            except CheckpointError as error:
                problems.append(str(error))
                log.warning("%s; trying the one before it", error)
        remedy = "Remove them to start anew, or give another one with --resume"
        return None, "", f"{'; '.join(problems)}. {remedy}" if problems else ""


def _link(path: Path, other: Path):
    """A second name for a file, where the file system has such; else the file moves."""
    try:
        other.hardlink_to(path)
    except OSError:
        path.replace(other)
