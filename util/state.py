"""What a training is made of and where it stands: all that a resumed one needs."""

import platform

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from util.checkpoint import CheckpointError
from util.distributed import gather, rank


class TrainingState:
    """A model in training, with everything that changes beside it.

    Args:
        model: the detector, without any wrapper.
        optimizer, schedule, scaler: of the training.
        average: moving average of the model, or None.
        facts: plain values that are stored beside the state (config, categories).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule,
        scaler: torch.amp.GradScaler,
        average: AveragedModel | None,
        facts: dict,
    ):
        self.model, self.average = model, average
        self.optimizer, self.schedule, self.scaler = optimizer, schedule, scaler
        self.facts = facts
        self.epoch = 0
        """Finished epochs."""
        self.best: dict[str, float] = {}
        """Best AP so far, of "regular" and of "ema"."""

    def candidates(self) -> dict[str, nn.Module]:
        """What is evaluated: the model as "regular", and its average as "ema"."""
        return {"regular": self.model} | ({"ema": self.average.module} if self.average is not None else {})

    def state_dict(self) -> dict:
        """Tensors and plain values. To be called by all processes together: each adds its random state."""
        return {
            "model": self.model.state_dict(),
            "ema": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "random": gather(_random_state()),
            "versions": {"torch": torch.__version__.split("+")[0], "python": platform.python_version()},
            **self.facts,
        }

    def load_state_dict(self, content: dict, source: str):
        """Goes back to where a checkpoint of ours stood, weights aside, which the caller has loaded.

        Raises:
            CheckpointError: the checkpoint was made with another optimiser or another set of trainable weights.
        """
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except ValueError as error:
            remedy = "To start anew from its weights, give it as --pretrain_model_path"
            raise CheckpointError(f"{source}: its optimiser does not fit this config: {error}. {remedy}") from error
        self.schedule.load_state_dict(content["schedule"])
        self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            if content["ema"] is not None:
                self.average.load_state_dict(content["ema"])
            else:
                self.average.module.load_state_dict(self.model.state_dict())
        self.epoch, self.best = content["epoch"], dict(content["best"])
        if len(content["random"]) > rank():
            _set_random_state(content["random"][rank()])


def _random_state() -> dict:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict):
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
