"""Where the host waits for a GPU, found on fake CUDA tensors: for the matching and at the end of a step, nowhere else."""

from pathlib import Path

import pytest
import torch

from datasets.loader import Batch
from engine import evaluate
from models import build_criterion, build_detector, build_postprocessor
from tests.golden import objects
from tests.harness.fake_cuda import Synchronisation, fake_cuda, move
from tests.tiny import shrunk
from util.config import load_config
from util.device import constant, read, to_device
from util.optim import build_optimizer, build_schedule, moving_average
from util.precision import Precision
from util.state import TrainingState
from util.stepper import Stepper

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # copying modules does

ROOT = Path(__file__).parent.parent
FAMILIES = (
    "detr/detr_r50",
    "conditional_detr/conditional_detr_r50",
    "pnp_detr/pnp_detr_r50_ratio033",
    "deformable_detr/deformable_detr_r50",
    "deformable_detr/deformable_detr_r50_two_stage",
    "efficient_detr/efficient_detr_r50",
    "sparse_detr/sparse_detr_r50_rho_0.1",
    "DINO/dino_4scale_r50",
    "lite_detr/lite_dino_r50_h3l1_2p1x3_kda",
    "h_detr/h_deformable_detr_r50",
)
BACKBONES = tuple(f"deformable_detr/deformable_detr_{name}" for name in ("swint", "coat_lite_small", "mpvit_small"))
FEW = {"num_layers": 2, "num_blocks": 1, "depth": 18}


def shallow(stem):
    """A shrunk config of few layers."""
    found = {}

    def walk(node, prefix):
        for key, value in node.items():
            if key in FEW:
                found[prefix + key] = FEW[key]
            elif hasattr(value, "items"):
                walk(value, f"{prefix}{key}.")

    path = ROOT / f"config/{stem}.py"
    walk(load_config(path).model, "model.")
    return shrunk(path, **found)


def batch_of(*sizes):
    """Pictures of noise in page-locked memory, as the data loader of a GPU yields them. Only within `fake_cuda`."""
    facts = {"image_id": torch.tensor(7), "orig_size": torch.tensor([64, 64]), "broken": []}
    pairs = zip(sizes, objects(len(sizes), 5), strict=True)
    return Batch.of([(torch.randn(3, *size), {**target, **facts}) for size, target in pairs]).pin_memory()


def stepper_of(model, criterion, amp=False):
    """What trains a model on the fake GPU. Only within `fake_cuda`."""
    model, precision = move(model).train(), Precision("cuda", amp)
    optimizer = build_optimizer(model, 1e-4)
    schedule, average = build_schedule(optimizer, 4, 1), moving_average(model, 0.9)
    average.n_averaged += 1  # which is from when on it averages
    state = TrainingState(model, optimizer, schedule, precision.scaler, average, {}, {"steps_per_epoch": 4})
    return Stepper(model, criterion.train(), state, precision, 0.1, 1, 3)


def places(found):
    """Operators, files and functions, without line numbers, that tests may name them."""
    return [(one.operator, one.place.split(":")[0], one.place.split()[-1]) for one in found]


MATCHING = ("_to_copy: copy to the host", "models/criteria/matcher.py", "match")
READING = ("_to_copy: copy to the host", "util/device.py", "read")


@pytest.mark.parametrize("stem", FAMILIES + BACKBONES)
def test_a_step_waits_for_its_matching_and_at_its_end(stem):
    """And inference on pictures of other sizes nowhere. All is on one device, which fake tensors see to."""
    cfg = shallow(stem)
    model, criterion, postprocess = build_detector(cfg), build_criterion(cfg), build_postprocessor(cfg)
    with fake_cuda() as found:
        stepper, batch = stepper_of(model, criterion, amp=stem not in BACKBONES), batch_of((64, 96), (64, 64))
        found.clear()
        numbers = stepper.take(batch.to("cuda"), ends_step=True, stop=False)
        assert places(found) == [MATCHING, READING]
        assert "grad_norm" in numbers
        assert stepper.state.schedule.last_epoch == 1
        found.clear()
        model.eval()
        with torch.inference_mode(), stepper.precision.autocast():
            results = postprocess(model(batch.to("cuda").images), torch.tensor([[64, 96], [64, 64]]))
        assert not found
        assert all(value.is_cuda for result in results for value in result.values())
