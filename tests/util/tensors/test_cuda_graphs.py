"""util.tensors.cuda_graphs: detectors recorded once for every size; without a GPU by tests/harness/fake_graphs.py."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from models import build_detector
from models.structures import padding_mask
from tests.golden import make_image
from tests.harness import fake_graphs
from tests.tiny import shrunk
from util.tensors.cache import cached, cached_in
from util.tensors.cuda_graphs import CaptureError, GraphedDetector
from util.tensors.image_batch import ImageBatch

ROOT = Path(__file__).parents[3]
LAYERS = {"model.backbone.depth": 18, "model.decoder.num_layers": 2}
PAIR = ((64, 96), (50, 70))


def tiny(name):
    torch.manual_seed(0)
    detector = build_detector(shrunk(ROOT / f"config/{name}.py", **LAYERS)).eval()
    for parameter in detector.parameters():  # fresh heads answer alike everywhere; these do not
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.5)
    return detector


def make_images(seed, *sizes):
    return [make_image(h, w, seed + i) for i, (h, w) in enumerate(sizes)]


def assert_same(found, expected):
    torch.testing.assert_close(found.decoder.logits, expected.decoder.logits)
    torch.testing.assert_close(found.decoder.boxes, expected.decoder.boxes)


@torch.inference_mode()
def eager(detector, images):
    return detector(images)


@pytest.fixture(scope="module")
def detector():
    return tiny("deformable_detr/deformable_detr_r50")


@pytest.fixture
def recorded(monkeypatch):
    fake_graphs.install(monkeypatch)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    "name",
    [
        "small/lite_dino_r18_shapes",
        "sparse_detr/sparse_detr_r50_rho_0.3",
        "detr/detr_r50",
        "pnp_detr/pnp_detr_r50_ratio033",
    ],
)
def test_replays_answer_as_the_detector_does(name):
    detector = tiny(name)
    graphed = GraphedDetector(detector)
    outputs = [graphed(make_images(seed, *PAIR)) for seed in (0.0, 5.0)]
    for seed, output in zip((0.0, 5.0), outputs, strict=True):  # the first was not overwritten by the second
        expected = eager(detector, make_images(seed, *PAIR))
        assert_same(output, expected)
        assert output.aux.keys() == expected.aux.keys()
        assert output.groups == expected.groups
    assert not torch.equal(outputs[0].boxes, outputs[1].boxes)
    (captured,) = graphed._graphs.values()
    assert captured.graph.replays == 2


@pytest.mark.usefixtures("recorded")
def test_every_size_has_its_graph_and_the_least_recently_used_one_leaves(detector):
    graphed = GraphedDetector(detector, max_graphs=2)
    small, wide, tall = [(80, 80)], [(80, 96)], [(96, 80)]
    first = {}
    for sizes in (small, wide, small, tall):
        images = make_images(1.0, *sizes)
        assert_same(graphed(images), eager(detector, images))
        first.setdefault(sizes[0], next(reversed(graphed._graphs.values())).graph)
    kept = {captured.batch.sizes[0]: captured.graph for captured in graphed._graphs.values()}
    assert kept == {size: first[size] for size in ((80, 80), (96, 80))}
    # One shape of batch around other images is another graph: more of it is padding.
    pairs = ((80, 80), (60, 80)), ((80, 80), (80, 60))
    for pair in pairs:
        images = make_images(1.0, *pair)
        assert_same(graphed(images), eager(detector, images))
    assert tuple(captured.batch.sizes for captured in graphed._graphs.values()) == pairs


@pytest.mark.usefixtures("recorded")
def test_a_list_and_a_batch_share_a_graph(detector):
    graphed = GraphedDetector(detector)
    graphed(make_images(0.0, *PAIR))
    images = make_images(3.0, *PAIR)
    batch = ImageBatch.of(images)
    assert_same(graphed(ImageBatch(batch.images, batch.padding)), eager(detector, images))
    assert len(graphed._graphs) == 1


@pytest.mark.usefixtures("recorded")
def test_autocast_around_a_call_has_graphs_of_its_own(detector):
    graphed, images = GraphedDetector(detector), make_images(0.0, *PAIR)
    for _ in range(2):  # weights that the first block converted are gone in the second
        with torch.autocast("cpu", torch.bfloat16):
            rounded, expected = graphed(images), eager(detector, images)
        torch.testing.assert_close(rounded.logits, expected.logits, rtol=0.05, atol=0.05)
    assert_same(graphed(images), eager(detector, images))
    assert len(graphed._graphs) == 2


@pytest.mark.usefixtures("recorded")
def test_what_follows_from_sizes_lives_as_long_as_its_graph(detector):
    graphed, images = GraphedDetector(detector, max_graphs=1), make_images(0.0, *PAIR)
    expected = graphed(images)
    (captured,) = graphed._graphs.values()
    answers = [weakref.ref(answer) for answer in captured.answers.values()]
    assert len(answers) > 4
    with torch.no_grad():
        for size in range(20):  # more than are remembered for everybody
            padding_mask(((size, size),), (32, 32), torch.device("cpu"))
    del captured
    gc.collect()
    assert_same(graphed(images), expected)
    graphed(make_images(0.0, (80, 80)))
    gc.collect()
    assert not any(answer() is not None for answer in answers)


def test_answers_that_are_owned_are_neither_taken_from_others_nor_given_to_them():
    calls = []

    @cached
    def ones(size):
        calls.append(size)
        return torch.ones(size)

    mine = {}
    with torch.no_grad():
        shared = ones(2)
        with cached_in(mine):
            own = ones(2)
            assert ones(2) is own
        assert ones(2) is shared
    assert own is not shared
    assert list(mine.values()) == [own]
    assert ones(2) is not shared  # gradients are taken
    assert calls == [2, 2, 2]


@pytest.mark.usefixtures("recorded")
def test_a_forward_that_waits_is_named(monkeypatch):
    class Waits(nn.Linear):
        def forward(self, batch):
            if mode[-1] == "error":
                raise RuntimeError("called a synchronizing CUDA operation")
            return self.weight

    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    with pytest.raises(CaptureError, match="cannot hold this Waits, call it as it is: called a synchronizing"):
        GraphedDetector(Waits(1, 1))(make_images(0.0, (8, 8)))
    assert mode == ["default", "error", "default"]


def test_what_cannot_be_graphed_is_refused(detector, monkeypatch):
    with pytest.raises(ValueError, match="CUDA graphs need a GPU, the detector is on cpu"):
        GraphedDetector(detector)
    fake_graphs.install(monkeypatch)
    with pytest.raises(ValueError, match="max_graphs=0 must be 1 or more"):
        GraphedDetector(detector, max_graphs=0)
    with pytest.raises(ValueError, match="a batch is a list"):
        GraphedDetector(detector)([])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", ["deformable_detr/deformable_detr_r50", "small/lite_dino_r18_shapes", "detr/detr_r50"])
def test_on_a_gpu(name, amp):
    detector = tiny(name).cuda()
    graphed = GraphedDetector(detector, max_graphs=2)
    tolerance = {"rtol": 0.05, "atol": 0.1} if amp else {"rtol": 1e-4, "atol": 1e-4}
    with torch.autocast("cuda", torch.bfloat16, enabled=amp):
        for sizes in (PAIR, [(64, 96)], [(96, 64)], PAIR, PAIR):
            batches = [[image.cuda() for image in make_images(seed, *sizes)] for seed in (0.0, 5.0)]
            outputs = [graphed(images) for images in batches]
            for found, images in zip(outputs, batches, strict=True):
                expected = eager(detector, images)
                torch.testing.assert_close(found.logits, expected.logits, **tolerance)
                torch.testing.assert_close(found.boxes, expected.boxes, **tolerance)
    assert len(graphed._graphs) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_a_forward_that_waits_is_named():
    detector = build_detector(shrunk(ROOT / "config/faster_rcnn/faster_rcnn_r50_fpn.py")).eval().cuda()
    with pytest.raises(CaptureError, match="FasterRCNN"):
        GraphedDetector(detector)([torch.rand(3, 64, 96, device="cuda")])
    assert torch.cuda.get_sync_debug_mode() == 0
