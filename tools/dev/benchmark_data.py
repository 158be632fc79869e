"""Measures what reading data costs: start-up, memory, memory per worker, and images per second.

usage: python tools/dev/benchmark_data.py annotations FOLDER [--num_images 118000] [--objects 860000] [--workers 2]
       python tools/dev/benchmark_data.py loading DATA_ROOT [--workers 0 1 2] [--repeats N]

`annotations` writes, once, a data set of that size into FOLDER: an annotation file with outlines of the length that
COCO's have, and one image under many names. Then it reads it as training does, and lets workers go through a part
of it. `loading` times each stage of a training image on one core, and whole batches with workers.
"""

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datasets.annotations import read_annotations
from datasets.coco import DetectionDataset
from datasets.loader import Batch, build_dataset, build_loader
from datasets.transforms import Sample, TrainTransform
from util.config import load_config

CONFIG = ROOT / "config/DINO/dino_4scale_r50.py"
SIZE = (640, 480)


def generate(folder: Path, num_images: int, num_objects: int) -> Path:
    """The data set under `folder`; returns its annotation file."""
    file, names = folder / f"instances_{num_images}_{num_objects}.json", [f"{i:012d}.jpg" for i in range(num_images)]
    (folder / "train2017").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    first = folder / "train2017" / names[0]
    if not first.exists():
        grain = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        grain.resize(SIZE, Image.Resampling.BICUBIC).save(first, quality=90)
    there = set(os.listdir(first.parent))
    for place, name in enumerate(names):
        if name not in there and place % 50_000 == 0:  # as many links as a file may have
            shutil.copy(first, first.parent / name)
        elif name not in there:
            os.link(first.parent / names[place - place % 50_000], first.parent / name)
    if not file.exists():
        width, height = SIZE
        images = [{"id": i, "file_name": name, "width": width, "height": height} for i, name in enumerate(names)]
        corners = rng.uniform(0, (500, 400), (num_objects, 2)).round(2)
        sizes = rng.uniform(8, 80, (num_objects, 2)).round(2)
        outlines = rng.uniform(0, 400, (64, 46)).round(2).tolist()  # 860,000 of 46 numbers: 0.4 GB, as COCO's file
        rows = zip(
            rng.integers(0, num_images, num_objects), rng.integers(1, 81, num_objects), corners, sizes, strict=True
        )
        entries = [
            {
                "segmentation": [outlines[number % 64]],
                "area": float(size[0] * size[1]),
                "iscrowd": 0,
                "image_id": int(image_id),
                "bbox": [*corner.tolist(), *size.tolist()],
                "category_id": int(category),
                "id": number,
            }
            for number, (image_id, category, corner, size) in enumerate(rows, 1)
        ]
        categories = [{"id": key, "name": f"class {key}"} for key in range(1, 81)]
        file.write_text(
            json.dumps({"images": images, "annotations": entries, "categories": categories}), encoding="utf-8"
        )
    return file


def private_megabytes(process: int | str = "self") -> float:
    """Memory of a process that it shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def resident_megabytes() -> tuple[float, float]:
    """Memory that this process holds now, and the most that it has held."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_annotations(args):
    """Start-up and memory at the size that was asked for."""
    with ProcessPoolExecutor(1) as process:  # of its own: what writing takes must not count
        file = process.submit(generate, args.folder, args.num_images, args.objects).result()
    before, _ = resident_megabytes()
    start, used = time.perf_counter(), time.process_time()
    annotations = read_annotations(file)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    after, peak = resident_megabytes()
    print(f"{file}: {file.stat().st_size / 1e6:.0f} MB, {len(annotations)} images, {len(annotations.boxes)} objects")
    print(
        f"read in {seconds:.1f} s, {used:.1f} of them on a core; "
        f"memory {before:.0f} MB before, {after:.0f} after, {peak:.0f} at most"
    )
    dataset = DetectionDataset(annotations, args.folder / "train2017", TrainTransform(args.scales, 1333), training=True)
    for method in args.start_methods:
        loader = build_loader(dataset, 2, args.workers)
        loader.multiprocessing_context = method
        batches = iter(loader)
        for step in range(args.batches + 1):
            if step in (4 * args.workers, args.batches):
                sizes = [f"{private_megabytes(worker.pid):.0f}" for worker in loader._iterator._workers]
                print(f"{method}, after {step} batches: private memory of each worker {', '.join(sizes)} MB")
            next(batches)
        del batches, loader


def milliseconds(work, items: list) -> float:
    """The median time of `work` on an item."""
    spent = []
    for item in items:
        start = time.perf_counter()
        work(item)
        spent.append(time.perf_counter() - start)
    return 1e3 * statistics.median(spent)


def measure_loading(args):
    """The stages of a training image, and batches with workers."""
    cfg = load_config(CONFIG, {"data.root": str(args.folder)})
    dataset = build_dataset(cfg, "train")
    keys = [(index, epoch) for epoch in range(args.repeats) for index in range(len(dataset))]
    files = [dataset.path(index).read_bytes() for index, _ in keys]
    decoded = [dataset.load_image(index) for index, _ in keys[: len(dataset)]]
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    samples = [Sample(decoded[index % len(decoded)], *none) for index, _ in keys]
    changed = [dataset.transform(sample, np.random.default_rng(n)) for n, sample in enumerate(samples)]
    tensors = [sample.tensors() for sample in changed]
    pairs = [
        [(image, {**target, "corrupt": []}) for image, target in tensors[i : i + 2]] for i in range(len(tensors) - 1)
    ]
    rng = np.random.default_rng(0)
    for name, work, items in (
        ("decode", lambda encoded: Image.open(io.BytesIO(encoded)).convert("RGB"), files),
        ("augment", lambda sample: dataset.transform(sample, rng), samples),
        ("to a normalised tensor", Sample.tensors, changed),
        ("a batch of 2", Batch.of, pairs),
        ("all of an image", dataset.__getitem__, keys),
    ):
        print(f"{name}: {milliseconds(work, items):.2f} ms")
    for workers in args.workers:
        loader = build_loader(dataset, 2, workers)
        next(iter(loader))  # workers start, files come into the cache
        start, count = time.perf_counter(), 0
        for epoch in range(args.repeats):
            loader.sampler.epoch = epoch
            count += sum(len(batch.targets) for batch in loader)
        print(f"{workers} workers: {count / (time.perf_counter() - start):.1f} images per second")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    task = tasks.add_parser("annotations")
    task.set_defaults(run=measure_annotations)
    task.add_argument("folder", type=Path)
    task.add_argument("--num_images", type=int, default=118_000)
    task.add_argument("--objects", type=int, default=860_000)
    task.add_argument("--workers", type=int, default=2)
    task.add_argument("--batches", type=int, default=400)
    task.add_argument("--scales", type=int, nargs="+", default=[64], help="small, so that images do not hide the rest")
    task.add_argument("--start_methods", nargs="+", default=["fork"], choices=("fork", "spawn", "forkserver"))
    task = tasks.add_parser("loading")
    task.set_defaults(run=measure_loading)
    task.add_argument("folder", type=Path)
    task.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    task.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
