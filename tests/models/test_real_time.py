"""What RT-DETR and D-FINE are made of: encoder, attention, distributions, the layer that answers, how they start."""

import math

import pytest
import torch

from models import build_criterion, build_detector
from models.encoders.hybrid import HybridEncoder
from models.layers.deformable_attention import BareDeformAttn, DiscreteDeformAttn, ring
from models.layers.dense import GELUEncoderLayer
from models.layers.edge_distribution import bin_values, distances_to, expected_distances, moved_edges
from models.layers.fusion import ConvDownsampling, CSPFusion, ELANFusion, RepConv, SeparateDownsampling
from models.layers.position import IndexPosition
from models.structures import Pyramid
from tests.golden import make_image
from tests.tiny import shrunk
from util.tensors.box_ops import cxcywh_to_xyxy

RT_DETR, D_FINE = "config/rt_detr/rtdetr_r18vd.py", "config/d_fine/dfine_hgnetv2_s.py"
THIRD_OF_SIX = "config/rt_detr/rtdetr_r50vd_m.py"
TARGETS = [{"labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.6, 0.4, 0.2]])}]


def pyramid(*shapes, channels=16, batch=2, extents=None):
    """Random tokens of maps (H, W), finest first."""
    torch.manual_seed(0)
    maps = [torch.randn(batch, channels, *shape) for shape in shapes]
    return Pyramid.of_maps(maps, None, extents or (shapes,) * batch)


def hybrid(fusion=CSPFusion, downsampling=ConvDownsampling, channels=16, **options):
    torch.manual_seed(0)
    layer = lambda d_model: GELUEncoderLayer(d_model, num_heads=2, ffn_dim=32)  # noqa: E731
    encoder = HybridEncoder(channels, channels, 3, layer, IndexPosition, fusion, downsampling, **options).eval()
    for name, buffer in encoder.named_buffers():  # norms that do something
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("var") else 0.0))
    return encoder


# ------------------------------------------------------------------------------------------------------------ encoder


def test_positions_are_of_rows_first_on_oblong_maps():
    rows, columns = 2, 3
    found = IndexPosition(8)(((rows, columns),), (rows, columns), "cpu")
    assert found.shape == (1, 8, rows, columns)
    for row in range(rows):
        for column in range(columns):
            angles = [place * rate for place in (row, column) for rate in (1.0, 10000 ** (-1 / 2))]
            a, b = angles[:2], angles[2:]
            wanted = [f(x) for part in (a, b) for f in (math.sin, math.cos) for x in part]
            torch.testing.assert_close(found[0, :, row, column], torch.tensor(wanted))


def test_a_rep_conv_is_one_convolution_without_gradients():
    torch.manual_seed(0)
    block = RepConv(16).eval()
    for norm in (block.conv1.norm, block.conv2.norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 16, 9, 12).contiguous(memory_format=torch.channels_last)
    wanted = block(x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fusion", "downsampling"), [(CSPFusion, ConvDownsampling), (ELANFusion, SeparateDownsampling)]
)
def test_the_hybrid_encoder_takes_maps_of_odd_sides(fusion, downsampling):
    memory, encoder = pyramid((9, 13), (5, 7), (3, 4)), hybrid(fusion, downsampling)
    found, seen = encoder(memory)
    assert found.tokens.shape == memory.tokens.shape
    assert not seen
    with torch.no_grad():
        torch.testing.assert_close(encoder(memory)[0].tokens, found.tokens, rtol=0, atol=1e-5)


def test_nothing_that_stands_at_padding_is_read():
    """Another content there changes no token of the image."""
    shapes, inside = ((8, 12), (4, 6), (2, 3)), ((8, 8), (4, 4), (2, 2))
    memory, encoder = pyramid(*shapes, extents=(inside, shapes)), hybrid()
    changed = memory.with_tokens(torch.where(memory.padding[..., None], 9.0, memory.tokens))
    first, second = encoder(memory)[0], encoder(changed)[0]
    assert memory.padding.any()
    assert not torch.equal(memory.tokens, changed.tokens)
    kept = ~memory.padding
    torch.testing.assert_close(first.tokens[kept], second.tokens[kept], rtol=0, atol=1e-5)


def test_a_width_of_its_own_needs_a_projection():
    with pytest.raises(ValueError, match="by a projection alone: project=True"):
        HybridEncoder(16, 8, 3, GELUEncoderLayer, IndexPosition, CSPFusion, ConvDownsampling, project=False)


# ---------------------------------------------------------------------------------------------------------- attention


def test_bare_attention_has_points_by_level():
    """Against the sum over levels, points and the pixels around them, one number after the other."""
    torch.manual_seed(0)
    memory, attention = pyramid((5, 7), (3, 4), channels=8, batch=1), BareDeformAttn(8, 2, 2, (3, 1))
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    query, reference = torch.randn(1, 2, 8), torch.rand(1, 2, 2, 4)
    found, sampling = attention(query, reference, memory)
    offsets = attention.sampling_offsets(query).view(2, 2, 4, 2)
    weights = attention.attention_weights(query).view(2, 2, 4).softmax(-1)
    maps = [x[0] for x in memory.maps()]
    for q in range(2):
        for head in range(2):
            total = torch.zeros(4)
            for i, (level, points) in enumerate(((0, 3), (0, 3), (0, 3), (1, 1))):
                box = reference[0, q, level]
                x, y = box[:2] + offsets[q, head, i] / points * box[2:] / 2
                values = maps[level].view(2, 4, *maps[level].shape[1:])[head]
                grid = torch.stack([x, y]).view(1, 1, 1, 2) * 2 - 1
                sampled = torch.nn.functional.grid_sample(values[None], grid, align_corners=False)
                total = total + weights[q, head, i] * sampled.flatten()
            torch.testing.assert_close(found[0, q].view(2, 4)[head], total, rtol=1e-4, atol=1e-5)
    assert sampling.weights.shape == (1, 2, 2, 2, 3)
    assert sampling.weights[..., 1, 1:].eq(0).all()  # the second level is filled up with points of no weight
    torch.testing.assert_close(sampling.weights.sum((-2, -1)), torch.ones(1, 2, 2))


def test_discrete_points_stay_in_their_image():
    """Also on oblong maps, and where the map goes on beyond the image."""
    shapes, inside = ((4, 9),), ((4, 5),)
    memory = pyramid(*shapes, channels=8, extents=(shapes, inside))
    places = (
        torch.tensor([[-0.3, 0.5], [0.99, 2.0], [0.5, 0.5], [0.0, 0.0]])
        .view(1, 1, 4, 1, 1, 2)
        .expand(2, 1, -1, 1, 1, 2)
    )
    found = memory.nearest_tokens(places)[:, 0, :, 0, 0]
    assert found[0].tolist() == [2 * 9 + 0, 3 * 9 + 8, 2 * 9 + 5, 0]
    assert found[1].tolist() == [2 * 9 + 0, 3 * 9 + 4, 2 * 9 + 4, 0]


def test_discrete_attention_learns_no_places():
    attention, memory = DiscreteDeformAttn(8, 2, 2, 3), pyramid((4, 6), (2, 3), channels=8)
    query, reference = torch.randn(2, 5, 8), torch.rand(2, 5, 2, 4, requires_grad=True)
    answer, sampling = attention(query, reference, memory)
    answer.sum().backward()
    assert answer.shape == (2, 5, 8)
    assert attention.sampling_offsets.weight.grad is None
    assert reference.grad is None
    assert attention.attention_weights.weight.grad.abs().sum() > 0
    assert sampling.locations.shape == (2, 5, 2, 2, 3, 2)


# ------------------------------------------------------------------------------------------------------ distributions


def test_values_of_bins():
    values = bin_values(33, 4.0, 0.5, "cpu")
    assert values[0] == -4
    assert values[16] == 0
    assert values[32] == 4
    torch.testing.assert_close(values.flip(0), -values)
    torch.testing.assert_close(values[31], torch.tensor(2.0))  # a, which lies a whole a before the end
    steps = values[16:32].diff()
    torch.testing.assert_close(steps[1:] / steps[:-1], torch.full((14,), 3.0 ** (1 / 15)))


def test_edges_move_to_where_their_distances_say():
    torch.manual_seed(0)
    initial, target = torch.rand(6, 4) + 0.1, torch.rand(6, 4) + 0.1
    distances = distances_to(initial, cxcywh_to_xyxy(target), 4.0)
    torch.testing.assert_close(moved_edges(initial, distances, 4.0), target, rtol=1e-4, atol=1e-5)
    certain = torch.full((1, 4, 33), -100.0)
    certain[0, :, 20] = 100
    torch.testing.assert_close(expected_distances(certain, 4.0, 0.5), bin_values(33, 4.0, 0.5, "cpu")[20].expand(1, 4))


# ------------------------------------------------------------------------------------------------------------- models


def test_the_third_of_six_layers_answers():
    detector = build_detector(shrunk(THIRD_OF_SIX)).eval()
    images = [make_image(64, 96)]
    whole = detector(images)
    with torch.no_grad():
        alone, supervised = detector(images), detector(images, TARGETS)
    assert len(whole.decoder.boxes) == len(supervised.decoder.boxes) == 6
    assert len(alone.decoder.boxes) == 1
    assert torch.equal(whole.boxes, whole.sites()["matching"].boxes[2])
    torch.testing.assert_close(alone.boxes, whole.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(alone.logits, supervised.logits, rtol=0, atol=1e-4)


def test_an_answer_must_be_one_of_the_layers():
    with pytest.raises(Exception, match="answer_layer=7 is none of the 6 layers"):
        build_detector(shrunk(THIRD_OF_SIX, **{"model.decoder.answer_layer": 7}))


@pytest.mark.parametrize("path", [RT_DETR, D_FINE])
def test_images_of_several_sizes_are_padded_and_train(path):
    cfg = shrunk(path)
    detector, criterion = build_detector(cfg).train(), build_criterion(cfg)
    output = detector([make_image(64, 96), make_image(70, 51)], TARGETS * 2)
    losses, _ = criterion(output, TARGETS * 2)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("path", [RT_DETR, D_FINE, "config/rt_detr/rtdetrv2_r18vd.py"])
def test_how_a_training_starts(path):
    """Constants of fresh weights (RT-DETR's and D-FINE's code)."""
    detector = build_detector(shrunk(path))
    state = detector.state_dict()
    for name, value in state.items():
        if name.endswith("class_embed.bias"):
            torch.testing.assert_close(value, torch.full_like(value, -math.log(99)))
        zero = r"bbox_embed.layers.2.", r"initial_head.layers.2.", "quality.layers.1.", "gateway.gate."
        if any(part in name for part in (*zero, "attention_weights.", "sampling_offsets.weight")):
            assert not value.any(), name
        if name.endswith("sampling_offsets.bias"):
            levels = (3, 6, 3) if path == D_FINE else (4, 4, 4)
            distance = torch.cat([torch.arange(1.0, points + 1) for points in levels])
            torch.testing.assert_close(value, (ring(8)[:, None] * distance[:, None]).flatten())
    assert not state["queries.label_embed.weight"][-1].any()
    if path != D_FINE:
        heads = [state[f"decoder.heads.{i}.class_embed.weight"] for i in range(3)]
        assert not torch.equal(heads[0], heads[1])


def test_at_first_no_distribution_moves_an_edge():
    output = build_detector(shrunk(D_FINE)).eval()([make_image(64, 96)])
    assert len(output.decoder.boxes) == 3
    for boxes in output.decoder.boxes:
        torch.testing.assert_close(boxes, output.sites()["initial"].boxes[0], rtol=0, atol=1e-6)
