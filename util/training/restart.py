"""Training in two stages, as D-FINE's: the second begins with the best of the first, and does so again if need be."""

import logging
from pathlib import Path

from util.checkpoints.files import CheckpointError, read_checkpoint_in_all_processes, save_checkpoint
from util.training.optimizer import EMA
from util.training.state import TrainingState

log = logging.getLogger(__name__)

STAGE1 = "checkpoint_stage1.pth"
"""The training as it stood after the best epoch of stage 1."""
REMEDY = (
    f"training.restart goes back to it. If this training went on from another folder, copy {STAGE1} from there; "
    "--options training.restart=none does without"
)


class Restart:
    """Goes back to the best of stage 1 when stage 2 begins, and after every epoch that is not the best since.

    Then weights, their EMA and the optimiser are those of that moment; epochs, the order of images and the schedule of
    learning rates go on. After an epoch that was not the best, what was best is forgotten, and the EMA's decay is
    lowered. Epochs are compared by the AP of the EMA. All that this depends on is in `state.restart`, and so in
    checkpoints: the AP that was best, after which epoch the best of stage 1 was kept, and in stage 2 the EMA's decay.

    Args:
        state: of the training, with an EMA, where it begins or goes on.
        folder: of its checkpoints.
        epoch: finished epochs after which stage 2 begins; a training that goes on later begins it then.
        ema_decay: of the EMA in stage 2.
        lower: what is taken off it after an epoch that was not the best.
    """

    def __init__(self, state: TrainingState, folder: Path, epoch: int, ema_decay: float, lower: float = 1e-4):
        if epoch < 1:
            raise ValueError(f"epoch={epoch} must be 1 or more")
        if not 0 <= ema_decay <= 1:
            raise ValueError(f"ema_decay={ema_decay} must lie between 0 and 1")
        if lower < 0:
            raise ValueError(f"lower={lower} must be 0 or more")
        if not isinstance(state.ema, EMA):
            raise ValueError("there is no EMA; training.ema asks for one")
        self.state, self.ema, self.path, self.epoch = state, state.ema, folder / STAGE1, epoch
        self.ema_decay, self.lower = ema_decay, lower
        if self.second_stage:
            self._set_decay(state.restart["decay"])

    @property
    def second_stage(self) -> bool:
        """Whether stage 2 has begun."""
        return "decay" in self.state.restart

    def before_epoch(self):
        """Begins stage 2 if it is time. To be called by all processes, before an epoch begins or goes on.

        Raises:
            CheckpointError: the best of stage 1 is no longer there, or is damaged.
        """
        state = self.state
        if self.second_stage or state.epoch < self.epoch or state.batch:
            return
        if state.restart.get("kept") is None:
            text = (
                "training.restart: no epoch before stage 2 was evaluated with this option, so there is no best one to "
                "go back to: stage 2 begins with the newest weights, and goes back to these"
            )
            log.warning(text)
            save_checkpoint(state.state_dict(), self.path)
            state.restart["kept"] = state.epoch
        else:
            self._go_back("stage 2 begins")
        self._set_decay(self.ema_decay)

    def after_evaluation(self, score: float) -> list[str]:
        """Compares the epoch that has just ended; in stage 2, goes back if it was not the best.

        Args:
            score: AP of the EMA; -1 where nothing is to be found, and the newest is as good as any.

        Returns:
            under which further names the state as it is now has to be saved, to go back to.

        Raises:
            CheckpointError: as in `before_epoch`.
        """
        kept = self.state.restart
        best = kept.get("best")
        if best is None or score > best or score == -1:
            kept["best"] = score
            if self.second_stage:
                return []
            kept["kept"] = self.state.epoch
            return [STAGE1]
        if self.second_stage:
            self._go_back(f"AP {score:.4f} of the EMA is not above {best:.4f}")
            self._set_decay(max(0.0, kept["decay"] - self.lower))
            kept["best"] = None
        return []

    def _go_back(self, reason: str):
        wanted = self.state.restart["kept"]
        try:
            content = read_checkpoint_in_all_processes(self.path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. {REMEDY}") from error
        if content.get("epoch") != wanted:
            found = f"was saved after {content.get('epoch')} epochs, and this training's best after {wanted}"
            raise CheckpointError(f"{self.path}: {found}. {REMEDY}")
        self.state.go_back(content, str(self.path))
        log.info("%s: back to the weights of epoch %d, %s", reason, wanted, self.path)

    def _set_decay(self, decay: float):
        self.state.restart["decay"] = self.ema.decay = decay
        log.info("the EMA keeps %g of itself in a step", decay)
