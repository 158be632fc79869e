"""Where the host waits for a GPU, found on fake CUDA tensors: for the matching and at the end of a step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.annotations import read_annotations
from datasets.coco_eval import CocoEvaluator
from datasets.loader import Batch
from datasets.shapes import make_shapes
from engine import evaluate
from models import build_criterion, build_detector, build_postprocessor
from models.backbones import coat, mpvit
from tests.golden import objects
from tests.harness.fake_cuda import backward, fake_cuda, move
from tests.tiny import FAMILIES, shrunk
from util.config import load_config
from util.tensors.device import constant_tensor, read_floats, to_device
from util.tensors.precision import Precision
from util.training.optimizer import build_ema, build_optimizer, build_schedule
from util.training.state import TrainingState
from util.training.stepper import Stepper

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # copying modules does

ROOT = Path(__file__).parents[3]
BACKBONES = tuple(f"deformable_detr/deformable_detr_{name}" for name in ("swint", "coat_small", "mpvit_small"))
FEW = {"num_layers": 2, "num_blocks": 1, "depth": 18, "stages": (2,)}


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
    model = load_config(path).model
    walk(model, "model.")
    if "fusion" in model.encoder:  # which has as many levels as the backbone has maps
        found |= {"model.num_levels": 2, "model.backbone.stages": (2, 3)}
        if isinstance(model.attention.num_points, tuple):
            found["model.attention.num_points"] = (3, 6)
    if "model.encoder.num_layers" in found and "sparse" not in stem:  # whose heads stand between layers
        found["model.encoder.num_layers"] = 1
    return shrunk(path, **found)


def batch_of(*sizes):
    """Images of noise in page-locked memory, as the data loader of a GPU yields them. Only within `fake_cuda`."""
    facts = {"image_id": torch.tensor(7), "orig_size": torch.tensor([64, 64]), "corrupt": []}
    pairs = zip(sizes, objects(len(sizes), 5), strict=True)
    return Batch.of([(torch.randn(3, *size), {**target, **facts}) for size, target in pairs]).pin_memory()


def stepper_of(model, criterion, amp=False):
    """What trains a model on the fake GPU. Only within `fake_cuda`."""
    model, precision = move(model).train(), Precision("cuda", amp)
    optimizer = build_optimizer(model, 1e-4)
    schedule, average = build_schedule(optimizer, 4, 1), build_ema(model, 0.9)
    average.n_averaged += 1  # which is from when on it averages
    state = TrainingState(model, optimizer, schedule, precision.scaler, average, {}, {"steps_per_epoch": 4})
    return Stepper(model, criterion.train(), state, precision, 0.1, 1, 3)


def places(found):
    """Operators, files and functions, without line numbers, that tests may name them."""
    return [(one.operator, one.place.split(":")[0], one.place.split()[-1]) for one in found]


MATCHING = ("_to_copy: copy to the host", "models/criteria/hungarian_matcher.py", "match")
READING = ("_to_copy: copy to the host", "util/tensors/device.py", "read_floats")


@pytest.fixture
def few_blocks(monkeypatch):
    """Backbones that have no option for it are of one layer a stage."""
    for archs in (coat.ARCHS, mpvit.ARCHS):
        monkeypatch.setitem(archs, "small", replace(archs["small"], depths=(1, 1, 1, 1)))
    monkeypatch.setitem(coat.ARCHS, "small", replace(coat.ARCHS["small"], parallel=1))
    monkeypatch.setitem(mpvit.ARCHS, "small", replace(mpvit.ARCHS["small"], paths=(2, 2, 2, 2)))


@pytest.mark.parametrize("stem", FAMILIES + BACKBONES)
@pytest.mark.usefixtures("few_blocks")
def test_a_step_waits_for_its_matching_and_at_its_end(stem):
    """And inference on images of other sizes nowhere. All is on one device, which fake tensors see to."""
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


def test_steps_in_float32_and_of_several_batches_wait_no_more():
    cfg = shallow("deformable_detr/deformable_detr_r50")
    with fake_cuda() as found:
        stepper, batch = stepper_of(build_detector(cfg), build_criterion(cfg)), batch_of((64, 96), (64, 64))
        stepper.accumulate = 2
        found.clear()
        for ends_step in (False, True):
            stepper.take(batch.to("cuda"), ends_step, stop=False)
    assert places(found) == [MATCHING, READING] * 2


class Received(list):
    """An evaluator that only keeps what it gets."""

    def update(self, results, targets):
        self.extend(targets)


def test_an_evaluation_waits_for_its_matching_and_its_numbers():
    cfg, received = shallow("DINO/dino_4scale_r50"), Received()
    model, criterion, postprocess = build_detector(cfg), build_criterion(cfg), build_postprocessor(cfg)
    with fake_cuda() as found:
        model, batch = move(model), batch_of((64, 96), (64, 64))
        found.clear()
        evaluate(model, criterion, postprocess, [batch], received, Precision("cuda", False))
    assert places(found) == [MATCHING, READING]
    assert not any(target["image_id"].is_cuda for target in received)


def test_detections_of_a_batch_are_copied_at_once(tmp_path):
    make_shapes(tmp_path, train=1, val=2)
    evaluator = CocoEvaluator(read_annotations(tmp_path / "annotations/instances_val2017.json"))
    with fake_cuda() as found:
        boxes, scores, labels = torch.rand(2, 5, 4), torch.rand(2, 5), torch.ones(2, 5, dtype=torch.int64)
        result = {"boxes": boxes.to("cuda"), "scores": scores.to("cuda"), "labels": labels.to("cuda")}
        results = [{name: values[i] for name, values in result.items()} for i in range(2)]
        found.clear()
        evaluator.update(results, [{"image_id": torch.tensor(i)} for i in (1, 2)])
    assert [one.operator for one in found] == ["_to_copy: copy to the host"]


def test_a_model_of_float16_waits_no_more():
    """Gradients are scaled; by how much, the device knows."""
    cfg = shallow("deformable_detr/deformable_detr_r50")
    with fake_cuda() as found:
        stepper, batch = stepper_of(build_detector(cfg), build_criterion(cfg), amp=True), batch_of((64, 96), (64, 64))
        stepper.precision.dtype = torch.float16
        stepper.precision.scaler = torch.amp.GradScaler("cuda")
        stepper.precision.scaler._lazy_init_scale_growth_tracker(torch.device("cuda"))
        found.clear()
        stepper.take(batch.to("cuda"), ends_step=True, stop=False)
    assert places(found) == [MATCHING, READING]


# ---------------------------------------------------------------------------------------------------------- the harness


@pytest.mark.parametrize(
    ("work", "operator"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense: one number for the host"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense: one number for the host"),
        (lambda x: x.cpu(), "_to_copy: copy to the host"),
        (lambda x: torch.zeros(4).copy_(x), "copy_: copy to the host"),
        (lambda x: torch.tensor([1, 2], device="cuda"), "_to_copy: copy to the device"),
        (lambda x: x.new_tensor([1.0, 2.0]), "_to_copy: copy to the device"),
        (lambda x: torch.ones(3).to("cuda", non_blocking=True), "_to_copy: copy to the device"),
        (lambda x: torch.ones(3).pin_memory().to("cuda"), "_to_copy: copy to the device"),
        (lambda x: x[[0, 1]], "_to_copy: copy to the device"),
        (lambda x: x[torch.tensor([0, 1])], "index: reads a tensor on the host"),
        (lambda x: x[x > 0], "index: how large"),
        (lambda x: x.requires_grad_().prod(0), "prod: its gradient"),
        (lambda x: x.requires_grad_().cumprod(0), "cumprod: its gradient"),
        (lambda x: x.nonzero(), "nonzero: how large"),
        (lambda x: x.masked_select(x > 0), "masked_select: how large"),
        (lambda x: x.unique(), "_unique2: how large"),
        (lambda x: x.repeat_interleave(x.long()), "repeat_interleave: how large"),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_what_waits_is_found(work, operator, inference):
    with fake_cuda() as found, torch.inference_mode(inference):
        x = torch.zeros(4, device="cuda")
        try:
            work(x)
        except RuntimeError as error:
            assert "test_synchronisation.py" in str(error)  # noqa: PT017 - some go on, some cannot
    (one,) = found
    assert one.operator.startswith(operator)
    assert one.place.startswith("tests/util/training/test_synchronisation.py:")


def test_what_does_not_wait_is_not():
    with fake_cuda() as found:
        x = torch.zeros(4, device="cuda")
        x += 1.5
        x[1:3] = 7.0
        x[x > 0] = 1.0  # a number is written by masked_fill
        torch.where(x > 0, x, 0.0)
        x[torch.arange(2, device="cuda")]
        x.index_put((x.long(),), x, accumulate=True)
        x.prod(0)
        x.repeat_interleave(x.long(), output_size=6)
        torch.full((2,), 3.0, device="cuda")
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        assert constant_tensor([1, 2], "cuda").is_cuda
        assert to_device(torch.ones(2), "cuda").is_cuda
        assert torch.ones(3).sum().item() == 3  # on the host all is real
    assert found == []


def test_gradients_of_the_harness_are_those_of_autograd():
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True)

    def loss():
        parts = (x * y).chunk(2, -1)
        return (parts[0].exp() * parts[1] + x.sum() * y.mean()).square().sum()

    backward(loss())
    found = x.grad, y.grad
    for a, b in zip(found, torch.autograd.grad(loss(), (x, y)), strict=True):
        torch.testing.assert_close(a, b)


def test_constants_are_what_they_were():
    for values, dtype in (([[1, 2], [3, 4]], None), ([0.1, 0.2], torch.float32), ([True, False], None), (5.0, None)):
        expected = torch.tensor(values, dtype=dtype)
        assert constant_tensor(values, "cpu", dtype).equal(expected)
        assert constant_tensor(values, "cpu", dtype).dtype == expected.dtype
    tensor = torch.ones(2)
    assert to_device(tensor, "cpu") is tensor
    assert read_floats({}) == {}
    assert read_floats({"a": torch.tensor(2), "b": torch.tensor(0.5, dtype=torch.float64)}) == {"a": 2.0, "b": 0.5}
