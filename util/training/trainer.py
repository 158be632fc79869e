"""The life of a training: epochs, the evaluations that are due, checkpoints, the end. Knows no model, loss or data."""

import logging
import math
from collections.abc import Callable
from functools import partial

from torch import nn
from torch.utils.data import DataLoader

from util.checkpoints.files import save_checkpoint
from util.checkpoints.store import NEWEST, CheckpointStore
from util.files.writing import UnwritableError
from util.processes.distributed import run_in_main_process
from util.processes.preemption import PreemptedError
from util.reporting.logger import Journal
from util.training.options import TrainingOptions
from util.training.restart import Restart
from util.training.state import TrainingState, random_state_kept
from util.training.stepper import TrainingDivergedError

log = logging.getLogger(__name__)


class Trainer:
    """Trains from where a state stands to the last epoch.

    Args:
        state: is moved on.
        loader: of training batches; its sampler can start in the middle of an epoch.
        options: how often to evaluate and to save.
        epochs: of the schedule.
        train_epoch: trains to the end of the running epoch and returns means by name; engine.train_one_epoch with
            everything that the options do not say.
        evaluate: (model, name, best, draw) -> numbers for the log, "AP" among them. `name` is "regular" or "ema",
            `best` holds the numbers of the best epoch so far or is None, `draw` asks for images of what was found.
        store: takes the checkpoints; its folder the best weights, too.
        journal: takes an entry for every epoch.
        stop: whether this process was asked to stop.
        restart: of a training in two stages; None for one.
    """

    def __init__(
        self,
        state: TrainingState,
        loader: DataLoader,
        options: TrainingOptions,
        epochs: int,
        train_epoch: Callable[..., dict[str, float]],
        evaluate: Callable[[nn.Module, str, dict | None, bool], dict],
        store: CheckpointStore,
        journal: Journal,
        stop: Callable[[], bool],
        restart: Restart | None = None,
    ):
        self.state, self.loader, self.options, self.epochs = state, loader, options, epochs
        self.train_epoch, self.evaluate = train_epoch, evaluate
        self.store, self.journal, self.stop, self.restart = store, journal, stop, restart
        self.last = epochs

    def run(self, last: int | None = None):
        """Trains, evaluates and saves up to the last epoch of the schedule, or to the `last` that is asked for.

        Raises:
            PreemptedError: another process or a signal asked to stop; all is saved.
            CheckpointError, UnwritableError: the disk is full, say; what was saved before is there to go on from.
            TrainingDivergedError: the numbers went wrong; what was sound last is saved.
        """
        state = self.state
        self.last = last = self.epochs if last is None else min(last, self.epochs)
        if state.epoch >= self.epochs and state.pending is None:
            log.info("all %d epochs are trained already; schedule.epochs asks for more, --eval evaluates", self.epochs)
        while state.epoch < last or state.pending is not None:
            if state.pending is None:
                if self.restart is not None:
                    self.restart.before_epoch()
                self._finish_epoch()
            self._conclude_epoch()

    def _finish_epoch(self):
        """Trains to the end of the running epoch; what is to be said of it waits in the state for its evaluation."""
        state = self.state
        self.loader.sampler.start_at(state.epoch, state.batch * self.loader.batch_size)
        try:
            means = self.train_epoch(
                clip_norm=self.options.clip_norm,
                accumulate=self.options.accumulate,
                patience=self.options.patience,
                print_every=self.options.print_every,
                epochs=self.epochs,
                stop=self.stop,
                after_step=self._after_step,
            )
        except TrainingDivergedError:
            self._save_if_sound()
            raise
        seconds = state.meters["seconds"].total
        log.info("epoch %d: loss %.4f, %.0f s", state.epoch, means.get("loss", math.nan), seconds)
        means = {f"train_{name}": value for name, value in means.items()}
        state.pending = {"epoch": state.epoch, "seconds": seconds, **means}
        state.finish_epoch()
        if self._evaluation_is_due():
            self.save()  # an evaluation that fails costs no epoch

    def _after_step(self, stopping: bool):
        state, every = self.state, self.options.save_every_steps
        if stopping or (every and state.step % every == 0 and state.batch < len(self.loader)):
            self.save()
        if stopping:
            raise PreemptedError(f"saved in epoch {state.epoch} after {state.batch} batches")

    def _evaluation_is_due(self) -> bool:
        """Whether the epoch that has just ended is to be evaluated."""
        return self.state.epoch % self.options.eval_every == 0 or self.state.epoch >= self.epochs

    def _conclude_epoch(self):
        """Evaluates an epoch if it is due, says what came out, and saves."""
        state = self.state
        entry = state.pending
        if self._evaluation_is_due():
            with random_state_kept():
                entry = entry | self._evaluate_candidates()
        try:
            run_in_main_process(partial(self.journal.write, entry), UnwritableError)
        except UnwritableError:
            if not self._evaluation_is_due():  # else it is saved already, with what is still to be said of it
                self.save()
            raise
        state.pending = None
        names = [f"checkpoint{state.epoch:04d}.pth"] if state.epoch % self.options.save_every == 0 else []
        if self.restart is not None and self._evaluation_is_due() and state.epoch < self.epochs:
            names += self.restart.after_evaluation(entry["ema_test_AP"])
        self.save(*names)

    def _evaluate_candidates(self) -> dict:
        """Scores the model and its EMA; the best of each stays in a file of its own."""
        state, entry = self.state, {}
        for name, model in state.candidates().items():
            prefix = "test_" if name == "regular" else f"{name}_test_"
            numbers = self.evaluate(model, name, self.journal.best(prefix), state.epoch >= self.last)
            entry |= {f"{prefix}{key}": value for key, value in numbers.items()}
            # Where nothing is to be found, AP is -1, and the newest is as good as any.
            if numbers["AP"] > state.best.get(name, -math.inf) or numbers["AP"] == -1:
                state.best[name] = numbers["AP"]
                content = {"model": model.state_dict(), "epoch": state.epoch, "AP": numbers["AP"], **state.metadata}
                save_checkpoint(content, self.store.folder / f"checkpoint_best_{name}.pth")
        return entry

    def save(self, *more: str):
        """Writes the newest checkpoint, and the same under further names."""
        self.store.save(self.state.state_dict(), *more)

    def _save_if_sound(self):
        """Writes the newest checkpoint unless its weights are not finite."""
        if self.state.is_finite():
            self.save()
            log.error("the last sound state is saved in %s", self.store.folder / NEWEST)
        else:
            log.error("the weights are not finite and are not saved")
