"""Evaluates one model in 1, 2 and 3 processes, and in batches of 1, 2 and 4 images of one size: the AP is the same.

usage: python -m tests.harness.evaluate [--num_images 7]

The ground truth is made of the model's own detections, moved about: so a model that was hardly trained has an AP that
says something. Prints what it found as JSON. In several processes the detections themselves are equal, number by
number, and every image is among them once; batches change the rounding of convolutions, so there only COCO's scores
are compared.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.harness.forked import Forked, prepare

SIZE = (96, 64)
PROCESSES, BATCHES = (1, 2, 3), (1, 2, 4)


def to_one_size(data: Path):
    """Makes all images of a data set equally large."""
    for file in data.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        factors = {}
        for entry in content["images"]:
            path = data / file.stem.removeprefix("instances_") / entry["file_name"]
            with Image.open(path) as image:
                factors[entry["id"]] = SIZE[0] / image.width, SIZE[1] / image.height
                image.resize(SIZE).save(path)
            entry["width"], entry["height"] = SIZE
        for entry in content["annotations"]:
            x, y = factors[entry["image_id"]]
            entry["bbox"] = [value * factor for value, factor in zip(entry["bbox"], (x, y, x, y), strict=True)]
            entry["area"] *= x * y
        file.write_text(json.dumps(content))


def finish(run: Forked, output: Path):
    """Waits for a run and ends the harness if it failed."""
    status = run.wait()
    if set(status) != {0}:
        sys.exit(f"{output}: ended with {status}\n{output.read_text()[-3000:]}")


def make_ground_truth(file: Path, detections: list[dict]):
    """Annotates with every third detection, moved by up to a third of its width.

    By 23rds, so that no overlap is exactly one of COCO's thresholds, where rounding would decide.
    """
    content = json.loads(file.read_text())
    content["annotations"] = []
    for number, row in enumerate(detections[::3], 1):
        x, y, width, height = row["bbox"]
        x += (number % 9) / 23 * width
        entry = {"id": number, "image_id": row["image_id"], "category_id": row["category_id"], "iscrowd": 0}
        content["annotations"].append({**entry, "bbox": [x, y, width, height], "area": width * height})
    file.write_text(json.dumps(content))


class Evaluations:
    """Evaluates one checkpoint of a model that was trained for a moment.

    Args:
        folder: for everything that is written.
        images: how many are evaluated.
    """

    def __init__(self, folder: Path, images: int):
        self.folder, self.base = folder, [*prepare(folder, train=4, val=images), "--num_workers", "0"]
        to_one_size(folder / "data")
        self.run("trained", 1, "--options", "schedule.epochs=1")
        self.base += ["--eval", "--save_results", "--resume", str(folder / "trained/checkpoint.pth")]
        make_ground_truth(folder / "data/annotations/instances_val2017.json", json.loads(self.of(1, 1)[1]))

    def run(self, name: str, processes: int, *more: str):
        """main.py with its output in a folder of this name."""
        said = self.folder / "said.txt"
        finish(Forked([*self.base, "--output_dir", str(self.folder / name), *more], processes, said), said)

    def of(self, processes: int, batch: int) -> tuple[list, str]:
        """COCO's numbers of the model and its average, and the average's detections."""
        name = f"eval_{processes}_{batch}"
        self.run(name, processes, "--options", f"data.eval_batch_size={batch}")
        numbers = json.loads((self.folder / name / "eval.json").read_text())
        found = (self.folder / name / "results.json").read_text()
        return [numbers[model]["coco_eval_bbox"] for model in ("regular", "ema")], found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        evaluations = Evaluations(Path(folder), args.num_images)
        apart = [evaluations.of(processes, 1) for processes in PROCESSES]
        batched = [evaluations.of(1, batch) for batch in BATCHES[1:]]
    scores = [numbers for numbers, _ in apart + batched]
    if any(numbers != scores[0] for numbers in scores):
        sys.exit(f"scores differ: {scores}")
    if any(found != apart[0][1] for _, found in apart):
        sys.exit("detections depend on the number of processes")
    if {row["image_id"] for row in json.loads(apart[0][1])} != set(range(1, 1 + args.num_images)):
        sys.exit("not every image was detected on")
    print(json.dumps({"AP": scores[0][1][0], "processes": PROCESSES, "batches": BATCHES}))


if __name__ == "__main__":
    main()
