"""The splits of a run's data: built when they are asked for, checked against each other and against the model."""

import logging
from argparse import Namespace
from collections.abc import Callable
from functools import partial

from torch.utils.data import DataLoader

from datasets.annotations import Annotations
from datasets.categories import Categories, DifferentCategoriesError, one_line
from datasets.coco import DetectionDataset
from datasets.loader import build_dataset, build_loader, check_dataset
from datasets.preparation import describe_preparation
from util.config import ConfigDict, ConfigError, find_value
from util.processes.distributed import run_in_all_processes

log = logging.getLogger(__name__)

NOTHING_TO_FIND = (
    "holds no object that is to be found, so that every AP will be -1, and checkpoint_best_* that of the newest epoch"
)
INSIST = "--ignore_class_names takes them by number, whatever they are called"

WIDTH = 100
"""Characters that a list of names may take."""


class Splits:
    """Splits of one data set, all in the same slots of the classifier: those of a checkpoint, else of the first split.

    Args:
        cfg: the config; `model.num_classes` becomes what the categories need.
        args: the command line: seed, cache_mode, num_workers, device, ignore_class_names.
        limit: (training) -> how many images of a split are taken; None for all.

    Attributes:
        categories: by slot.
        num_images: of each split in all, by its name.
        descriptions: a line about each split.
    """

    def __init__(self, cfg: ConfigDict, args: Namespace, limit: Callable[[bool], int] | None = None):
        self.cfg, self.args, self.limit = cfg, args, limit
        self.categories, self.source, self.num_images, self.descriptions = None, "", {}, []

    def follow(self, stored: dict[str, list] | None, source: str):
        """The splits that follow have to fit a checkpoint's categories.

        Args:
            stored: as `Categories.state_dict` has them; None for a checkpoint that does not say.
            source: where they come from, for messages.
        """
        if stored is not None:
            self.categories, self.source = Categories.stored(stored, len(stored["ids"])), source

    def dataset(self, split: str) -> DetectionDataset:
        """A split, "train", "val" or "test". In all processes together.

        Raises:
            ConfigError: it cannot be used, in one of the processes at least, or has other categories than the others.
        """
        unlisted = self.categories
        if unlisted is None and split == "test":
            unlisted = Categories.stored(None, self.cfg.model.num_classes)
        build = partial(build_dataset, self.cfg, split, self.args.seed, self.args.cache_mode, unlisted)
        dataset = run_in_all_processes(build, ConfigError, "All machines have to see the same data")
        self.num_images[split] = len(dataset)
        for problem in check_dataset(dataset, find_value(self.cfg.model, "num_queries")):
            level = logging.INFO if problem.harmless else logging.WARNING
            log.log(level, "%s: %s", dataset.annotations.file, problem)
        found = dataset.annotations = self._arranged(dataset.annotations, dataset.training)
        if split == "val" and not found.has_targets():
            log.warning("%s: %s", found.file, NOTHING_TO_FIND)
        if self.limit is not None:
            dataset.annotations = found.head(self.limit(dataset.training))
        taken = f", {len(dataset)} of them taken," if self.limit is not None else ""
        line = f"{split}: {len(found)} images{taken} with {len(found.boxes)} objects, {found.file}"
        self.descriptions.append(line)
        return dataset

    def _arranged(self, found: Annotations, training: bool) -> Annotations:
        """The annotations in the slots of all."""
        others = self.categories
        if others is None:
            self.categories, self.source = found.categories, str(found.file)
        elif self.args.ignore_class_names:
            if len(found.categories) != len(others):
                counts = f"it has {len(found.categories)} classes, and {self.source} has {len(others)}"
                raise ConfigError(f"{found.file}: --ignore_class_names cannot match them by number either: {counts}")
            log.warning("%s: --ignore_class_names: the classes of %s are its own, by number", found.file, self.source)
            if training:
                self.categories = found.categories
        else:
            found = self._matched(found, others, training)
            if training:  # the names are the same, and these are the ids that its checkpoints should have
                self.categories = found.categories
        model = self.cfg.model
        if model.num_classes != len(self.categories):
            log.info("model.num_classes = %d, from %s", len(self.categories), self.source)
            model.num_classes = len(self.categories)
        return found

    def _matched(self, found: Annotations, others: Categories, training: bool) -> Annotations:
        """The annotations in the slots of others, by name; says what that changes."""
        try:
            arranged = found.arranged_as(others, self.source)
        except DifferentCategoriesError as error:
            raise ConfigError(f"{found.file}: {error}; {INSIST}") from error
        categories = arranged.categories
        known = list(zip(others.ids, others.names, categories.ids, strict=True))
        lacking = [name for theirs, name, own in known if own is None and theirs is not None]
        renumbered = [name for theirs, name, own in known if None not in (own, theirs) and own != theirs]
        unknown = sorted({name for _, name in found.categories.used} - {name for _, name in categories.used})
        if lacking and training:
            remedy = (
                f"a training goes on with all of its classes; --pretrain_model_path starts one with others; {INSIST}"
            )
            raise ConfigError(f"{found.file}: lacks {describe_names(lacking)} of {self.source}; {remedy}")
        for names, what in (
            (lacking, "lacks classes of %s, which is ordinary in a small split"),
            (renumbered, "numbers its classes otherwise than %s, and they are matched by name"),
            (unknown, "lists classes that %s lacks, without an object, and they are passed over"),
        ):
            if names:
                log.info("%s: " + what + ": %s", found.file, self.source, describe_names(names))
        return arranged

    def describe(self) -> list[str]:
        """A line for every split that was built, one about the classes, and those about the sizes of images."""
        names = describe_names([name for _, name in self.categories.used])
        return [*self.descriptions, f"classes {names}", *describe_preparation(self.cfg.data)]

    def loader(self, dataset: DetectionDataset) -> DataLoader:
        """Batches of a split."""
        size = self.cfg.data.batch_size if dataset.training else self.cfg.data.eval_batch_size
        return build_loader(dataset, size, self.args.num_workers, self.args.device == "cuda")


def describe_names(names: list[str]) -> str:
    """How many classes, and as many of their names as fit."""
    shown = []
    for name in map(one_line, names):
        if len(", ".join([*shown, name])) > WIDTH:
            break
        shown.append(name)
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return f"{len(names)}: {', '.join(shown)}{more}"
