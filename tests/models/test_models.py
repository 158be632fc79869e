"""Every config: builds, computes, learns; and what all detectors promise."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from models import build_criterion, build_detector, build_postprocessor
from models.backbones.resnet import ResNet
from models.layers.attention import ProjectedAttention
from models.layers.deformable_attention import MSDeformAttn
from models.layers.dense import ConditionalDecoderLayer, DenseDecoderLayer, DenseEncoderLayer
from models.layers.transformer import DeformableDecoderLayer, DeformableEncoderLayer, SplitFFNEncoderLayer
from models.ops import available_backends
from models.structures import Detections, DetectorOutput, Pyramid, QueryGroup
from models.weights import load_pretrained_backbone
from tests.golden import make_image, objects
from tests.tiny import shrunk
from tools.export import in_plain_pytorch
from util.checkpoints.files import CheckpointError
from util.config import ConfigError, load_config
from util.measuring.flops import ELEMENTWISE, count_by_part, count_gmacs, count_operations_by_part
from util.tensors.image_batch import ImageBatch
from util.tensors.precision import Precision, allow_tf32
from util.training.optimizer import build_optimizer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "config").rglob("*.py") if path.parent.name != "_base_")
LITE = ROOT / "config/small/lite_dino_r18_shapes.py"
REAL_TIME = ("rt_detr/rtdetr_r50vd_m", "rt_detr/rtdetrv2_r18vd_dsp", "d_fine/dfine_hgnetv2_s")


def make_images(*sizes):
    return [make_image(h, w, float(i)) for i, (h, w) in enumerate(sizes)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_a_step(path):
    """Forward, loss, backward and a step on two images of 64x96, then detections."""
    cfg = shrunk(path)
    torch.manual_seed(0)
    detector, criterion = build_detector(cfg).train(), build_criterion(cfg)
    optimizer = build_optimizer(detector, **cfg.optimizer)
    images, targets = make_images((64, 96), (64, 96)), objects(2, 5)
    losses, _ = criterion(detector(images, targets), targets)
    total = sum(losses.values())
    total.backward()
    without = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient: {without}"
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
    before = [p.detach().clone() for p in detector.parameters() if p.requires_grad]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, detector.parameters(), strict=False))
    detector.eval()
    with torch.inference_mode():
        results = build_postprocessor(cfg)(detector(images), torch.tensor([[64, 96], [64, 96]]))
    for result in results:
        assert len(result["scores"]) == len(result["labels"]) == len(result["boxes"]) > 0
        assert result["scores"].diff().le(0).all()


@pytest.mark.skipif("cpu" not in available_backends(), reason="the extension is not built (make ops)")
@pytest.mark.parametrize("stem", ["DINO/dino_4scale_r50", "lite_detr/lite_dino_r50_h3l1_2p1x3_kda"])
def test_a_fresh_model_starts_alike_with_every_backend(stem):
    """Fresh models sample at whole pixels, give or take a rounding."""
    cfg = shrunk(ROOT / f"config/{stem}.py")
    images, targets = make_images((256, 320), (224, 288)), objects(2, 5)

    def first_step() -> tuple[float, float]:
        torch.manual_seed(0)
        detector, criterion = build_detector(cfg).train(), build_criterion(cfg)
        total = sum(criterion(detector(images, targets), targets)[0].values())
        total.backward()
        norms = [parameter.grad.norm() for parameter in detector.parameters() if parameter.grad is not None]
        return total.item(), torch.stack(norms).norm().item()

    loss, norm = first_step()
    with in_plain_pytorch():
        expected_loss, expected_norm = first_step()
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert norm == pytest.approx(expected_norm, rel=1e-4)


def layers(dropout):
    """Layers with the arguments of their forward and how often they drop, and what stays when all is dropped."""
    torch.manual_seed(0)
    shapes, tokens, pos, query, place = ((3, 4),), *torch.randn(4, 2, 12, 8)
    memory = Pyramid(tokens, pos, torch.zeros(2, 12, dtype=torch.bool), shapes, (shapes, shapes))
    sizes = {"d_model": 8, "ffn_dim": 8, "dropout": dropout}
    heads, deformable = sizes | {"num_heads": 2}, sizes | {"attention": lambda: MSDeformAttn(8, 2, 1)}
    asking = tokens, pos, memory.centers_on_levels(), memory
    yield DeformableEncoderLayer(**deformable), asking, 3, lambda layer: layer.norm2(layer.norm1(tokens))
    for coarse, name in ((1, "norm2"), (0, "norm22")):
        layer = SplitFFNEncoderLayer(**deformable, low_ffn_dim=8, high_levels=coarse)
        yield layer, asking, 5, lambda layer, name=name: getattr(layer, name)(layer.norm1(tokens))
    yield DenseEncoderLayer(**heads), (memory,), 3, lambda layer: layer.norm2(layer.norm1(tokens))
    decoder = DeformableDecoderLayer(**deformable, num_heads=2)
    yield decoder, (query, pos, *asking[2:], None), 4, lambda layer: layer.norm3(layer.norm1(layer.norm2(query)))
    for kind, more in ((DenseDecoderLayer, ()), (ConditionalDecoderLayer, (place,))):
        arguments = query, pos, *more, memory, None
        yield kind(**heads), arguments, 4, lambda layer: layer.norm3(layer.norm2(layer.norm1(query)))


def test_layers_drop_all_that_they_add_to_their_input():
    """After every attention, inside and after the network; attention among all tokens drops weights of its own."""
    for layer, arguments, times, rest in layers(dropout=1.0):
        calls = []
        layer.dropout.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        answer = layer.train()(*arguments)
        answer = answer[0] if isinstance(answer, tuple) else answer
        torch.testing.assert_close(answer, rest(layer))
        assert len(calls) == times, type(layer)
        dense = [m for m in layer.modules() if isinstance(m, nn.MultiheadAttention | ProjectedAttention)]
        assert all(m.dropout == 1.0 for m in dense)


@pytest.mark.parametrize("path", [LITE, ROOT / "config/deformable_detr/deformable_detr_r50_two_stage.py"])
def test_training_lowers_the_loss(path):
    cfg = shrunk(path, **{"model.backbone.depth": 18})
    torch.manual_seed(0)
    detector, criterion = build_detector(cfg).train(), build_criterion(cfg)
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    images, targets = make_images((64, 96), (64, 96)), objects(2, 5)
    totals = []
    for _ in range(30):
        losses, _ = criterion(detector(images, targets), targets)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-3:]) < 0.8 * sum(totals[:3])


@pytest.mark.parametrize("sizes", [[(208, 1)], [(1, 208)], [(1, 208), (64, 96)], [(33, 65), (97, 31)]])
@pytest.mark.parametrize("name", ["small/lite_dino_r18_shapes", *REAL_TIME])
def test_narrow_images_are_learnt_and_detected_on(name, sizes):
    """And images of odd sides; all of fewer tokens than there are to be queries."""
    cfg = shrunk(ROOT / f"config/{name}.py", **{"model.queries.base.num_queries": 1000})
    torch.manual_seed(0)
    detector, criterion = build_detector(cfg).train(), build_criterion(cfg)
    images, targets = make_images(*sizes), objects(len(sizes), 5)
    losses, _ = criterion(detector(images, targets), targets)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
    with torch.no_grad():
        found = build_postprocessor(cfg)(detector.eval()(images), torch.tensor(sizes))
    assert all(result["boxes"].isfinite().all() and result["scores"].isfinite().all() for result in found)


@pytest.mark.parametrize(
    "name",
    [
        "deformable_detr_r50_two_stage",
        "dino_4scale_r50",
        "lite_dino_r50_h3l1_2p1x3_kda",
        "sparse_detr_r50_rho_0.3",
        "detr_r50",
        "conditional_detr_r50",
        "pnp_detr_r50_ratio033",
        "rtdetr_r18vd",
        "rtdetrv2_r50vd_m_dsp",
        "dfine_hgnetv2_n",
    ],
)
def test_images_of_one_size_alone_and_in_a_batch(name):
    """The same detections, as long as no image is padded."""
    (path,) = (path for path in CONFIGS if path.stem == name)
    cfg = shrunk(path)
    torch.manual_seed(0)
    detector = build_detector(cfg).eval()
    for parameter in detector.parameters():  # fresh heads answer alike everywhere; these do not
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.5)
    images = make_images((64, 96), (64, 96))
    with torch.no_grad():
        together = detector(images)
        alone = [detector([image]) for image in images]
    for i, single in enumerate(alone):
        torch.testing.assert_close(together.logits[i], single.logits[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(together.boxes[i], single.boxes[0], rtol=0, atol=1e-4)


def test_a_list_and_a_batch_are_the_same():
    detector = build_detector(shrunk(LITE)).eval()
    images = make_images((64, 96), (50, 70))
    batch = ImageBatch.of(images)
    with torch.no_grad():
        a, b = detector(images), detector(ImageBatch(batch.images, batch.padding))
    assert torch.equal(a.boxes, b.boxes)


def test_without_gradients_the_answer_is_the_same():
    """Inference looks at chosen tokens only; it must answer what training would."""
    for name in (
        "deformable_detr/deformable_detr_r50_two_stage",
        "DINO/dino_4scale_r50",
        "sparse_detr/sparse_detr_r50_rho_0.1",
        *REAL_TIME,
    ):
        detector = build_detector(shrunk(ROOT / f"config/{name}.py")).eval()
        images = make_images((64, 96))
        full = detector(images)
        with torch.no_grad():
            lean = detector(images)
        assert "proposals" in full.seen
        assert "proposals" not in lean.seen
        torch.testing.assert_close(lean.logits, full.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lean.boxes, full.boxes, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            judged = detector(images, objects(1, 5))  # an evaluation has losses too
        assert judged.seen["proposals"].logits.shape == full.seen["proposals"].logits.shape


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", ["small/lite_dino_r18_shapes", "sparse_detr/sparse_detr_r50_rho_0.3", *REAL_TIME])
def test_detectors_compile_as_one_graph(name, monkeypatch):
    # The compiler sees PyTorch's products; those of the extension are rounded otherwise.
    monkeypatch.setattr("models.ops.linear.linear_products", lambda: "pytorch")
    torch.manual_seed(0)
    layers = {"model.backbone.depth": 18, "model.encoder.num_layers": 2, "model.decoder.num_layers": 2}
    detector = build_detector(shrunk(ROOT / f"config/{name}.py", **({} if name in REAL_TIME else layers))).eval()
    images = make_images((64, 96))
    with torch.no_grad():
        compiled = torch.compile(detector, backend="eager", fullgraph=True)(images)
        torch.testing.assert_close(compiled.logits, detector(images).logits)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small/lite_dino_r18_shapes", {"model.backbone.norm": "batch"}),
        ("deformable_detr/deformable_detr_swint", {"model.backbone.drop_path": 0.5}),
        ("pnp_detr/pnp_detr_r50_ratio033", {}),
        ("deformable_detr/deformable_detr_coat_small", {}),
        ("rt_detr/rtdetr_r18vd", {}),
        ("d_fine/dfine_hgnetv2_s", {}),
    ],
)
def test_layers_computed_anew_change_nothing_but_memory(name, options):
    """Losses, gradients, counted statistics and names to the last bit; dropout draws the same."""
    images, targets, seen = make_images((64, 96), (50, 96)), objects(2, 5), []
    for stages in ((), ("backbone", "encoder")):
        cfg = shrunk(ROOT / f"config/{name}.py", checkpointing=stages, **options)
        torch.manual_seed(0)
        detector, criterion = build_detector(cfg).train(), build_criterion(cfg)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x):
            output = detector(images, targets)
        losses, _ = criterion(output, targets)
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
        seen.append((losses, gradients, dict(detector.named_buffers()), list(detector.state_dict()), sum(kept)))
    for plain, anew in zip(*(run[:3] for run in seen), strict=True):
        assert plain.keys() == anew.keys()
        assert all(torch.equal(plain[key], anew[key]) for key in plain)
    assert seen[0][3] == seen[1][3]
    assert seen[1][4] < 0.8 * seen[0][4]


def test_a_stage_without_layers_to_compute_anew_is_refused():
    with pytest.raises(ConfigError, match=r"checkpointing: 'queries' has no layers that can be computed anew"):
        build_detector(shrunk(LITE, checkpointing=("queries",)))


def test_counting_needs_no_computation_and_knows_the_parts():
    cfg = shrunk(LITE)
    detector = build_detector(cfg)
    parts = count_by_part(detector, make_images((2000, 3000)))
    assert list(parts) == ["backbone", "neck", "encoder", "queries", "decoder"]
    assert count_gmacs(detector, make_images((2000, 3000))) == pytest.approx(sum(parts.values()))
    twice = count_gmacs(detector, make_images((2000, 3000), (2000, 3000)))
    assert twice == pytest.approx(2 * sum(parts.values()), rel=1e-6)


class Part(nn.Module):
    """A layer of which every operation is known."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)

    def forward(self, images):
        return self.norm(self.linear(images[0]).relu()).softmax(-1).sum()


def test_a_part_that_asks_for_values_is_counted_too():
    """Tensors that have shapes alone cannot answer it."""

    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images):
            answer = self.conv(images[0][None])
            return answer * (1 if answer.sum().item() > 0 else 2)

    assert count_gmacs(Asking(), [torch.empty(3, 4, 8)]) == pytest.approx(3 * 4 * 4 * 8 / 1e9)


def test_every_operation_is_counted_as_said():
    numbers = 3 * 4 * 16  # of an image 4 high and 8 wide after the linear layer
    counted = count_operations_by_part(Part(), [torch.empty(3, 4, 8)])
    assert counted == pytest.approx({"linear": 2 * 8 * numbers / 1e9, "norm": 7 * numbers / 1e9})
    counted = count_operations_by_part(nn.Sequential(OrderedDict(part=Part())), [torch.empty(3, 4, 8)])
    assert counted == pytest.approx({"part": (2 * 8 + 1 + 7 + 5 + 1) * numbers / 1e9})


@pytest.mark.parametrize("kernel", [3, [3], (3, 3)])
@pytest.mark.parametrize("pool", [nn.functional.max_pool2d, nn.functional.avg_pool2d])
def test_pooling_looks_at_every_number_of_its_window(pool, kernel):
    class Pooling(nn.Module):
        def forward(self, images):
            return pool(images[0][None], kernel)

    counted = count_operations_by_part(nn.Sequential(OrderedDict(part=Pooling())), [torch.empty(3, 6, 9)])
    assert counted == pytest.approx({"part": 9 * 3 * 2 * 3 / 1e9})


def test_tables_that_count_elements_count_them_as_said():
    numbers, part = 3 * 4 * 16, nn.Sequential(OrderedDict(part=Part()))
    assert count_gmacs(part, [torch.empty(3, 4, 8)]) == pytest.approx((8 + 5) * numbers / 1e9)
    counted = count_gmacs(part, [torch.empty(3, 4, 8)], convention=ELEMENTWISE)
    assert counted == pytest.approx((8 + 1 + 5 + 5) * numbers / 1e9)


def test_every_operation_of_a_detector_is_counted_without_kernels_too():
    detector = build_detector(shrunk(LITE))
    counted = count_operations_by_part(detector, make_images((64, 96)))
    assert list(counted) == ["backbone", "neck", "encoder", "queries", "decoder"]
    for name, gmacs in count_by_part(detector, make_images((64, 96))).items():
        assert counted[name] > 1.5 * gmacs  # keys that are values are sampled once, but counted twice in tables
    with in_plain_pytorch():
        assert counted == count_operations_by_part(detector, make_images((64, 96)))


def test_what_only_losses_need_can_be_left_out_of_the_count():
    detector = build_detector(shrunk(ROOT / "config/deformable_detr/deformable_detr_r50_two_stage.py"))
    assert count_gmacs(detector, make_images((64, 96)), inference=True) < count_gmacs(detector, make_images((64, 96)))


def test_suppression_of_overlapping_detections():
    cfg = shrunk(LITE)
    boxes = torch.rand(1, 1, 12, 4) * 0.01 + 0.4
    output = DetectorOutput(Detections(torch.randn(1, 1, 12, 5), boxes), (QueryGroup("matching", 12),))
    sizes = torch.tensor([[64, 96]])
    (everything,) = build_postprocessor(cfg)(output, sizes)
    (kept,) = build_postprocessor(shrunk(LITE, **{"postprocess.nms_iou": 0.5}))(output, sizes)
    (few,) = build_postprocessor(shrunk(LITE, **{"postprocess.num_select": 7}))(output, sizes)
    assert len(everything["scores"]) == 60
    assert sorted(kept["labels"].tolist()) == [0, 1, 2, 3, 4]  # every class keeps its best
    assert len(few["scores"]) == 7
    for off in (-1, 0):  # DINO's way of saying so
        (all_of_them,) = build_postprocessor(shrunk(LITE, **{"postprocess.nms_iou": off}))(output, sizes)
        assert torch.equal(all_of_them["boxes"], everything["boxes"])
    aliased = load_config(ROOT / "config/DINO/DINO_4scale.py", {"nms_iou_threshold": -1})
    assert build_postprocessor(aliased).nms_iou is None
    with pytest.raises(ConfigError, match=r"nms_iou=1\.5: no IoU is above 1"):
        build_postprocessor(shrunk(LITE, **{"postprocess.nms_iou": 1.5}))


def test_float32_is_float32_unless_tf32_is_asked_for():
    try:
        for asked, said in ((True, "float32, products in TF32"), (False, "float32")):
            allow_tf32(asked)
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == asked
            assert Precision("cuda", amp=False).name == said
            assert Precision("cpu", amp=False).name == "float32"
    finally:
        allow_tf32(False)


@pytest.mark.parametrize(("kind", "said"), [("avx2", True), ("avx512_bf16", False), ("amx_bf16", False)])
def test_emulated_half_precision_is_warned_of(monkeypatch, caplog, kind, said):
    found = {"architecture": "x86_64", kind: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    Precision("cpu", amp=False)
    assert not caplog.records
    Precision("cpu", amp=True)
    assert ("no instructions for bfloat16" in caplog.text) == said


def test_one_detection_for_every_query():
    cfg = shrunk(ROOT / "config/detr/detr_r50.py")
    logits, boxes = torch.randn(1, 2, 12, 6), torch.rand(1, 2, 12, 4)
    output = DetectorOutput(Detections(logits, boxes), (QueryGroup("matching", 12),))
    _, result = build_postprocessor(cfg)(output, torch.tensor([[64, 96], [50, 70]]))
    best, labels = logits[0, 1].softmax(-1)[:, :5].max(-1)  # the sixth class is "no object"
    order = best.argsort(descending=True)
    torch.testing.assert_close(result["scores"], best[order])
    assert torch.equal(result["labels"], labels[order])
    centres = (result["boxes"][:, :2] + result["boxes"][:, 2:]) / 2
    torch.testing.assert_close(centres, boxes[0, 1, order, :2] * torch.tensor([70.0, 50.0]))


def test_regions_learn_the_classes_after_the_background():
    """While all logits are equal, the class of the objects is the one of which more is wanted."""
    detector = build_detector(shrunk(ROOT / "config/faster_rcnn/faster_rcnn_r50_fpn.py")).train()
    scorer = detector.regions.roi_heads.box_predictor.cls_score
    nn.init.zeros_(scorer.weight)
    nn.init.zeros_(scorer.bias)
    for label in (0, 4):
        target = {"labels": torch.tensor([label]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.6]])}
        loss = detector(make_images((64, 96)), [target]).losses["loss_classifier"]
        (wanted,) = torch.autograd.grad(loss, scorer.bias)
        assert wanted[1:].argmin() == label


def test_a_single_map_neck_wants_a_single_map():
    with pytest.raises(ConfigError, match=r"SingleMapNeck: reads one map, the backbone returns 2"):
        build_detector(shrunk(ROOT / "config/detr/detr_r50.py", **{"model.backbone.stages": (3, 4)}))


def test_sampling_draws_a_ratio_in_training_and_survives_extremes():
    """Every token taken, or none, from a batch with padding: nothing is left to pool, or nothing to penalise."""
    path, images, targets = ROOT / "config/pnp_detr/pnp_detr_r50_dc5_ratio033.py", ((64, 96), (32, 64)), objects(2, 5)
    for ratio, taken in ((1.0, 24), (0.01, 0)):
        cfg = shrunk(path, **{"model.encoder.ratio": ratio})
        output = build_detector(cfg).eval()(make_images(*images), targets)
        losses, _ = build_criterion(cfg)(output, targets)
        assert output.aux["sample_index"].shape == (2, taken)
        assert sum(losses.values()).isfinite()
    encoder = build_detector(shrunk(path)).encoder.train()
    pyramid = Pyramid(None, None, None, ((30, 50),), (((30, 50),), ((20, 30),)))
    counts = torch.tensor([encoder.counts(pyramid) for _ in range(50)])
    assert counts[:, 0].min() >= 500
    assert counts[:, 0].max() <= 1200
    assert len(counts[:, 0].unique()) > 10
    assert (counts[:, 0] * 0.4 - counts[:, 1]).abs().max() <= 1  # one ratio for the whole batch
    assert encoder.eval().counts(pyramid) == [495, 198]


@pytest.mark.parametrize(("norm", "has_buffers"), [("frozen", True), ("batch", True), ("group", False)])
def test_backbone_norms(norm, has_buffers):
    backbone = build_detector(shrunk(LITE, **{"model.backbone.norm": norm})).backbone
    assert bool(list(backbone.buffers())) == has_buffers


def test_frozen_norms_are_the_same_inside_the_weights():
    """Without gradients they are multiplied into the weights, with what is added to small variances."""
    torch.manual_seed(0)
    backbone = ResNet(18, stages=(1,))
    for name, value in backbone.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(1e-6, 1e-4)
    (image,) = make_images((64, 96))
    (plain,) = backbone(image[None])
    with torch.no_grad():
        (folded,) = backbone(image[None])
    torch.testing.assert_close(folded, plain, rtol=1e-3, atol=1e-5 * plain.max().item())


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_leading_pieces_of_the_backbone_can_be_frozen(frozen):
    trains = {name.split(".")[1] for name, p in ResNet(18, frozen=frozen).named_parameters() if p.requires_grad}
    assert trains == set(["conv1", "layer1", "layer2", "layer3", "layer4"][frozen:])


def test_pretrained_weights_are_named_and_not_fetched():
    cfg = shrunk(LITE, **{"model.backbone.pretrained": "IMAGENET1K_V1"})
    backbone = build_detector(cfg).backbone
    assert backbone.pretrained_source().startswith("https://download.pytorch.org/models/resnet18")
    weights = {name: torch.ones_like(value) for name, value in backbone.body.state_dict().items()}
    backbone.load_pretrained({**weights, "fc.weight": torch.zeros(1)})
    assert backbone.body.conv1.weight.eq(1).all()


def test_a_backbone_starts_from_a_checkpoint_of_scrl(tmp_path):
    path = ROOT / "config/sparse_detr/sparse_detr_r50_rho_0.1.py"
    file = tmp_path / "scrl.pth"
    options = {"model.backbone.depth": 18, "scrl_pretrained_path": str(file)}
    detector = build_detector(shrunk(path, **options))
    names = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    online = {"projector.0.weight": torch.zeros(1)}
    for key, value in detector.backbone.body.state_dict().items():
        piece, rest = key.split(".", 1)
        online[f"encoder.{names[piece]}.{rest}"] = torch.full_like(value, 0.5)
    torch.save({"online_network_state_dict": online, "epoch": 3}, file)
    load_pretrained_backbone(detector)
    assert all(value.eq(0.5).all() for value in detector.backbone.body.state_dict().values())
    torch.save({"online_network_state_dict": online | {"encoder.9.weight": torch.zeros(1)}}, file)
    with pytest.raises(CheckpointError, match=r"encoder\.9\.weight"):
        load_pretrained_backbone(detector)


def test_optimiser_groups_are_those_of_the_papers():
    """Deformable DETR's numbers of parameters: rest, backbone, offsets and reference points."""
    for name, counts in (("", (230, 42, 26)), ("_box_refine", (270, 42, 26)), ("_two_stage", (285, 42, 24))):
        cfg = shrunk(ROOT / f"config/deformable_detr/deformable_detr_r50{name}.py")
        groups = build_optimizer(build_detector(cfg), **cfg.optimizer).param_groups
        assert tuple(len(group["params"]) for group in groups) == counts
        assert [group["lr"] for group in groups] == pytest.approx([2e-4, 2e-5, 2e-5])


def test_an_expression_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="scale names 'bacbone'"):
        build_optimizer(torch.nn.Linear(1, 1), 1e-3, scale={"bacbone": 0.1})
