"""Trains, evaluates and measures detectors: `python main.py --help`. The only file that knows everyone."""

import sys

from util.cli.arguments import parse_arguments
from util.processes.ending import Ending

if __name__ == "__main__":  # before the imports below: neither --help nor Ctrl-C need wait for PyTorch
    ENDING, ARGUMENTS = Ending(), parse_arguments()

import json
import logging
from argparse import Namespace
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from datasets.coco import CorruptImageError, DetectionDataset
from datasets.coco_eval import CocoEvaluator
from datasets.preparation import build_preparation
from datasets.scoring import Scorer, write_results
from datasets.splits import Splits
from engine import evaluate, train_one_epoch
from models import build_criterion, build_detector, build_postprocessor
from models.ops import describe_kernels
from models.ops.linear import ProductsError
from models.restore import stored_categories
from models.weights import load_initial_weights, load_trained_weights
from util.checkpoints.store import CheckpointStore
from util.cli.options import config_of_arguments, output_folder
from util.cli.outputs import writable_folder
from util.cli.program import begin_program, exit_status
from util.cli.summary import introduction
from util.config import ConfigError, dump_config
from util.config.registry import call_with_config
from util.files.writing import UnwritableError, write_text
from util.measuring.benchmark import format_benchmark, measure_detector
from util.processes.distributed import (
    broadcast_object,
    local_rank,
    rank,
    run_in_all_processes,
    run_in_main_process,
    world_size,
)
from util.processes.preemption import StopRequest
from util.reporting.logger import Journal, setup_logging
from util.reporting.plots import plot_journal
from util.tensors.precision import Precision
from util.training.benchmark import benchmark_training
from util.training.dry_run import dry_run, dry_run_images, shorten_training
from util.training.memory_check import check_largest_step
from util.training.options import TrainingOptions
from util.training.setup import build_restart, build_training_state, with_shared_statistics
from util.training.state import TrainingState
from util.training.trainer import Trainer

log = logging.getLogger("main")


class Run:
    """One command line: its config, and the five things that can be done with it."""

    def __init__(self, args: Namespace):
        self.args, self.cfg = args, config_of_arguments(args)
        place = partial(writable_folder, output_folder(args))
        self.output_dir = run_in_all_processes(place, UnwritableError, "All machines have to see the same folder")
        run_in_all_processes(partial(setup_logging, self.output_dir), UnwritableError)
        log.info("command: %s %s", " ".join(sys.argv), args.note)
        self.options = call_with_config(TrainingOptions, self.cfg.training, f"{args.config_file}: training")
        limit = partial(dry_run_images, batch_size=self.cfg.data.batch_size, accumulate=self.options.accumulate)
        if args.dry_run:
            self.options = shorten_training(self.options)
        self.splits = Splits(self.cfg, args, limit if args.dry_run else None)
        self.precision = Precision(args.device, args.amp)
        self.journal = Journal(self.output_dir)
        self.store = CheckpointStore(self.output_dir, self.options.keep_checkpoints)
        self.stop = StopRequest()
        self.family = self.cfg.get("official_keys")
        torch.manual_seed(args.seed + rank())

    def build(self) -> nn.Module:
        """The detector on its device; the loss and the post-processing go with it."""
        self.criterion = build_criterion(self.cfg)
        self.postprocess = build_postprocessor(self.cfg)
        detector = build_detector(self.cfg).to(self.args.device)
        if self.cfg.get("compile"):
            # Anew for every size of image, up to a limit. Not dynamic=False, as in a Predictor: it would compile
            # for each number of denoising queries, too, which the objects decide.
            detector.compile()
        return detector

    def train(self, introduced: bool = False) -> TrainingState:
        """No flag: trains to the last epoch, evaluating and saving on the way; a dry run to the end of the first.

        Args:
            introduced: the table that begins a training was shown before.
        """
        args, cfg, options = self.args, self.cfg, self.options
        content, source = self.find(training=True)
        train_set, val_set = self.splits.dataset("train"), self.splits.dataset("val")
        loader, val_loader = self.splits.loader(train_set), self.splits.loader(val_set)
        detector = self.build()
        if options.sync_bn:
            detector = with_shared_statistics(detector, args.device)
        num_images = self.splits.num_images["train"]
        categories, pretrained = self.splits.categories.state_dict(), (args.pretrain_model_path, args.finetune_ignore)
        load_initial_weights(
            detector, content, source, self.family, *pretrained, categories, num_images, args.checkpoint_key
        )
        origin = (content or {}).get("resumed_from") if args.resume in (None, "auto") else args.resume
        metadata = {"config": dump_config(cfg), "categories": categories, "resumed_from": origin}
        self._write("config.py", metadata["config"])
        order = {"dataset_size": len(train_set), "batches": len(loader), "seed": args.seed}
        state = build_training_state(detector, cfg, options, self.precision.scaler, metadata, **order)
        if content is not None:
            state.resume(content, source)
        if not introduced:
            data = self.splits.describe()
            log.info(introduction(args, cfg, detector, data, self.precision, describe_kernels(), state))
        model = detector
        if world_size() > 1:
            devices = [local_rank()] if args.device == "cuda" else None
            model = DistributedDataParallel(detector, devices, find_unused_parameters=args.find_unused_params)
        train_epoch = partial(train_one_epoch, model, self.criterion, loader, state, self.precision)
        scorer = self.scorer(val_set, val_loader)
        restart = build_restart(cfg, options, state, self.store.folder)
        places = self.store, self.journal
        trainer = Trainer(state, loader, options, cfg.schedule.epochs, train_epoch, scorer, *places, self.stop, restart)
        if not args.dry_run:
            self.journal.track(args.wandb or options.wandb, cfg.to_dict())
        with self.stop:
            if options.warms_up(args.device):
                noise = train_set.largest_batch(cfg.data.batch_size), train_set.most_objects()
                classes = cfg.model.num_classes
                check_largest_step(model, self.criterion, state.optimizer, self.precision, *noise, classes)
            trainer.run(state.epoch + 1 if args.dry_run else None)
        self.journal.close()
        self._plot()
        return state

    def evaluate(self):
        """--eval: scores a checkpoint on the val split, its EMA too if it holds one."""
        found = self.find("--eval")
        val_set = self.splits.dataset("val")
        loader = self.splits.loader(val_set)
        if not broadcast_object((self.output_dir / "config.py").exists()):  # a training's own stays
            self._write("config.py", dump_config(self.cfg))
        numbers = {name: self.scorer(val_set, loader)(model, name, draw=True) for name, model in self.trained(*found)}
        self._write("eval.json", json.dumps(numbers, indent=1))
        self._plot()

    def detect(self):
        """--test: detections for images without ground truth, of the EMA where there is one."""
        found = self.find("--test")
        test_set = self.splits.dataset("test")
        evaluator, loader = CocoEvaluator(test_set.annotations), self.splits.loader(test_set)
        *_, (_, detector) = self.trained(*found)
        evaluate(detector, None, self.postprocess, loader, evaluator, self.precision, title="test")
        detections = evaluator.detections()
        write = partial(write_results, test_set.annotations, detections, self.output_dir)
        run_in_main_process(write, UnwritableError)

    def benchmark(self):
        """--benchmark: what the model costs; with --benchmark_train what its training costs too."""
        detector, size = self.build(), build_preparation(self.cfg.data).resize.size
        measured = measure_detector(detector, self.precision, size)
        self._write("benchmark.json", json.dumps(measured, indent=1))
        if self.args.benchmark_train:
            parts = detector, self.criterion, self.cfg, self.options, self.precision
            measured["training"] = benchmark_training(*parts, size)
            self._write("benchmark.json", json.dumps(measured, indent=1))
        log.info("\n%s", format_benchmark(measured))

    def _write(self, name: str, text: str):
        run_in_main_process(partial(write_text, self.output_dir / name, text), UnwritableError)

    def _plot(self):
        run_in_main_process(partial(plot_journal, self.journal), UnwritableError)

    def find(self, flag: str = "", training: bool = False) -> tuple[dict | None, str]:
        """The checkpoint of --resume, or the newest, and where it is. The splits are to have its categories.

        Raises:
            ConfigError: there is none, and `flag` needs one.
        """
        content, source = self.store.find(self.args.resume, training, self.args.checkpoint_key)
        if content is not None:
            self.splits.follow(stored_categories(content, source), source)
        elif flag:
            raise ConfigError(f"{flag}: no checkpoint in {self.output_dir}; give one with --resume")
        return content, source

    def trained(self, content: dict, source: str) -> Iterator[tuple[str, nn.Module]]:
        """The detector with a checkpoint's weights as "regular", and then with their EMA, if there is one, as "ema"."""
        detector = self.build()
        for name in load_trained_weights(detector, content, self.family, source):
            if name == "regular":
                data = self.splits.describe()
                log.info(introduction(self.args, self.cfg, detector, data, self.precision, describe_kernels()))
            yield name, detector

    def scorer(self, dataset: DetectionDataset, loader: DataLoader) -> Scorer:
        """What evaluates models on a split."""
        settings = {"precision": self.precision, "print_every": self.options.print_every, "stop": self.stop}
        detect = partial(evaluate, criterion=self.criterion, postprocess=self.postprocess, loader=loader, **settings)
        return Scorer(dataset, detect, self.output_dir, self.options.drawn_images, self.args.save_results)


def execute(args: Namespace):
    """Does what a command line asks for."""
    if args.dry_run:
        dry_run(args, output_folder(args) / "dry_run", Run)
        return
    run = Run(args)
    if args.benchmark or args.benchmark_train or args.benchmark_only:
        run.benchmark()
    if args.eval:
        run.evaluate()
    elif args.test:
        run.detect()
    elif not args.benchmark_only:
        run.train()


def main(args: Namespace) -> int:
    """Runs one command line; returns the exit status."""
    begin_program(args)
    return exit_status(partial(execute, args), CorruptImageError, ProductsError)


if __name__ == "__main__":
    ENDING.run(main, ARGUMENTS)
