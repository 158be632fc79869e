"""The command line of main.py. Imports nothing heavy, so that --help answers at once."""

import argparse
import contextlib
import re
import sys
from collections.abc import Container

from util.config import ConfigError, load_config
from util.config.papers_names import here_it_is

DESCRIPTION = """Trains, evaluates and measures detectors on data in COCO format.

  python main.py -c config/lite_detr/lite_dino_r50_h3l1_2p1x3_kda.py --coco_path COCODIR
  python main.py -c config/... --coco_path COCODIR --eval --resume checkpoint.pth
  torchrun --nproc_per_node=8 main.py -c config/...
  python -m torch.distributed.launch --nproc_per_node=8 main.py -c config/..."""

PLACE_HELP = "where everything is written (default: output/CONFIG_NAME; the folder of a run that wrote the config)"


def _at_least(limit: int):
    """A type of whole numbers, for argparse."""

    def number(text: str) -> int:
        if int(text) < limit:
            raise argparse.ArgumentTypeError(f"{text} is less than {limit}")
        return int(text)

    number.__name__ = "whole number"
    return number


def papers_options(words: list[str], known: Container[str]) -> list[str]:
    """What is to be said of options of the papers' code in a command line, a line for each.

    Args:
        known: options that are ours.
    """
    given, name = {}, None
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            word, _, value = word.partition("=")
            name = "--config_file" if word == "-c" else word
            given[name] = [value] if value else []
        elif name is not None:
            given[name].append(word)
    cfg = None
    if any(name not in known for name in given):
        with contextlib.suppress(ConfigError):  # which is told where it is needed
            cfg = load_config(" ".join(given.get("--config_file", ["."])))
    lines = []
    for name, values in given.items():
        value = values[0] if len(values) == 1 else f"({', '.join(values)})" if values else ""
        answer = None if name in known else here_it_is(name.lstrip("-").replace("-", "_"), value, cfg)
        if answer is not None:
            lines.append(f"{' '.join([name, *values])}: here {answer}")
    return lines


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or a list of words."""
    parser = _parser()
    if lines := papers_options(sys.argv[1:] if arguments is None else arguments, parser._option_string_actions):
        parser.error("options of the papers' code:\n  " + "\n  ".join(lines))
    args = parser.parse_args(arguments)
    if args.checkpoint_key and not (args.eval or args.test or args.resume or args.pretrain_model_path):
        parser.error("--checkpoint_key: of which checkpoint? Give --resume or --pretrain_model_path, too")
    if args.dry_run and (args.eval or args.test or args.benchmark or args.benchmark_train or args.benchmark_only):
        parser.error("--dry_run tries a training: it goes with none of --eval, --test, --benchmark...")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-c", "--config_file", required=True, metavar="FILE", help="config of the model; a Python file, run as code")
    add(
        "--options",
        nargs="+",
        action="extend",
        metavar="PATH=VALUE",
        help="override values of the config by path, with literals: model.encoder.num_layers=3",
    )

    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--coco_path", metavar="DIR", help="folder of the data; 'shapes': the synthetic shapes dataset (data.root)")
    add("--batch_size", type=_at_least(1), metavar="N", help="training images per process (data.batch_size)")
    add("--num_workers", type=_at_least(0), default=2, metavar="N", help="processes that load images (default: 2)")
    add("--cache_mode", action="store_true", help="keep the encoded images in memory")

    weights = parser.add_argument_group("weights")
    add = weights.add_argument
    add(
        "--resume",
        metavar="FILE|FOLDER|URL|auto",
        help="continue from a checkpoint, or evaluate it: ours or the papers' own. 'auto': the newest in --output_dir, "
        "which is also taken when --resume is not given, and when it went on from this FILE already",
    )
    add(
        "--ignore_class_names",
        action="store_true",
        help="take the classes of checkpoint, train and val by number, where their names do not agree",
    )
    add("--save_every_steps", type=int, metavar="N", help="save within epochs too (training.save_every_steps)")
    add("--pretrain_model_path", metavar="FILE|FOLDER|URL", help="start from what fits of a checkpoint's weights")
    add(
        "--checkpoint_key",
        metavar="KEY",
        help="where in that checkpoint the weights are, if not what is found by itself: ema, ema.module, state_dict; "
        "taken alone, so that training starts at its first epoch",
    )
    add(
        "--finetune_ignore",
        nargs="+",
        default=[],
        metavar="NAME",
        help="with --pretrain_model_path: skip weights whose names contain one of these",
    )

    task = parser.add_argument_group("task (default: train)")
    add = task.add_argument
    add("--eval", action="store_true", help="evaluate on the val split and stop")
    add("--test", action="store_true", help="detect on the test split, write results.json and stop")
    add("--save_results", action="store_true", help="write the detections of an evaluation as COCO JSON")
    add("--dry_run", action="store_true", help="try a few steps, a checkpoint, a resume and an evaluation, and stop")
    add("--benchmark", action="store_true", help="measure parameters, MACs, latency and memory first")
    add("--benchmark_train", action="store_true", help="and the rate of training steps, and what COCO would take")
    add("--benchmark_only", action="store_true", help="measure and stop")

    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--output_dir", metavar="DIR", help=PLACE_HELP)
    add("--note", default="", metavar="TEXT", help="is written to the log, to recognise a run by")
    add("--wandb", metavar="PROJECT", help="log to Weights & Biases too, where wandb is installed (training.wandb)")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--amp", action="store_true", help="compute in bfloat16, or float16 on GPUs that lack it; losses stay float32")
    add("--tf32", action="store_true", help="GPUs may compute float32 products in TF32: faster, 3 digits instead of 7")
    add("--seed", type=_at_least(0), default=42, help="of everything random (default: 42)")
    add("--deterministic", action="store_true", help="the same numbers every time, or an error that says why not")
    add("--find_unused_params", action="store_true", help="let processes agree on parameters without gradient")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # torch.distributed.launch passes it
    return parser
