"""Trains, evaluates and measures detectors: `python main.py --help`. The only file that knows everyone."""

import sys

from util.cli.arguments import parse_arguments
from util.processes.ending import Ending

if __name__ == "__main__":  # before the imports below: neither --help nor Ctrl-C need wait for PyTorch
    ENDING, ARGUMENTS = Ending(), parse_arguments()

import json
import logging
import math
from argparse import Namespace
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.coco import BrokenPictureError, DetectionDataset
from datasets.coco_eval import CocoEvaluator, as_coco
from datasets.loader import build_dataset, build_loader, check_dataset
from datasets.preview import draw_detections
from engine import evaluate, train_one_epoch
from models import build_criterion, build_detector, build_postprocessor
from models.ops import available_backends
from models.weights import load_checkpoint, load_for_finetuning, load_pretrained_backbone, warn_of_scratch
from util.checkpoints.files import CheckpointError, averaged_weights, load_strictly, save_checkpoint
from util.checkpoints.store import NEWEST, CheckpointStore
from util.cli.options import TrainingOptions, configured, images_per_step, output_folder
from util.config import ConfigError, dump_config, find_value
from util.config.registry import call
from util.measuring.benchmark import describe, measure, measure_training
from util.processes.allocator import keep_freed_memory
from util.processes.distributed import (
    broadcast_buffers,
    init_processes,
    is_main,
    leave_processes,
    local_rank,
    rank,
    together,
    world_size,
)
from util.processes.preemption import EXIT_PREEMPTED, PreemptedError, StopRequest
from util.reporting.logger import Journal, setup_logging
from util.reporting.plots import plot_curves
from util.reporting.summary import describe_data, describe_device, describe_model, describe_schedule, table
from util.reporting.trackers import close_trackers
from util.tensors.determinism import be_deterministic, determinism_advice
from util.tensors.precision import Precision, allow_tf32
from util.training.dry_run import dry_run, pictures_of, shortened
from util.training.memory_check import OBJECTS, largest_sizes, memory_advice, noise_batch, rehearse, training_step
from util.training.optimizer import build_optimizer, build_schedule, moving_average
from util.training.state import TrainingState, random_state_kept
from util.training.stepper import TrainingDivergedError

log = logging.getLogger("main")


class Run:
    """One command line: the data, the model, and what is done with them.

    Attributes:
        pictures: how many there are of each split; a dry run takes a few of them.
        splits: what is to be said of the data.
    """

    def __init__(self, args: Namespace):
        self.args, self.cfg = args, configured(args)
        self.output_dir = output_folder(args)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        setup_logging(self.output_dir)
        log.info("command: %s %s", " ".join(sys.argv), args.note)
        self.options = self.section(TrainingOptions, "training")
        if args.dry_run:
            self.options = shortened(self.options)
        self.precision = Precision(args.device, args.amp)
        self.journal = Journal(self.output_dir)
        self.store = CheckpointStore(self.output_dir, self.options.keep_checkpoints)
        self.stop = StopRequest()
        self.categories, self.pictures, self.splits = None, {}, []
        torch.manual_seed(args.seed + rank())

    def section(self, target, name: str, **more):
        """Calls `target` with a section of the config."""
        return call(target, self.cfg[name], where=f"{self.args.config_file}: {name}", **more)

    def dataset(self, split: str) -> DetectionDataset:
        """A split of the data. The first one says how many classes there are."""
        build = partial(build_dataset, self.cfg, split, self.args.seed, self.args.cache_mode)
        dataset = together(build, ConfigError, "All machines have to see the same data")
        found = dataset.annotations
        self.pictures[split] = len(found)
        for problem in check_dataset(dataset, find_value(self.cfg.model, "num_queries")):
            log.log(logging.INFO if problem.harmless else logging.WARNING, "%s: %s", found.file, problem)
        if self.categories is None:
            self.categories = found.categories
            if self.cfg.model.num_classes != len(found.categories):
                log.info("model.num_classes = %d, from %s", len(found.categories), found.file)
                self.cfg.model.num_classes = len(found.categories)
        elif self.categories != found.categories:
            raise ConfigError(f"{found.file}: its categories are not those of the other split")
        if self.args.dry_run:
            few = pictures_of(dataset.training, self.cfg.data.batch_size, self.options.accumulate)
            dataset.annotations = found.head(few)
        taken = f", {len(dataset)} of them taken," if self.args.dry_run else ""
        self.splits.append(f"{split}: {len(found)} pictures{taken} with {len(found.boxes)} objects, {found.file}")
        return dataset

    def loader(self, dataset: DetectionDataset):
        """Batches of a split."""
        size = self.cfg.data.batch_size if dataset.training else self.cfg.data.eval_batch_size
        return build_loader(dataset, size, self.args.num_workers, pin_memory=self.args.device == "cuda")

    def build(self) -> nn.Module:
        """The detector on its device; the loss and the post-processing go with it."""
        self.criterion = build_criterion(self.cfg)
        self.postprocess = build_postprocessor(self.cfg)
        detector = build_detector(self.cfg).to(self.args.device)
        if self.cfg.get("compile"):
            # PyTorch's compiler; anew for every size of image, up to its limit. Not dynamic=False
            # as in a Predictor: it would compile for each number of denoising queries, too, which the objects decide.
            detector.compile()
        return detector

    def optimizer(self, detector: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of this run's steps."""
        images = images_per_step(self.cfg, self.options.accumulate)
        return self.section(build_optimizer, "optimizer", model=detector, batch_size=images)

    def introduce(self, detector: nn.Module, state: TrainingState | None = None):
        """Says what is about to be done: an evaluation, or the training that the state belongs to."""
        rows = {
            "model": describe_model(self.args.config_file, self.cfg.model, detector),
            "data": describe_data(self.splits, [name for _, name in self.categories.used], self.cfg.data),
        }
        if state is not None:
            steps, groups = state.place["steps_per_epoch"], state.optimizer.param_groups
            rows["schedule"] = describe_schedule(self.cfg, steps, self.options.accumulate, groups)
        rows |= {
            "device": describe_device(self.precision, self.args.num_workers),
            "kernels": f"of deformable attention: {', '.join(available_backends())}",
            "output": str(self.output_dir),
        }
        log.info("%s\n%s", "evaluation" if state is None else "training", table(rows))

    # -------------------------------------------------------------- training

    def train(self) -> TrainingState:
        """Trains to the last epoch, evaluating and saving on the way; a dry run to the end of the running one."""
        train_set, val_set = self.dataset("train"), self.dataset("val")
        loader, val_loader = self.loader(train_set), self.loader(val_set)
        model = detector = self.build()
        state = self.start(detector, loader)
        self.introduce(detector, state)
        if world_size() > 1:
            devices = [local_rank()] if self.args.device == "cuda" else None
            model = DistributedDataParallel(detector, devices, find_unused_parameters=self.args.find_unused_params)
        epochs = self.cfg.schedule.epochs
        if state.epoch >= epochs and state.pending is None:
            log.info("all %d epochs are trained already; schedule.epochs asks for more, --eval evaluates", epochs)
        if self.args.dry_run:
            epochs = min(epochs, state.epoch + 1)
        else:
            self.journal.track(self.args.wandb or self.options.wandb, self.cfg.to_dict())
        with self.stop:
            self.warm_up(model, state, train_set)
            while state.epoch < epochs or state.pending is not None:
                if state.pending is None:
                    self.train_epoch(model, loader, state)
                self.conclude_epoch(state, val_set, val_loader)
        close_trackers(self.journal.trackers)
        self.draw_curves()
        return state

    def warm_up(self, model: nn.Module, state: TrainingState, dataset: DetectionDataset):
        """Tries the largest step that the data can ask for, so that memory runs out now or never."""
        if self.options.warms_up(self.args.device):
            augment, most = self.cfg.data.augment, max(1, int(np.diff(dataset.annotations.first).max()))
            sizes = largest_sizes(self.cfg.data.batch_size, max(augment.scales), augment.max_size)
            noise = noise_batch(sizes, most, self.cfg.model.num_classes, self.args.device)
            rehearse(model, self.criterion, state.optimizer, self.precision, *noise)
            log.info("the largest step fits: pictures of %s with %d objects each", sizes, most)

    def train_epoch(self, model: nn.Module, loader, state: TrainingState):
        """Trains to the end of the epoch; what is to be said of it waits in the state for its evaluation."""
        loader.sampler.epoch, loader.sampler.start = state.epoch, state.batch * loader.batch_size

        def after_step(stopping: bool):
            every = self.options.save_every_steps
            if stopping or (every and state.step % every == 0 and state.batch < len(loader)):
                self.save(state)
            if stopping:
                raise PreemptedError(f"saved in epoch {state.epoch} after {state.batch} batches")

        try:
            means = train_one_epoch(
                model,
                self.criterion,
                loader,
                state,
                self.precision,
                clip_norm=self.options.clip_norm,
                accumulate=self.options.accumulate,
                patience=self.options.patience,
                print_every=self.options.print_every,
                epochs=self.cfg.schedule.epochs,
                stop=self.stop,
                after_step=after_step,
            )
        except TrainingDivergedError:
            self.save_if_sound(state)
            raise
        log.info("epoch %d: loss %.4f, %.0f s", state.epoch, means.get("loss", math.nan), state.meters["seconds"].total)
        seconds = {"seconds": state.meters["seconds"].total}
        state.pending = {"epoch": state.epoch} | seconds | {f"train_{name}": value for name, value in means.items()}
        state.finish_epoch()
        if self.evaluation_is_due(state):
            self.save(state)  # an evaluation that fails costs no epoch

    def evaluation_is_due(self, state: TrainingState) -> bool:
        """Whether the epoch that has just ended is to be evaluated."""
        return state.epoch % self.options.eval_every == 0 or state.epoch >= self.cfg.schedule.epochs

    def conclude_epoch(self, state: TrainingState, dataset: DetectionDataset, loader):
        """Evaluates an epoch if it is due, says what came out, and saves."""
        entry = state.pending
        if self.evaluation_is_due(state):
            with random_state_kept():
                last = state.epoch >= self.cfg.schedule.epochs
                entry = entry | self.evaluate_candidates(state, dataset, loader, pictures=last)
        self.journal.write(entry)
        state.pending = None
        kept = [f"checkpoint{state.epoch:04d}.pth"] if state.epoch % self.options.save_every == 0 else []
        self.save(state, *kept)

    def start(self, detector: nn.Module, loader) -> TrainingState:
        """Weights, optimiser, schedule and average: of a new training, or of the one that is resumed."""
        content, source = self.store.find(self.args.resume, training=True)
        family = self.cfg.get("official_keys")
        if content is not None:
            load_checkpoint(detector, content, family, source)
        elif self.args.pretrain_model_path:
            load_for_finetuning(
                detector, self.args.pretrain_model_path, family, self.args.finetune_ignore, self.categories.state_dict()
            )
        else:
            load_pretrained_backbone(detector)
            warn_of_scratch(detector, self.pictures["train"])
        optimizer = self.optimizer(detector)
        steps = -(-len(loader) // self.options.accumulate)
        schedule = self.section(build_schedule, "schedule", optimizer=optimizer, steps_per_epoch=steps)
        average = None
        if self.options.ema:
            where = f"{self.args.config_file}: training.ema"
            average = call(moving_average, self.options.ema, where=where, model=detector)
        config = dump_config(self.cfg)
        if is_main():
            (self.output_dir / "config.py").write_text(config)
        origin = (content or {}).get("resumed_from") if self.args.resume in (None, "auto") else self.args.resume
        facts = {
            "config": config,
            "categories": self.categories.state_dict(),
            "resumed_from": origin,
        }
        place = {
            "pictures": len(loader.dataset),
            "batch_size": loader.batch_size,
            "accumulate": self.options.accumulate,
            "processes": world_size(),
            "seed": self.args.seed,
            "steps_per_epoch": steps,
        }
        state = TrainingState(detector, optimizer, schedule, self.precision.scaler, average, facts, place)
        if content is not None and "schedule" in content:
            state.load_state_dict(content, source)
            log.info("%s: going on after %d epochs and %d batches", source, state.epoch, state.batch)
        return state

    def save(self, state: TrainingState, *more: str):
        """Writes the newest checkpoint, and the same under further names."""
        self.store.save(state.state_dict(), *more)

    def save_if_sound(self, state: TrainingState):
        """Writes the newest checkpoint unless its weights are spoilt."""
        if state.is_finite():
            self.save(state)
            log.error("the last sound state is saved in %s", self.output_dir / NEWEST)
        else:
            log.error("the weights are not finite and are not saved")

    # ------------------------------------------------------------ evaluation

    def evaluate(self, model: nn.Module, dataset: DetectionDataset, loader, name: str, pictures: bool, best=None):
        """Scores a model on a split and says so, beside the best numbers so far; returns the numbers for the log."""
        broadcast_buffers(model)
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
            stop=self.stop,
        )
        detections = evaluator.detections()
        scores = evaluator.evaluate(detections)
        log.info("%s %s\n%s", dataset.annotations.file, name, scores.table(best))
        if is_main() and self.args.save_results:
            (self.output_dir / "results.json").write_text(json.dumps(as_coco(detections)))
        if is_main() and pictures:
            draw_detections(dataset, detections, self.output_dir / "vis" / "detections.png", self.options.pictures)
            log.info("pictures: %s", self.output_dir / "vis")
        return {**means, **scores.numbers, "coco_eval_bbox": list(scores.numbers.values()), "classes": scores.classes}

    def evaluate_candidates(self, state: TrainingState, dataset: DetectionDataset, loader, pictures: bool) -> dict:
        """Scores the model and its average; the best of each stays in a file of its own."""
        entry = {}
        for name, model in state.candidates().items():
            prefix = "test_" if name == "regular" else f"{name}_test_"
            numbers = self.evaluate(model, dataset, loader, name, pictures, self.journal.best(prefix))
            entry |= {f"{prefix}{key}": value for key, value in numbers.items()}
            if numbers["AP"] > state.best.get(name, -math.inf):  # -1, where nothing is to be found, comes first too
                state.best[name] = numbers["AP"]
                content = {"model": model.state_dict(), "epoch": state.epoch, "AP": numbers["AP"], **state.facts}
                save_checkpoint(content, self.output_dir / f"checkpoint_best_{name}.pth")
        return entry

    def trained(self, flag: str) -> Iterator[tuple[str, nn.Module]]:
        """The detector with a checkpoint's weights, and then with their moving average if it holds one."""
        detector = self.build()
        content, source = self.store.find(self.args.resume)
        if content is None:
            raise ConfigError(f"{flag}: no checkpoint in {self.output_dir}; give one with --resume")
        load_checkpoint(detector, content, self.cfg.get("official_keys"), source)
        self.introduce(detector)
        yield "regular", detector
        if averaged_weights(content) is not None:
            load_strictly(detector, averaged_weights(content), source)
            yield "ema", detector

    def evaluate_only(self):
        """--eval."""
        val_set, numbers = self.dataset("val"), {}
        if is_main() and not (self.output_dir / "config.py").exists():  # a training's own stays
            (self.output_dir / "config.py").write_text(dump_config(self.cfg))
        loader = self.loader(val_set)
        for name, detector in self.trained("--eval"):
            numbers[name] = self.evaluate(detector, val_set, loader, name, pictures=True)
        if is_main():
            (self.output_dir / "eval.json").write_text(json.dumps(numbers, indent=1))
        self.draw_curves()

    def detect_only(self):
        """--test: detections for pictures without truth."""
        test_set = self.dataset("test")
        evaluator = CocoEvaluator(test_set.annotations)
        *_, (_, detector) = self.trained("--test")
        evaluate(detector, None, self.postprocess, self.loader(test_set), evaluator, self.precision, title="test")
        detections = evaluator.detections()
        if is_main():
            (self.output_dir / "results.json").write_text(json.dumps(as_coco(detections)))
            log.info("%s: %d detections", self.output_dir / "results.json", len(detections))

    def benchmark(self):
        """--benchmark: what the model costs; with --benchmark_train what its training costs too."""
        detector, resize = self.build(), self.cfg.data.resize
        size = resize.scale, min(resize.max_size, resize.scale * 4 // 3)
        measured = measure(detector, self.precision, size)
        if self.args.benchmark_train:
            pictures = self.cfg.data.batch_size
            noise = noise_batch([size] * pictures, OBJECTS, self.cfg.model.num_classes, self.args.device)
            optimizer = self.optimizer(detector)
            step = training_step(
                detector.train(), self.criterion, optimizer, self.precision, self.options.clip_norm, *noise
            )
            measured["training"] = measure_training(step, pictures, self.cfg.schedule.epochs, self.args.device)
        log.info("\n%s", describe(measured))
        if is_main():
            (self.output_dir / "benchmark.json").write_text(json.dumps(measured, indent=1))

    def draw_curves(self):
        """Losses and AP so far, in vis/curves.png."""
        entries = self.journal.read()
        if entries:
            (self.output_dir / "vis").mkdir(exist_ok=True)
            plot_curves(entries, self.output_dir / "vis" / "curves.png")


def work(args: Namespace):
    """Does what a command line asks for."""
    if args.dry_run:
        dry_run(args, output_folder(args) / "dry_run", Run)
        return
    run = Run(args)
    if args.benchmark or args.benchmark_train or args.benchmark_only:
        run.benchmark()
    if args.eval:
        run.evaluate_only()
    elif args.test:
        run.detect_only()
    elif not args.benchmark_only:
        run.train()


def main(args: Namespace) -> int:
    """Runs one command line; returns the exit status."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    init_processes(args.device)
    if args.device == "cpu":
        keep_freed_memory()
    allow_tf32(args.tf32 and args.device == "cuda")
    setup_logging(None)
    if args.deterministic:
        be_deterministic()
    status = 0
    try:
        work(args)
    except (BrokenPictureError, ConfigError, CheckpointError, TrainingDivergedError) as error:
        log.error("%s", error)
        return 2
    except PreemptedError as request:
        log.warning("%s; the same command goes on from there", request)
        status = EXIT_PREEMPTED
    except RuntimeError as error:
        advice = memory_advice(error) or determinism_advice(error)
        if advice is None:
            raise
        log.error("%s", advice)
        return 2
    leave_processes()
    return status


if __name__ == "__main__":
    ENDING.run(main, ARGUMENTS)
