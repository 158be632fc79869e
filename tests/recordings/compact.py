"""Makes the compact copies of reference recordings that the tests read.

usage: python tests/recordings/compact.py RECORDINGS_FOLDER FAMILY [NAME ...]

RECORDINGS_FOLDER holds FAMILY/NAME.json and FAMILY/NAME.npz, as recorded from the papers' own code. A copy keeps every
number of the JSON that a test compares, and of each large array every sixth row.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

KEPT = re.compile(
    r"sizes|sizes_train|num_labels|parameters|rounding_noise|losses.*|grad_norms.*|scale_after_fill|state_dict|"
    r"weight_dict|localization|optimizer_groups|running_statistics.*|loss_noise.*|grad_noise.*|k_one2many|"
    r"lambda_one2many"
)
WHOLE = re.compile(
    r"encoder_topk_index|attn_mask_packed|dn_box_queries|dn_label_queries_ch0_8|post[._].*|query_topk|"
    r"backbone_topk_\d|dam_target_\d"
)
STEP = 6
MISCOUNTED = {"detr", "conditional_detr", "pnp_detr", "h_detr"}
"""Families whose counter missed the product of queries and keys wherever a mask is added to it."""


def beside(source: Path, name: str) -> dict:
    """A further file of notes on a recording, or nothing."""
    path = source.parent / name
    return json.loads(path.read_text()) if path.exists() else {}


def compact(source: Path, target: Path):
    """One recording."""
    recorded = json.loads(source.with_name(f"{source.name}.json").read_text())
    spec = {key: value for key, value in recorded.items() if KEPT.fullmatch(key)}
    if gmacs := recorded.get("gmacs") or beside(source, "gmacs_note.json").get(source.name):
        spec["gmacs"] = {"size": gmacs["size"], "total": gmacs["total"]}
        if source.parent.name in MISCOUNTED:
            spec["gmacs"]["missed_at_most"] = gmacs["by_operator"]["bmm"]
    if sampled := beside(source, f"{source.name}_sampler_note.json"):
        kept = ("sizes", "kept_per_image", "sampled_indices")
        spec["sampler"] = [{key: batch[key] for key in kept} for batch in sampled.values()]
    # Second names of tied weights are written as a reference to the first.
    spec["state_dict"] = {key: entry["alias_of"] or entry["shape"] for key, entry in recorded["state_dict"].items()}
    arrays = {}
    for key, values in np.load(source.with_name(f"{source.name}.npz")).items():
        if WHOLE.search(key):
            arrays[key] = values
        elif values.ndim > 1:
            arrays[key] = values[:, ::STEP]
    text = json.dumps(spec, separators=(",", ":"))
    text = re.sub(r"\d+\.\d{8,}(e-?\d+)?", lambda number: f"{float(number[0]):.8g}", text)
    np.savez_compressed(target, spec=np.frombuffer(text.encode(), np.uint8), **arrays)


def main():
    folder, family, *names = sys.argv[1:]
    target = Path(__file__).parent / family
    target.mkdir(exist_ok=True)
    for name in names or sorted(path.stem for path in (Path(folder) / family).glob("*.npz")):
        compact(Path(folder) / family / name, target / f"{name}.npz")
        print(f"{family}/{name}: {(target / f'{name}.npz').stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
