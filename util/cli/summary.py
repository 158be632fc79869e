"""What a training or an evaluation is about to do, as one table."""

from argparse import Namespace
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from util.cli.options import output_folder
from util.processes.distributed import world_size
from util.tensors.precision import Precision
from util.training.options import images_per_step
from util.training.state import TrainingState


def introduction(
    args: Namespace,
    cfg: Mapping,
    detector: nn.Module,
    data: list[str],
    precision: Precision,
    kernels: list[str],
    state: TrainingState | None = None,
) -> str:
    """A table for people.

    Args:
        data: lines about each split, and about what becomes of images.
        kernels: a line for each operation that has some.
        state: of a training; None where nothing is trained.
    """
    rows: dict[str, str | list[str]] = {
        "model": describe_model(args.config_file, cfg["model"], detector),
        "data": data,
        **({} if state is None else {"schedule": describe_schedule(cfg, state)}),
        "device": describe_device(precision, args.num_workers),
        "kernels": kernels,
        "output": str(output_folder(args)),
    }
    return f"{'evaluation' if state is None else 'training'}\n{format_table(rows)}"


def describe_model(title: str, node: Mapping, detector: nn.Module) -> list[str]:
    """The parts of a detector with their types and parameters.

    Args:
        title: the model's name.
        node: `model` of its config.
        detector: that was built from it.
    """
    trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    lines = [f"{title}, {_millions(detector)} M parameters, {trainable / 1e6:.2f} M of them trainable"]
    for name, part in detector.named_children():
        kinds = ", ".join(dict.fromkeys(_types(node.get(name)))) or type(part).__name__
        lines.append(f"  {name:<9}{_millions(part):>8} M  {kinds}")
    shared = [f"{name}: {', '.join(_types(value))}" for name, value in node.items() if name not in detector._modules]
    shared = [text for text in shared if not text.endswith(": ")]
    return [*lines, f"  in all of them       {'; '.join(shared)}"] if shared else lines


def _types(node) -> Iterator[str]:
    """The types of the parts that a config describes, outermost first."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield node["type"]
        for value in node.values():
            yield from _types(value)


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}"


def describe_schedule(cfg: Mapping, state: TrainingState) -> list[str]:
    """Length, images of a step, learning rates, and the images of a step that these are meant for."""
    order, epochs, groups = state.data_order, cfg["schedule"]["epochs"], state.optimizer.param_groups
    batch, accumulate = order["batch_size"], order["accumulate"]
    images = images_per_step(cfg, accumulate)
    product = f"batch of {batch} x {world_size()} processes x {accumulate} accumulated"
    rates = [group.get("max_lr", group["initial_lr"]) for group in groups]
    listed = ", ".join(f"{rate:g}" for rate in dict.fromkeys(rates))
    kind = cfg["schedule"].get("kind", "step")
    return [
        f"{epochs} epochs of {order['steps_per_epoch']} steps; {images} images a step ({product})",
        f"learning rate {listed}, {kind}{_meant_for(cfg['optimizer'], images)}",
    ]


def _meant_for(optimizer: Mapping, images: int) -> str:
    """What is to be said of learning rates and of the images of a step that a config has in mind."""
    meant, scaling = optimizer.get("total_batch_size"), optimizer.get("scale_lr")
    if meant is None:
        return ""
    if scaling is not None:
        return f"; scaled ({scaling}) from {meant} images a step to {images}"
    remedy = "" if meant == images else "; optimizer.scale_lr='sqrt' or 'linear' would adapt it"
    return f"; meant for {meant} images a step{remedy}"


def describe_device(precision: Precision, workers: int) -> str:
    """Where and how the numbers are computed."""
    name = torch.cuda.get_device_name() if precision.device == "cuda" else "CPU"
    threads = f"{torch.get_num_threads()} threads and {workers} loading processes each"
    return f"{world_size()} x {name}, {precision.name}, {threads}; PyTorch {torch.__version__}"


def format_table(rows: Mapping[str, str | list[str]]) -> str:
    """Headings with their lines beside them."""
    width = max(map(len, rows)) + 2
    lines = []
    for heading, content in rows.items():
        first, *others = [content] if isinstance(content, str) else content
        lines += [f"{heading:<{width}}{first}", *(f"{'':<{width}}{other}" for other in others)]
    return "\n".join(lines)
