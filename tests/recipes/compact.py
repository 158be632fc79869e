"""Makes the compact copies of what trainings of the papers' own code start from, for tests/models/test_recipe.py.

usage: python tests/recipes/compact.py RECIPES_FOLDER

RECIPES_FOLDER holds NAME_recipe.json. A copy keeps every number: per parameter mean, standard deviation, least and
largest value of fresh weights over `seeds` seeds, learning rate, weight decay and whether it trains.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

FEWER_SEEDS = re.compile(r"coat|mpvit|sparse_detr_swint")


def main():
    target = Path(__file__).parent
    for source in sorted(Path(sys.argv[1]).glob("*_recipe.json")):
        recorded, name = json.loads(source.read_text()), source.stem.removesuffix("_recipe")
        spec = {
            "recipe": recorded["recipe"],
            "betas_eps": recorded["betas_eps"],
            "equal": recorded["start_equal_but_separate"],
            "seeds": 5 if FEWER_SEEDS.search(name) else 10,
            "backbone_seeds": 2,
            "keys": list(recorded["parameters"]),
        }
        text = json.dumps(spec, separators=(",", ":")).encode()
        numbers = np.asarray(list(recorded["parameters"].values()), np.float32)
        np.savez_compressed(target / f"{name}.npz", spec=np.frombuffer(text, np.uint8), numbers=numbers)
        print(f"{name}: {(target / f'{name}.npz').stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
