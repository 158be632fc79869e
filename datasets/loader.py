"""From a config to batches."""

import gc
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, get_worker_info

from datasets.annotations import read_annotations
from datasets.categories import Categories
from datasets.checks import Problem, check_boxes
from datasets.coco import CorruptImageError, DetectionDataset, Limits
from datasets.image_paths import check_files, located
from datasets.images import MAX_PIXELS
from datasets.preparation import (
    build_augmentation,
    build_mixup,
    build_mosaic,
    build_multi_scale,
    build_preparation,
    normalization,
)
from datasets.samplers import EvalSampler, TrainSampler
from datasets.shapes import make_shapes
from util.config import ConfigDict, ConfigError, node_location
from util.config.registry import call_with_config
from util.processes.distributed import file_lock, rank, world_size
from util.processes.ending import end_with_parent, kill_workers_at_exit
from util.processes.preemption import ignore_requests
from util.tensors.image_batch import ImageBatch
from util.tensors.shared_memory import SharedMemoryError, check_space_for_workers, shared_memory_problem

SPLITS = ("train", "val", "test")
SHOWN = 20
"""How many corrupt files an error lists."""

LAYOUTS = """expected one of
  {root}/{images}/            images
  {root}/images/{images}/     images
and {root}/{annotations}.
Give the folder with --coco_path, or name your own paths in the config: data.{split}.images, data.{split}.annotations.
With --coco_path shapes, the synthetic shapes dataset is made and used."""


@dataclass(frozen=True)
class Batch:
    """What a loader yields.

    Attributes:
        images: None when none of the batch's images could be used.
        targets: one dict per image, see DetectionDataset.
        corrupt: messages about images that could not be read or transformed.
    """

    images: ImageBatch | None
    targets: list[dict]
    corrupt: list[str]

    @classmethod
    def of(cls, items: list[tuple]) -> "Batch":
        """Collates items of a DetectionDataset."""
        corrupt = [message for _, target in items for message in target.pop("corrupt")]
        items = [item for item in items if item[0] is not None]
        images = ImageBatch.of([image for image, _ in items]) if items else None
        return cls(images, [target for _, target in items], corrupt)

    def to(self, device) -> "Batch":
        """The same batch on another device."""
        images = self.images and self.images.to(device, non_blocking=True)
        targets = [{k: v.to(device, non_blocking=True) for k, v in target.items()} for target in self.targets]
        return Batch(images, targets, self.corrupt)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; the data loader calls this."""
        images = self.images and self.images.pin_memory()
        return Batch(images, [{k: v.pin_memory() for k, v in target.items()} for target in self.targets], self.corrupt)

    def share_memory(self) -> "Batch":
        """Moves it to where other processes see it."""
        tensors = [tensor for target in self.targets for tensor in target.values()]
        if self.images is not None:
            tensors += [self.images.images, self.images.padding]
        for tensor in tensors:
            tensor.share_memory_()
        return self


class BoundedLoader(DataLoader):
    """Stops a training in which too many different images turn out to be corrupt."""

    def __init__(self, dataset: DetectionDataset, **options):
        self.corrupt = {}
        super().__init__(dataset, **options)

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._bounded()
        except (OSError, RuntimeError) as error:
            problem = shared_memory_problem(error) if self.num_workers else None
            if problem is None:
                raise
            raise SharedMemoryError(problem) from None  # a worker's traceback says no more

    def _bounded(self) -> Iterator[Batch]:
        check_space_for_workers(self.num_workers)
        for batch in super().__iter__():
            self.corrupt.update(dict.fromkeys(batch.corrupt))
            if self.dataset.training and len(self.corrupt) > self.dataset.limits.files:
                listed = "\n  ".join(["; the first:", *self.corrupt][: SHOWN + 1])
                remedy = "`python -m datasets.validate` finds all that cannot be read; data.corrupt.files allows more"
                raise CorruptImageError(f"{len(self.corrupt)} images cannot be read or transformed; {remedy}{listed}")
            yield batch


def data_root(cfg: ConfigDict) -> Path:
    """The folder of a config's data; the synthetic shapes are made if they are asked for. Raises ConfigError."""
    data = cfg.data
    if not isinstance(data.root, str):
        raise ConfigError(
            f"{node_location(data)}: root={data.root!r} should be the path of a folder; give it with --coco_path"
        )
    if data.root != "shapes":
        return Path(data.root).expanduser()  # of --coco_path=~/data, which a shell leaves as it is
    root = Path("data/shapes")
    root.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(root):
        make_shapes(root)
    return root


def find_split(cfg: ConfigDict, split: str) -> tuple[Path, Path]:
    """The annotation file and the image folder of a split.

    Raises:
        ConfigError: the config names none, or there is no such folder.
    """
    node = cfg.data[split]
    if not isinstance(node, Mapping):
        where = f"{node_location(cfg.data)}.{split}"
        raise ConfigError(f"{where}: expected dict(images=FOLDER, annotations=FILE), found {node!r}")
    root = data_root(cfg)
    images = next((path for path in (root / node.images, root / "images" / node.images) if path.is_dir()), None)
    if images is None:
        layouts = LAYOUTS.format(root=root, images=node.images, annotations=node.annotations, split=split)
        raise ConfigError(f"{node_location(node)}: no image folder {root / node.images}; {layouts}")
    return root / node.annotations, images


def build_dataset(
    cfg: ConfigDict, split: str, seed: int = 0, cached: bool = False, unlisted: Categories | None = None
) -> DetectionDataset:
    """A split of the data that `cfg.data` names.

    Args:
        split: "train", "val" or "test".
        seed, cached: see DetectionDataset.
        unlisted: the categories of a split whose file lists none; see `read_annotations`.

    Raises:
        ConfigError: the folder or the file is not there, holds no usable annotations, or no image of its own.
    """
    data = cfg.data
    limits = call_with_config(Limits, data.get("corrupt", {}), where=f"{node_location(data)}.corrupt")
    max_pixels = data.get("max_pixels", MAX_PIXELS)
    if type(max_pixels) is not int or max_pixels < 1:
        raise ConfigError(f"{node_location(data)}: max_pixels={max_pixels!r} must be a whole number, 1 or more")
    file, images = find_split(cfg, split)
    try:
        annotations = located(read_annotations(file, data.categories, unlisted), images)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{node_location(data[split])}: {error}") from error
    training = split == "train"
    transform = build_augmentation(data) if training else build_preparation(data).resize
    of_several = {}
    if training:
        of_several["multi_scale"] = build_multi_scale(data, transform)
        of_several |= {"mosaic": build_mosaic(data), "mixup": build_mixup(data, transform)}
    given = transform, training, seed, cached, limits, max_pixels, normalization(data)
    return DetectionDataset(annotations, images, *given, **of_several)


def check_dataset(dataset: DetectionDataset, queries: int | None) -> list[Problem]:
    """What is wrong with a data set, as far as can be told without opening an image.

    Args:
        queries: objects that the model can find in an image; None if that is not known.

    Raises:
        ConfigError: none of the images are there, or fewer than training could do with, or it has nothing to learn.
    """
    found, limit = dataset.annotations, dataset.limits.files
    if dataset.training and not len(found.boxes):
        reasons = "".join(f"\n  {problem}" for problem in found.problems) or " its list 'annotations' is empty"
        raise ConfigError(f"{found.file}: holds no usable object, so there is nothing to learn:{reasons}")
    exists, missing = check_files(found.names, dataset.folder)
    absent = (~exists).nonzero()[0]
    if len(absent) == len(found) or (dataset.training and len(absent) > limit):
        count = "none" if len(absent) == len(found) else f"only {len(found) - len(absent)}"
        place = f"{count} of its {len(found)} images are in {dataset.folder}; missing: {found.name(absent[0])}, ..."
        remedy = "`python -m datasets.validate --fix` writes a copy without them; data.corrupt.files allows more"
        raise ConfigError(f"{found.file}: {place} Is it the right folder? {remedy}")
    return [*found.problems, *check_boxes(found, queries), *missing]


def build_loader(dataset: DetectionDataset, batch_size: int, workers: int, pin_memory: bool = False) -> DataLoader:
    """Batches of this process's share of a data set; in training shuffled, without a smaller last one.

    Raises:
        ConfigError: a size that is none, or a process has fewer training images than one batch.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ConfigError(f"data.batch_size or data.eval_batch_size = {batch_size!r} must be a whole number, 1 or more")
    if dataset.training:
        sampler = TrainSampler(len(dataset), rank(), world_size(), dataset.seed)
        if len(sampler) < batch_size:
            count = f"{len(dataset)} images over {world_size()} processes"
            raise ConfigError(
                f"{dataset.annotations.file}: {count} do not fill one batch of {batch_size}; lower --batch_size"
            )
    else:
        sampler = EvalSampler(len(dataset), rank(), world_size())
    if workers:
        kill_workers_at_exit()
    return BoundedLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        drop_last=dataset.training,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_prepare_worker,
        # A generator of its own: by default, starting an epoch would draw from the one that dropout draws from, and an
        # epoch that is gone on with would not be one that is started once.
        generator=torch.Generator(),
        # A forked worker reads the annotations where they are; any other way copies them. Python 3.14 would not fork.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )


def _collate(items: list[tuple]) -> Batch:
    """A worker shares its batch itself, where an error reaches the training: by the thread that sends batches it would
    be printed, and waited for the batch for ever."""
    batch = Batch.of(items)
    return batch if get_worker_info() is None else batch.share_memory()


def _prepare_worker(worker: int):
    """Workers decode one image each; threads inside them would only get in each other's way.

    What they inherit is kept from the garbage collector: it writes into every object, and so would copy all of them.
    A signal to all processes is answered by the training, which needs their images until its step is done.
    """
    ignore_requests()
    end_with_parent()
    torch.set_num_threads(1)
    gc.freeze()
