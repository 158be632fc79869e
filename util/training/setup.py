"""From a config to a training that stands at its beginning."""

import logging
from pathlib import Path

from torch import nn
from torch.amp import GradScaler

from util.config import ConfigDict, node_location
from util.config.registry import call_with_config
from util.processes.distributed import world_size
from util.training.optimizer import build_ema, build_optimizer, build_schedule
from util.training.options import TrainingOptions, images_per_step
from util.training.restart import Restart
from util.training.state import TrainingState

log = logging.getLogger(__name__)


def build_training_optimizer(model: nn.Module, cfg: ConfigDict, options: TrainingOptions):
    """The optimizer of a config's section `optimizer`; its learning rate may follow the images of a step."""
    images = images_per_step(cfg, options.accumulate)
    return call_with_config(
        build_optimizer, cfg.optimizer, where=node_location(cfg, "optimizer"), model=model, batch_size=images
    )


def build_training_state(
    model: nn.Module,
    cfg: ConfigDict,
    options: TrainingOptions,
    scaler: GradScaler,
    metadata: dict,
    *,
    dataset_size: int,
    batches: int,
    seed: int,
) -> TrainingState:
    """A model with the optimizer, the schedule and the EMA that its config asks for.

    Args:
        model: on its device, with the weights that it starts from.
        scaler: see util.tensors.precision.
        metadata: see TrainingState.
        dataset_size: training images.
        batches: of an epoch.
        seed: of the order.

    Raises:
        ConfigError: one of the sections is wrong.
    """
    order = {
        "dataset_size": dataset_size,
        "batch_size": cfg.data.batch_size,
        "accumulate": options.accumulate,
        "world_size": world_size(),
        "seed": seed,
        "steps_per_epoch": -(-batches // options.accumulate),
    }
    optimizer = build_training_optimizer(model, cfg, options)
    schedule = call_with_config(
        build_schedule,
        cfg.schedule,
        where=node_location(cfg, "schedule"),
        optimizer=optimizer,
        steps_per_epoch=order["steps_per_epoch"],
    )
    ema = None
    if options.ema:
        ema = call_with_config(build_ema, options.ema, where=node_location(cfg, "training.ema"), model=model)
    return TrainingState(model, optimizer, schedule, scaler, ema, metadata, order)


def build_restart(cfg: ConfigDict, options: TrainingOptions, state: TrainingState, folder: Path) -> Restart | None:
    """What begins and judges the second stage of a training, where its config asks for one.

    Args:
        state: where the training begins or goes on.
        folder: of its checkpoints.

    Raises:
        ConfigError: the section is wrong.
    """
    if not options.restart:
        return None
    where = node_location(cfg, "training.restart")
    return call_with_config(Restart, options.restart, where=where, state=state, folder=folder)


def with_shared_statistics(model: nn.Module, device: str) -> nn.Module:
    """The model with batch norms that take mean and variance of the images of all processes.

    PyTorch has such norms for GPUs alone: on a CPU they stay as they are, and a line says so. Frozen ones do, too.
    """
    if world_size() == 1:
        return model
    if device == "cpu":
        text = "training.sync_bn: on a CPU, batch norms take the statistics of their own process's images all the same"
        log.warning(text)
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
