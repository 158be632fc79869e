"""Evaluates one model in 1, 2 and 3 processes, and in batches of 1, 2 and 4 pictures of one size: the AP is the same.

usage: python -m tests.harness.evaluate [--epochs 2]

Prints what it found as JSON. In several processes the detections themselves are equal, number by number, and every
picture is among them once; batches change the rounding of convolutions, so there only the scores of COCO are compared.
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
    """Makes all pictures of a data set equally large."""
    for file in data.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        factors = {}
        for picture in content["images"]:
            path = data / file.stem.removeprefix("instances_") / picture["file_name"]
            with Image.open(path) as image:
                factors[picture["id"]] = SIZE[0] / image.width, SIZE[1] / image.height
                image.resize(SIZE).save(path)
            picture["width"], picture["height"] = SIZE
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = [*prepare(folder, train=16, val=7), "--num_workers", "0"]
        to_one_size(folder / "data")
        said = folder / "said.txt"
        options = ["--options", f"schedule.epochs={args.epochs}", f"training.eval_every={args.epochs}"]
        finish(Forked([*base, "--output_dir", str(folder / "trained"), *options], 1, said), said)
        base += ["--eval", "--save_results", "--resume", str(folder / "trained/checkpoint.pth")]
        scores, detections = {}, {}
        for processes, batch in [(processes, 1) for processes in PROCESSES] + [(1, batch) for batch in BATCHES[1:]]:
            output = folder / f"eval_{processes}_{batch}"
            options = ["--options", f"data.eval_batch_size={batch}"]
            finish(Forked([*base, "--output_dir", str(output), *options], processes, said), said)
            numbers = json.loads((output / "eval.json").read_text())
            scores[processes, batch] = [numbers[model]["coco_eval_bbox"] for model in ("regular", "ema")]
            detections[processes, batch] = (output / "results.json").read_text()
    if len({str(value) for value in scores.values()}) != 1:
        sys.exit(f"scores differ: {scores}")
    if len({detections[processes, 1] for processes in PROCESSES}) != 1:
        sys.exit("detections depend on the number of processes")
    found = json.loads(detections[1, 1])
    if {row["image_id"] for row in found} != set(range(1, 8)):
        sys.exit("not every picture was detected on")
    print(json.dumps({"AP": scores[1, 1][0][0], "processes": PROCESSES, "batches": BATCHES, "detections": len(found)}))


if __name__ == "__main__":
    main()
