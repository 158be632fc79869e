"""The splits of a run's data: built when they are asked for, checked against each other and against the model."""

import logging
from argparse import Namespace
from collections.abc import Callable
from functools import partial

from torch.utils.data import DataLoader

from datasets.coco import DetectionDataset
from datasets.loader import build_dataset, build_loader, check_dataset
from util.config import ConfigDict, ConfigError, find_value
from util.processes.distributed import run_in_all_processes

log = logging.getLogger(__name__)

WIDTH = 100
"""Characters that a list of names may take."""


class Splits:
    """Splits of one data set, all of the same categories.

    Args:
        cfg: the config; `model.num_classes` becomes what the first split says.
        args: the command line: seed, cache_mode, num_workers, device.
        limit: (training) -> how many images of a split are taken; None for all.

    Attributes:
        categories: of the first split.
        num_images: of each split in all, by its name.
        descriptions: a line about each split.
    """

    def __init__(self, cfg: ConfigDict, args: Namespace, limit: Callable[[bool], int] | None = None):
        self.cfg, self.args, self.limit = cfg, args, limit
        self.categories, self.num_images, self.descriptions = None, {}, []

    def dataset(self, split: str) -> DetectionDataset:
        """A split, "train", "val" or "test". In all processes together.

        Raises:
            ConfigError: it cannot be used, in one of the processes at least, or has other categories than the others.
        """
        build = partial(build_dataset, self.cfg, split, self.args.seed, self.args.cache_mode)
        dataset = run_in_all_processes(build, ConfigError, "All machines have to see the same data")
        found = dataset.annotations
        self.num_images[split] = len(found)
        for problem in check_dataset(dataset, find_value(self.cfg.model, "num_queries")):
            log.log(logging.INFO if problem.harmless else logging.WARNING, "%s: %s", found.file, problem)
        self._agree_on_categories(dataset)
        if self.limit is not None:
            dataset.annotations = found.head(self.limit(dataset.training))
        taken = f", {len(dataset)} of them taken," if self.limit is not None else ""
        line = f"{split}: {len(found)} images{taken} with {len(found.boxes)} objects, {found.file}"
        self.descriptions.append(line)
        return dataset

    def _agree_on_categories(self, dataset: DetectionDataset):
        found, model = dataset.annotations, self.cfg.model
        if self.categories is None:
            self.categories = found.categories
            if model.num_classes != len(found.categories):
                log.info("model.num_classes = %d, from %s", len(found.categories), found.file)
                model.num_classes = len(found.categories)
        elif self.categories != found.categories:
            raise ConfigError(f"{found.file}: its categories are not those of the other split")

    def describe(self) -> list[str]:
        """A line for every split that was built, and one about the classes."""
        return [*self.descriptions, f"classes {describe_names([name for _, name in self.categories.used])}"]

    def loader(self, dataset: DetectionDataset) -> DataLoader:
        """Batches of a split."""
        size = self.cfg.data.batch_size if dataset.training else self.cfg.data.eval_batch_size
        return build_loader(dataset, size, self.args.num_workers, self.args.device == "cuda")


def describe_names(names: list[str]) -> str:
    """How many classes, and as many of their names as fit."""
    shown = []
    for name in names:
        if len(", ".join([*shown, name])) > WIDTH:
            break
        shown.append(name)
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return f"{len(names)}: {', '.join(shown)}{more}"
