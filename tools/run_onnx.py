"""Runs an exported detector on images. Needs numpy, Pillow and onnxruntime alone; copy it wherever the file goes.

usage: python run_onnx.py model.onnx IMAGE ... [--score S] [--output_dir DIR]

model.onnx comes from `tools/export.py --with_processing`. Prints what was found; with --output_dir draws it too.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw


class Detector:
    """An exported program: detector(image) -> scores (n,), labels (n,), boxes (n, 4) as x0, y0, x1, y1 in pixels."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options)
        if self.session.get_inputs()[0].name != "image":
            raise SystemExit(f"{path}: takes normalised tensors; export it with --with_processing")
        self.names = json.loads(self.session.get_modelmeta().custom_metadata_map.get("names", "[]"))

    def __call__(self, image: Image.Image) -> list[np.ndarray]:
        return self.session.run(None, {"image": np.array(image.convert("RGB"))})

    def name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else str(label)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--score", type=float, default=0.3, help="detections below are left out")
    parser.add_argument("--output_dir", type=Path)
    args = parser.parse_args()
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    detector = Detector(args.model)
    for path in args.images:
        image = Image.open(path).convert("RGB")
        pen = ImageDraw.Draw(image)
        for score, label, box in zip(*detector(image), strict=True):
            if score >= args.score:
                print(f"{path}: {detector.name(label)} {score:.2f} at {box.round().astype(int).tolist()}")
                pen.rectangle((*box[:2], *box.clip(box[[0, 1, 0, 1]])[2:]), outline="red", width=2)
                pen.text(box[:2], f"{detector.name(label)} {score:.2f}", fill="red")
        if args.output_dir:
            image.save(args.output_dir / f"{path.stem}.png")


if __name__ == "__main__":
    main()
