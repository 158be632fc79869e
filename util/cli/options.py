"""The config and the folder that a command line asks for."""

from argparse import Namespace
from pathlib import Path

from util.config import ConfigDict, ConfigError, load_config, nearest_name, parse_options

SECTIONS = (
    "model", "criterion", "postprocess", "official_keys", "data", "optimizer", "schedule", "training", "aliases",
    "compile", "checkpointing",
)  # fmt: skip


def config_of_arguments(args: Namespace) -> ConfigDict:
    """The config with what the command line says."""
    flags = {
        "data.root": args.coco_path,
        "data.batch_size": args.batch_size,
        "training.save_every_steps": args.save_every_steps,
    }
    chosen = {path: value for path, value in flags.items() if value is not None}
    cfg = load_config(args.config_file, parse_options(args.options) | chosen)
    for name in cfg:
        if name not in SECTIONS:
            raise ConfigError(f"{args.config_file}: '{name}' is no section of a config; {nearest_name(name, SECTIONS)}")
    return cfg


def output_folder(args: Namespace) -> Path:
    """Where everything is written: --output_dir, else the folder of the run that wrote the config, else one of its
    name under output/."""
    config = Path(args.config_file)
    return Path(args.output_dir or (config.parent if _is_of_run(config) else Path("output") / config.stem))


def _is_of_run(config: Path) -> bool:
    """Whether a run wrote a config into its own folder: there stands what else a run leaves."""
    others = ("info.txt", "log.txt", "checkpoint*.pth")
    return config.name == "config.py" and any(any(config.parent.glob(name)) for name in others)
