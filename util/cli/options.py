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
    """Where everything is written."""
    return Path(args.output_dir or Path("output") / Path(args.config_file).stem)
