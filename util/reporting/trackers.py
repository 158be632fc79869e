"""Who else keeps a training's numbers: TensorBoard and Weights & Biases, where they are installed. Never required."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from util.files.writing import storage_problem

log = logging.getLogger(__name__)


class TensorBoard:
    """Curves in a folder, for `tensorboard --logdir`."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = partial(_leave_to_journal, threading.excepthook)
        self.writer = SummaryWriter(str(folder))

    def write(self, numbers: dict[str, float], epoch: int):
        """Takes the numbers of an epoch."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self):
        """Ends the thread that writes."""
        self.writer.close()


def _leave_to_journal(others: Callable, args: threading.ExceptHookArgs):
    """Says nothing of a full disk in TensorBoard's thread: who writes the next numbers hears of it, and says so."""
    if not (type(args.thread).__module__.startswith("tensorboard.") and storage_problem(args.exc_value)):
        others(args)


class WeightsAndBiases:
    """A run at wandb.ai, or on the disk where WANDB_MODE=offline says so. A training that goes on continues its run."""

    def __init__(self, project: str, folder: Path, config: dict):
        import wandb

        known = folder / "wandb_run.txt"
        earlier = known.read_text(encoding="utf-8").strip() if known.is_file() else None
        self.run = wandb.init(
            project=project, name=folder.name, id=earlier, resume="allow", dir=str(folder), config=config
        )
        known.write_text(f"{self.run.id}\n", encoding="utf-8")

    def write(self, numbers: dict[str, float], epoch: int):
        """Takes the numbers of an epoch."""
        self.run.log(numbers, step=epoch)

    def close(self):
        """Waits until everything is sent."""
        self.run.finish()


def open_trackers(folder: Path, wandb: str | None, config: dict) -> list[TensorBoard | WeightsAndBiases]:
    """Those that can be had. What is missing, or cannot be reached, is said in a line and done without.

    Args:
        folder: of the training's output.
        wandb: project at Weights & Biases, or None to do without it.
        config: of the training, plain values.
    """
    found: list[TensorBoard | WeightsAndBiases] = []
    try:
        found.append(TensorBoard(folder / "tensorboard"))
    except ImportError:
        log.info("no curves for TensorBoard, which is not installed: pip install tensorboard")
    except OSError as error:
        log.warning("no curves for TensorBoard: %s: %s", folder / "tensorboard", storage_problem(error) or error)
    if wandb:
        try:
            found.append(WeightsAndBiases(wandb, folder, config))
        except ImportError:
            log.warning("nothing goes to Weights & Biases, which is not installed: pip install wandb")
        except Exception as error:  # no account, no network, a project that refuses: none is worth a training
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            log.warning("nothing goes to Weights & Biases: %s. `wandb login`, or WANDB_MODE=offline", reason)
    return found


def close_trackers(trackers: list[TensorBoard | WeightsAndBiases]):
    """Ends trackers of a training that is through: at its end a process waits for them no longer than for others."""
    for tracker in trackers:
        try:
            tracker.close()
        except Exception as error:  # the training is done, whatever a tracker stumbles over
            log.warning("%s may lack the last numbers: %s", type(tracker).__name__, error or type(error).__name__)
