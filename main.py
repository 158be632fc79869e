"""Trains, evaluates and measures detectors: `python main.py --help`. The only file that knows everyone."""

import sys

from util.arguments import parse_arguments

if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports below: --help need not wait for PyTorch

import json
import logging
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.coco import DetectionDataset
from datasets.coco_eval import CocoEvaluator, as_coco
from datasets.loader import build_dataset, build_loader
from engine import TrainingDivergedError, evaluate, train_one_epoch
from models import build_criterion, build_detector, build_postprocessor
from models.official_keys import convert_official
from util.benchmark import describe as describe_cost
from util.benchmark import measure
from util.checkpoint import (
    CheckpointError,
    describe,
    load_strictly,
    load_what_fits,
    read_checkpoint,
    save_checkpoint,
    weights_of,
)
from util.config import ConfigDict, ConfigError, dump_config, load_config, nearest, parse_options
from util.distributed import init_processes, is_main, leave_processes, local_rank, rank, world_size
from util.logger import Journal, setup_logging
from util.optim import build_optimizer, build_schedule, moving_average
from util.precision import Precision
from util.registry import call
from util.state import TrainingState
from util.visualize import Box, contact_sheet, plot_curves

log = logging.getLogger("main")

SECTIONS = (
    "model", "criterion", "postprocess", "official_keys", "data", "optimizer", "schedule", "training", "aliases",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingOptions:
    """What `training` in a config may hold; see engine.train_one_epoch for the first two.

    Attributes:
        ema: None, or dict(decay, warmup) of the moving average.
        eval_every, save_every: epochs between evaluations, and between checkpoints that are kept.
        print_every: batches between lines of progress.
    """

    clip_norm: float | None = 0.1
    accumulate: int = 1
    ema: dict | None = None
    eval_every: int = 1
    save_every: int = 10
    print_every: int = 50
    pictures: int = 12


def configured(args: Namespace) -> ConfigDict:
    """The config with what the command line says."""
    flags = {"data.root": args.coco_path, "data.batch_size": args.batch_size}
    options = {path: value for path, value in flags.items() if value is not None}
    cfg = load_config(args.config_file, parse_options(args.options) | options)
    for name in cfg:
        if name not in SECTIONS:
            raise ConfigError(f"{args.config_file}: '{name}' is no section of a config; {nearest(name, SECTIONS)}")
    return cfg


class Run:
    """One command line: the data, the model, and what is done with them."""

    def __init__(self, args: Namespace):
        self.args, self.cfg = args, configured(args)
        self.output_dir = Path(args.output_dir or Path("output") / Path(args.config_file).stem)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        setup_logging(self.output_dir)
        log.info("command: %s %s", " ".join(sys.argv), args.note)
        self.options = call(TrainingOptions, self.cfg.training, where=f"{args.config_file}: training")
        self.precision = Precision(args.device, args.amp)
        torch.manual_seed(args.seed + rank())
        np.random.seed(args.seed + rank())
        self.journal = Journal(self.output_dir)
        self.found_categories = None

    # ------------------------------------------------------------------ data

    def dataset(self, split: str) -> DetectionDataset:
        """A split of the data; the first one decides the number of classes."""
        dataset = build_dataset(self.cfg, split, self.args.seed, self.args.cache_mode)
        annotations = dataset.annotations
        log.info("%s: %d pictures, %d objects", annotations.file, len(dataset), len(annotations.boxes))
        for problem, times in annotations.problems.items():
            log.warning("%s: left out %d %s", annotations.file, times, problem)
        if self.found_categories is None:
            self.found_categories = annotations.categories
            if self.cfg.model.num_classes != len(annotations.categories):
                log.info("model.num_classes = %d, from the annotations", len(annotations.categories))
                self.cfg.model.num_classes = len(annotations.categories)
        elif self.found_categories != annotations.categories:
            raise ConfigError(f"{annotations.file}: its categories are not those of the other split")
        return dataset

    def loader(self, dataset: DetectionDataset):
        """Batches of a split."""
        size = self.cfg.data.batch_size if dataset.training else self.cfg.data.eval_batch_size
        return build_loader(dataset, size, self.args.num_workers, pin_memory=self.args.device == "cuda")

    # ----------------------------------------------------------------- model

    def build(self) -> nn.Module:
        """The detector on its device, with the loss and the post-processing beside it."""
        self.criterion = build_criterion(self.cfg)
        self.postprocess = build_postprocessor(self.cfg)
        detector = build_detector(self.cfg).to(self.args.device)
        if is_main():
            (self.output_dir / "config.py").write_text(dump_config(self.cfg))
        total = sum(p.numel() for p in detector.parameters())
        log.info("%s: %.3f M parameters, on %s", self.args.config_file, total / 1e6, self.args.device)
        return detector

    def fill(self, detector: nn.Module, content: dict, source: str):
        """Loads a checkpoint's weights, ours or the papers', whole."""
        load_strictly(detector, self.renamed(detector, weights_of(content), source), source)

    def renamed(self, detector: nn.Module, weights: dict, source: str) -> dict:
        """Weights under our names, whichever they came under; says which."""
        family = self.cfg.get("official_keys")
        if family is None or len(weights.keys() & detector.state_dict().keys()) > len(weights) / 2:
            log.info("%s: a checkpoint of ours, %d weights", source, len(weights))
            return weights
        log.info("%s: an official %s checkpoint, %d weights", source, family, len(weights))
        try:
            return convert_official(weights, family)
        except KeyError as error:
            raise CheckpointError(f"{source}: {error.args[0]}") from error

    def start_weights(self, detector: nn.Module):
        """Weights that a new training starts from."""
        if self.args.pretrain_model_path:
            source, ignored = self.args.pretrain_model_path, self.args.finetune_ignore
            weights = weights_of(read_checkpoint(source))
            kept = {key: value for key, value in weights.items() if not any(name in key for name in ignored)}
            problems = load_what_fits(detector, self.renamed(detector, kept, source), ignored)
            log.info("%s: %d weights left out by --finetune_ignore", source, len(weights) - len(kept))
            log.info("initialised anew or left out:\n%s", describe(problems) or "  nothing")
        elif detector.backbone.pretrained_source():
            source = detector.backbone.pretrained_source()
            try:
                detector.backbone.load_pretrained(weights_of(read_checkpoint(source)))
            except CheckpointError as error:
                raise CheckpointError(f"model.backbone.pretrained: {error}; or train without: None") from error
            log.info("backbone: weights of %s", source)

    # -------------------------------------------------------------- training

    def resumed(self) -> tuple[dict | None, str]:
        """The checkpoint to go on from, and where it came from."""
        newest = self.output_dir / "checkpoint.pth"
        source = self.args.resume
        if source in (None, "auto"):
            if not newest.is_file():
                return None, ""
            source = str(newest)
        return read_checkpoint(source), source

    def train(self):
        """Trains to the last epoch, evaluating and saving on the way."""
        train_set, val_set = self.dataset("train"), self.dataset("val")
        loader, val_loader = self.loader(train_set), self.loader(val_set)
        detector = self.build()
        content, source = self.resumed()
        if content is None:
            self.start_weights(detector)
        else:
            self.fill(detector, content, source)
        state = self.state(detector, len(loader))
        if content is not None and "schedule" in content:
            state.load_state_dict(content, source)
            log.info("%s: going on after epoch %d", source, state.epoch)
        model = detector
        if world_size() > 1:
            devices = [local_rank()] if self.args.device == "cuda" else None
            model = DistributedDataParallel(detector, devices, find_unused_parameters=self.args.find_unused_params)
        for epoch in range(state.epoch, self.cfg.schedule.epochs):
            loader.sampler.epoch = epoch
            start = time.perf_counter()
            trained = train_one_epoch(
                model,
                self.criterion,
                loader,
                state.optimizer,
                state.schedule,
                self.precision,
                epoch=epoch,
                clip_norm=self.options.clip_norm,
                accumulate=self.options.accumulate,
                average=state.average,
                print_every=self.options.print_every,
            )
            entry = {"epoch": epoch, **{f"train_{name}": value for name, value in trained.items()}}
            entry["epoch_seconds"] = time.perf_counter() - start
            state.epoch = epoch + 1
            last = state.epoch == self.cfg.schedule.epochs
            if state.epoch % self.options.eval_every == 0 or last:
                entry |= self.evaluate_and_keep_best(state, val_set, val_loader)
            self.save(state, kept=state.epoch % self.options.save_every == 0)
            self.journal.write(entry)
            log.info("epoch %d: loss %.4f, %.0f s", epoch, entry["train_loss"], entry["epoch_seconds"])
        self.draw_curves()
        candidate = list(state.candidates().values())[-1]
        self.evaluate(candidate, val_set, val_loader, pictures=True)

    def state(self, detector: nn.Module, batches: int) -> TrainingState:
        """Optimiser, schedule and average of a new training."""
        cfg, file = self.cfg, self.args.config_file
        optimizer = call(build_optimizer, cfg.optimizer, where=f"{file}: optimizer", model=detector)
        steps = -(-batches // self.options.accumulate)
        schedule = call(
            build_schedule, cfg.schedule, where=f"{file}: schedule", optimizer=optimizer, steps_per_epoch=steps
        )
        ema = self.options.ema
        average = call(moving_average, ema, where=f"{file}: training.ema", model=detector) if ema else None
        facts = {"config": dump_config(cfg), "categories": self.found_categories.state_dict()}
        return TrainingState(detector, optimizer, schedule, self.precision.scaler, average, facts)

    def save(self, state: TrainingState, kept: bool):
        """Writes the newest checkpoint, and one that stays."""
        paths = [self.output_dir / "checkpoint.pth"]
        if kept:
            paths.append(self.output_dir / f"checkpoint{state.epoch:04d}.pth")
        save_checkpoint(state.state_dict(), *paths)

    # ------------------------------------------------------------ evaluation

    def evaluate(self, model: nn.Module, dataset: DetectionDataset, loader, name: str = "", pictures: bool = False):
        """Scores a model on a split and says so; returns the numbers for the log."""
        evaluator = CocoEvaluator(dataset.annotations)
        means = evaluate(
            model,
            self.criterion,
            self.postprocess,
            loader,
            evaluator,
            self.precision,
            title=f"eval {name}".strip(),
            print_every=self.options.print_every,
        )
        detections = evaluator.detections()
        scores = evaluator.evaluate(detections)
        log.info("%s %s\n%s", dataset.annotations.file, name, scores.table())
        if self.args.save_results and is_main():
            (self.output_dir / "results.json").write_text(json.dumps(as_coco(detections)))
        if pictures and is_main():
            self.draw_detections(dataset, detections)
        return {**means, **scores.numbers, "coco_eval_bbox": list(scores.numbers.values()), "classes": scores.classes}

    def evaluate_and_keep_best(self, state: TrainingState, dataset: DetectionDataset, loader) -> dict:
        """Scores the model and its average; the best of each stays in a file of its own."""
        entry = {}
        for name, model in state.candidates().items():
            numbers = self.evaluate(model, dataset, loader, name)
            prefix = "test_" if name == "regular" else f"{name}_test_"
            entry |= {f"{prefix}{key}": value for key, value in numbers.items()}
            if numbers["AP"] > state.best.get(name, -1.0):
                state.best[name] = numbers["AP"]
                content = state.state_dict() | {"model": model.state_dict()}
                save_checkpoint(content, self.output_dir / f"checkpoint_best_{name}.pth")
        return entry

    def evaluate_checkpoint(self):
        """--eval."""
        val_set = self.dataset("val")
        detector = self.build()
        content, source = self.resumed()
        if content is None:
            raise ConfigError(f"--eval: no checkpoint in {self.output_dir}; give one with --resume")
        self.fill(detector, content, source)
        numbers = self.evaluate(detector, val_set, self.loader(val_set), pictures=True)
        if is_main():
            (self.output_dir / "eval.json").write_text(json.dumps(numbers, indent=1))
        self.draw_curves()

    def detect(self):
        """--test: detections for pictures without truth."""
        test_set = self.dataset("test")
        detector = self.build()
        content, source = self.resumed()
        if content is None:
            raise ConfigError(f"--test: no checkpoint in {self.output_dir}; give one with --resume")
        self.fill(detector, content, source)
        evaluator = CocoEvaluator(test_set.annotations)
        evaluate(detector, None, self.postprocess, self.loader(test_set), evaluator, self.precision, title="test")
        detections = evaluator.detections()
        if is_main():
            (self.output_dir / "results.json").write_text(json.dumps(as_coco(detections)))
            log.info("%s: %d detections", self.output_dir / "results.json", len(detections))

    def benchmark(self):
        """--benchmark: what the model costs."""
        detector = self.build()
        measured = measure(detector, self.args.device)
        log.info("\n%s", describe_cost(measured))
        if is_main():
            (self.output_dir / "benchmark.json").write_text(json.dumps(measured, indent=1))

    # -------------------------------------------------------------- pictures

    def draw_detections(self, dataset: DetectionDataset, detections: np.ndarray, score: float = 0.3):
        """A contact sheet of detections beside the truth, in vis/detections.png."""
        found, names = dataset.annotations, dict(dataset.annotations.categories.used)
        rows = []
        for index in np.linspace(0, len(found) - 1, min(self.options.pictures, len(found))).astype(int):
            own = detections[(detections[:, 0] == found.image_ids[index]) & (detections[:, 5] >= score)]
            objects = found.objects(index)
            truth = zip(found.boxes[objects], found.category_ids[objects], strict=True)
            try:
                picture = dataset.picture(index)
            except OSError:
                continue  # said during the evaluation
            slots = found.categories.slots
            rows.append(
                (
                    picture,
                    [_box(row[1:5], slots[int(row[6])], f"{names[int(row[6])]} {row[5]:.2f}") for row in own[::-1]],
                    [_box(box, slots[int(key)], names[int(key)]) for box, key in truth],
                )
            )
        (self.output_dir / "vis").mkdir(exist_ok=True)
        contact_sheet(rows, self.output_dir / "vis" / "detections.png")
        log.info("pictures: %s", self.output_dir / "vis")

    def draw_curves(self):
        """Losses and AP so far, in vis/curves.png."""
        entries = self.journal.read()
        if entries:
            (self.output_dir / "vis").mkdir(exist_ok=True)
            plot_curves(entries, self.output_dir / "vis" / "curves.png")


def _box(xywh: np.ndarray, slot: int, text: str) -> Box:
    x, y, w, h = (float(number) for number in xywh)
    return Box((x, y, x + w, y + h), slot, text)


def main(args: Namespace) -> int:
    """Runs one command line; returns the exit status."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    init_processes(args.device)
    try:
        run = Run(args)
        if args.benchmark or args.benchmark_only:
            run.benchmark()
        if args.benchmark_only:
            return 0
        if args.eval:
            run.evaluate_checkpoint()
        elif args.test:
            run.detect()
        else:
            run.train()
    except (ConfigError, CheckpointError, TrainingDivergedError) as error:
        log.error("%s", error)
        return 2
    finally:
        leave_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
