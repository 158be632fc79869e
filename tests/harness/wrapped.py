"""One model's weights as programs wrap them: what people have beside files of ours and of the papers."""

import argparse

import torch
from torch import Tensor

from models.official_keys import convert_official
from tests.golden import Recording

StateDict = dict[str, Tensor]


def prefixed(weights: StateDict, *prefixes: str) -> StateDict:
    """Every name behind prefixes, the first outermost."""
    return {f"{''.join(prefixes)}{name}": value for name, value in weights.items()}


def noisy(weights: StateDict) -> StateDict:
    """Weights of the same names and shapes that are not these."""
    return {name: value * 0.9 + 0.01 if value.is_floating_point() else value for name, value in weights.items()}


def official(detector: torch.nn.Module, recording: str, family: str) -> StateDict:
    """A detector's weights under the names of the paper's repository, as a recording of any width has them."""
    own, named = detector.state_dict(), {}
    for key, entry in Recording(recording).spec["state_dict"].items():
        first = entry if isinstance(entry, str) else key  # second names stand for the same tensor
        new = next(iter(convert_official({first: torch.zeros(1)}, family)), None)
        if new is not None and new in own:
            named[key] = own[new]
    return named


def variants(w: StateDict) -> dict[str, object]:
    """Contents of files whose weights are `w`; where there are others, `w` are those that are to be taken."""
    other = noisy(w)
    namespace = argparse.Namespace(lr=1e-4, dataset_file="coco")
    lightning = {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.1.0", "hyper_parameters": {"lr": 1.0}}
    return {
        "bare": w,
        "papers": {"model": w, "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 1, "args": namespace},
        "module": prefixed(w, "module."),
        "module_twice": {"model": prefixed(w, "module.", "module.")},
        "compiled": {"model": prefixed(w, "_orig_mod.")},
        "compiled_in_parallel": {"model": prefixed(w, "module.", "_orig_mod.")},
        "parallel_in_compiled": prefixed(w, "_orig_mod.", "module.", "_orig_mod."),
        "compiled_part": {"model": {name.replace("backbone.", "backbone._orig_mod.", 1): v for name, v in w.items()}},
        "one_half_in_parallel": {"model": {f"module.{n}" if "weight" in n else n: v for n, v in w.items()}},
        "lightning_model": {**lightning, "state_dict": prefixed(w, "model.")},
        "lightning_net": {**lightning, "state_dict": prefixed(w, "net.", "_orig_mod.")},
        "lightning_with_a_loss": {
            **lightning,
            "state_dict": prefixed(w, "model.") | {"criterion.empty_weight": torch.ones(4), "map.total": torch.ones(1)},
        },
        "lightning_with_an_average": {"state_dict": prefixed(w, "model.") | prefixed(other, "ema_model.", "module.")},
        "an_average_beside_bare_weights": w | prefixed(other, "ema_model."),
        "rtdetr": {"model": w, "ema": {"module": other, "updates": 17}, "last_epoch": 3},
        "rtdetr_released": {"ema": {"module": w, "updates": 17}},
        "ema_is_flat": {"model": w, "ema": {**noisy(w), "odd.weight": torch.ones(2)}},
        "ema_is_flat_and_alike": {"model": w, "ema": other},
        "ema_is_a_number": {"model": w, "ema": 0.9997},
        "ema_is_a_list": {"model": w, "ema": [1, 2], "optimizer": "adam", "schedule": 3, "random": {}, "epoch": "x"},
        "dino": {"model": w, "ema_model": other, "epoch": 11},
        "timm": {"state_dict": w, "state_dict_ema": other, "arch": "x"},
        "model_ema": {"model": w, "model_ema": other},
        "ema_model_alone": {"ema_model": w},
        "deep": {"checkpoint": {"model": {"state_dict": prefixed(w, "module.")}}},
        "a_prefix_of_ones_own": {"state_dict": prefixed(w, "my_detector.")},
        "unknown_key": {"my_detector": w, "epoch": 3},
        "beside_other_parts": {"model": w, "criterion": {"empty_weight": torch.ones(92)}, "step": torch.tensor(3)},
    }
