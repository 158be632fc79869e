"""Backbones: what the recordings do not show."""

import json
import math
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.ops import FrozenBatchNorm2d

from models.backbones.coat import CoaT
from models.backbones.hgnetv2 import HGNetv2
from models.backbones.mpvit import MPViT
from models.backbones.resnet import ResNet
from models.backbones.resnet_vd import ResNetVd
from models.backbones.swin import SwinTransformer, join_windows, shift_mask, split_windows
from models.backbones.timm import TimmBackbone
from models.official_keys import (
    D_FINE_BACKBONE,
    DERIVED,
    HUGGINGFACE_D_FINE_BACKBONE,
    HUGGINGFACE_RT_DETR_BACKBONE,
    RT_DETR_BACKBONE,
)
from models.registry import PARTS
from tests.golden import filled, make_image
from util.checkpoints.files import CheckpointError, read_checkpoint
from util.config import ConfigDict, ConfigError
from util.tensors.precision import allow_tf32

SMALLEST = {
    "swin": lambda: SwinTransformer("tiny"),
    "coat_lite": lambda: CoaT("lite_tiny"),
    "coat": lambda: CoaT("tiny", drop_path=0.2),
    "mpvit": lambda: MPViT("tiny", norm="batch"),
    "timm": lambda: TimmBackbone("test_convnext"),
    "resnet_vd": lambda: ResNetVd(18, norm="batch", frozen=0),
    "hgnetv2": lambda: HGNetv2("B0", affine=True, norm="batch", frozen=0),
}


@pytest.fixture(params=SMALLEST)
def backbone(request):
    torch.manual_seed(0)
    return SMALLEST[request.param]().eval()


def test_maps_are_as_announced_in_any_layout_and_precision(backbone):
    """Widths and strides; channels_last changes nothing; autocast changes little."""
    images = torch.randn(2, 3, 75, 101)
    with torch.inference_mode():
        maps = backbone(images)
        assert [x.shape[1] for x in maps] == list(backbone.channels)
        for x, stride in zip(maps, (8, 16, 32), strict=True):
            for cells, side in zip(x.shape[2:], (75, 101), strict=True):
                assert cells in (math.floor(side / stride), math.ceil(side / stride))
        with torch.autocast("cpu", torch.bfloat16):
            coarse = backbone(images)
        backbone = backbone.to(memory_format=torch.channels_last)
        again = backbone(images.to(memory_format=torch.channels_last))
    for a, b, c in zip(maps, again, coarse, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert (a - c.float()).norm() < 0.1 * a.norm()


@pytest.mark.parametrize("size", [(1, 208), (208, 1), (20, 208)])
def test_narrow_images_have_maps(backbone, size):
    """Of a cell at least, and none that is not in the image."""
    with torch.inference_mode():
        maps = backbone(torch.randn(1, 3, *size))
    for x, stride in zip(maps, (8, 16, 32), strict=True):
        assert x.isfinite().all()
        for cells, side in zip(x.shape[2:], size, strict=True):
            assert max(1, side // stride) <= cells <= math.ceil(side / stride)


def test_every_weight_learns(backbone):
    backbone.train()
    sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 96))).backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_windows_are_joined_as_they_were_split():
    x = torch.randn(2, 14, 21, 3)
    windows = split_windows(x, 7)
    assert torch.equal(windows[1], x[0, :7, 7:14].reshape(49, 3))
    assert torch.equal(join_windows(windows, 7, 14, 21), x)


def test_a_shifted_window_keeps_far_tokens_apart():
    """Only tokens that are less than a window apart in the map, before it was rolled, may look at each other."""
    size, window, shift = 14, 7, 3
    place = torch.cartesian_prod(torch.arange(size), torch.arange(size)).view(1, size, size, 2)
    windows = split_windows(place.roll((-shift, -shift), (1, 2)), window)
    far = (windows[:, :, None] - windows[:, None]).abs().amax(-1) >= window
    assert torch.equal(shift_mask(size, size, window, shift, like=torch.zeros(())) == -100, far)


def test_swin_norms_only_what_it_returns():
    """The norm of a map that nobody reads would be a weight that never learns."""
    alone = SwinTransformer("tiny", stages=(4,))
    assert [name for name, _ in alone.named_children() if name.startswith("norm")] == ["norm3"]
    assert alone.channels == [768]
    assert sum(p.numel() for p in alone.parameters()) == 27_519_354


def test_later_blocks_of_swin_are_skipped_more_often():
    backbone = SwinTransformer("tiny", drop_path=0.22)
    rates = [block.drop_path.p for stage in backbone.layers for block in stage.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_leading_pieces_of_swin_can_be_frozen(frozen):
    backbone = SwinTransformer("tiny", frozen=frozen)
    fixed = {name.split(".blocks")[0].split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert fixed == set(["patch_embed", "layers"][:frozen])


def test_weights_of_classifiers_are_taken_and_the_rest_left_out():
    """Each under its authors' names, with head, final norms and second names of shared modules."""
    path, blocks = "mhca_stages.0.mhca_blks.1.MHCA_layers.0", "parallel_blocks.5"
    extras = {
        "swin": ["head.weight", "norm.weight", "layers.0.blocks.1.attn_mask", "layers.0.attn.relative_position_index"],
        "coat": ["head.weight", "norm4.bias", "aggregate.weight", "serial_blocks1.0.cpe.proj.weight"]
        + ["serial_blocks2.1.factoratt_crpe.crpe.conv_list.0.bias", f"{blocks}.mlp3.fc1.weight"]
        + [f"{blocks}.factoratt_crpe4.crpe.conv_list.2.bias"],
        "mpvit": ["cls_head.cls.weight", f"{path}.cpe.proj.bias", f"{path}.crpe.conv_list.1.bias"]
        + [f"{path}.factoratt_crpe.crpe.conv_list.1.bias"],
    }
    for kind, names in extras.items():
        backbone = SMALLEST[kind]()
        weights = {key: torch.ones_like(value) for key, value in backbone.state_dict().items()}
        if kind == "swin":
            weights = {key: value for key, value in weights.items() if not key.startswith("norm")}
        backbone.load_pretrained({**weights, **dict.fromkeys(names, torch.zeros(1))})
        assert all(p.eq(1).all() for name, p in backbone.named_parameters() if not name.startswith("norm"))
        with pytest.raises(RuntimeError, match="Missing"):
            backbone.load_pretrained(dict(list(weights.items())[1:]))


def test_pretrained_weights_are_named_and_not_fetched():
    released = SwinTransformer("tiny", pretrained="swin_tiny_patch4_window7_224").pretrained_source()
    assert released.startswith("https://")
    assert released.endswith("/swin_tiny_patch4_window7_224.pth")
    assert SwinTransformer("tiny", pretrained="mine.pth").pretrained_source() == "mine.pth"
    assert CoaT("lite_tiny", pretrained="coat.pth").pretrained_source() == "coat.pth"
    assert MPViT("tiny").pretrained_source() is None
    assert ResNetVd(18, pretrained="imagenet").pretrained_source().endswith("/ResNet18_vd_pretrained_from_paddle.pth")
    assert HGNetv2("B2", pretrained="imagenet").pretrained_source().endswith("/PPHGNetV2_B2_stage1.pth")
    assert ResNetVd(18, pretrained="vd.pth").pretrained_source() == "vd.pth"
    assert HGNetv2("B0").pretrained_source() is None
    tagged = TimmBackbone("test_convnext", pretrained="r160_in1k").pretrained_source()
    assert tagged == "hf-hub:timm/test_convnext.r160_in1k"
    assert TimmBackbone("test_convnext", pretrained="mine.pth").pretrained_source() == "mine.pth"


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_efficientnet"])
def test_timm_takes_the_weights_of_its_classifiers(name, tmp_path):
    torch.manual_seed(0)
    whole, backbone = timm.create_model(name).eval(), TimmBackbone(name).eval()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    backbone.load_pretrained(read_checkpoint(tmp_path / "model.safetensors"))
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(
            backbone(images)[-1], whole.forward_intermediates(images, intermediates_only=True)[-1]
        )
    with pytest.raises(RuntimeError, match="Missing"):
        backbone.load_pretrained({"head.weight": torch.zeros(1)})


def test_a_damaged_file_of_timm_is_said_to_be_one(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_timm_batch_norms_can_be_constants():
    frozen, own = TimmBackbone("test_resnet", norm="frozen"), TimmBackbone("test_resnet")
    assert len(list(frozen.parameters())) < len(list(own.parameters()))
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    frozen.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(before[key], value) for key, value in frozen.state_dict().items())


def test_timm_pads_images_and_cuts_maps():
    """Where the image is a multiple already, the divisor changes nothing; elsewhere maps are rounded up."""
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet", divisor=32).eval()
    images = torch.randn(1, 3, 75, 101)
    with torch.inference_mode():
        maps, whole = backbone(images), backbone.body(torch.nn.functional.pad(images, (0, 27, 0, 21)))
    assert [x.shape[2:] for x in maps] == [(10, 13), (5, 7), (3, 4)]
    assert all(torch.equal(x, y[..., : x.shape[2], : x.shape[3]]) for x, y in zip(maps, whole, strict=True))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("convnext_tyni", "no model 'convnext_tyni'; nearest: convnext_tiny"),
        ("vit_tiny_patch16_224", "has maps at strides \\[16\\], none at \\[8, 32\\]"),
        ("mixer_s16_224", "gives no feature maps|none at"),
    ],
)
def test_what_timm_lacks_is_said(name, told):
    node = ConfigDict(type="TimmBackbone", name=name)
    with pytest.raises(ConfigError, match=told):
        PARTS.build(node)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"type": "HGNetv2", "arch": "B7"}, "arch='B7' is none of HGNetv2's; "),
        ({"type": "HGNetv2", "norm": "group"}, "norm='group' is none of frozen, batch, sync"),
        ({"type": "HGNetv2", "stages": (0, 1)}, "must be some of 1, 2, 3, 4"),
        ({"type": "ResNetVd", "depth": 152}, "depth=152 is none of"),
        ({"type": "ResNetVd", "norm": "none"}, "norm='none' is none of frozen, batch, sync, group"),
        ({"type": "ResNetVd", "stages": ()}, "must be some of 1, 2, 3, 4"),
    ],
)
def test_what_these_networks_lack_is_said(options, told):
    with pytest.raises(ConfigError, match=told):
        PARTS.build(ConfigDict(options))


@pytest.mark.parametrize("kind", ["SwinTransformer", "CoaT", "MPViT"])
def test_an_unknown_size_is_answered_with_the_nearest(kind):
    with pytest.raises(ConfigError, match="did you mean '(lite_)?tiny'"):
        PARTS.build(ConfigDict(type=kind, arch="tinny"))


def resnet_of_random_norms(depth: int) -> ResNet:
    """With all stages, the last one dilated if it can."""
    torch.manual_seed(0)
    resnet = ResNet(depth, (1, 2, 3, 4), dilation=depth == 50)
    for module in resnet.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for numbers in (module.weight, module.bias, module.running_mean, module.running_var):
                torch.nn.init.uniform_(numbers, 0.5, 1.5)
    return resnet


def compare_without_gradients(depth: int, device: str):
    """A ResNet without gradients, where norms and what follows are computed within the convolutions, and with them."""
    resnet = resnet_of_random_norms(depth).to(device)
    images = torch.randn(2, 3, 65, 97, device=device).contiguous(memory_format=torch.channels_last)
    wanted = [x.detach() for x in resnet(images)]
    with torch.no_grad():
        found = resnet(images)
        with torch.autocast(device, torch.bfloat16):
            halves = resnet(images)
    for ours, half, expected in zip(found, halves, wanted, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        assert half.dtype == torch.bfloat16
        assert (half.float() - expected).norm() <= 3e-2 * expected.norm()


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_without_gradients(depth):
    compare_without_gradients(depth, "cpu")


@pytest.mark.parametrize("depth", [18, 50])
def test_fused_convolutions_are_given_what_plain_ones_are(depth, monkeypatch):
    resnet, images = resnet_of_random_norms(depth), torch.randn(1, 3, 65, 97)
    monkeypatch.setattr("models.layers.conv_norm.has_kernels", lambda *_: False)  # the CPU's own
    with torch.no_grad():
        wanted = resnet(images)
        convolve, calls = torch.nn.functional.conv2d, []

        def fused(x, weight, *more):
            *shortcut, bias, stride, padding, dilation, groups = more
            calls.append(len(shortcut))
            x = convolve(x, weight, bias, stride, padding, dilation, groups)
            return torch.relu(x + shortcut[0] * shortcut[1] if shortcut else x)

        monkeypatch.setattr(torch, "cudnn_convolution_relu", fused)
        monkeypatch.setattr(torch, "cudnn_convolution_add_relu", fused)
        monkeypatch.setattr("models.layers.conv_norm._has_fused_kernels", lambda *_: True)
        found = resnet(images)
    torch.testing.assert_close(found, wanted)
    assert calls.count(2) == {18: 8, 50: 16}[depth]  # one shortcut a block
    assert calls.count(0) == {18: 9, 50: 33}[depth]


@pytest.mark.parametrize("depth", [18, 50])
def test_folded_norms_learn_what_norms_apart_learn(depth):
    images, found = torch.randn(2, 3, 97, 129), []
    for apart in (False, True):
        resnet = resnet_of_random_norms(depth)  # the same weights each time
        if apart:  # norms that somebody looks into are called
            for module in resnet.modules():
                module.register_forward_hook(lambda *_: None)
        maps = resnet(images)
        gradients = torch.autograd.grad(
            sum(x.square().mean() for x in maps), [p for p in resnet.parameters() if p.requires_grad]
        )
        found.append((maps, gradients))
    for ours, theirs in zip(*(maps for maps, _ in found), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    for ours, theirs in zip(*(gradients for _, gradients in found), strict=True):
        assert (ours - theirs).norm() <= 5e-3 * theirs.norm()  # samples next to a ReLU's kink fall on either side


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_what_is_frozen_keeps_nothing_for_gradients(frozen):
    resnet = ResNet(18, stages=(1, 2, 3), frozen=frozen)
    images = torch.randn(1, 3, 64, 64)
    assert [x.requires_grad for x in resnet(images)] == [stage + 1 > frozen for stage in (1, 2, 3)]
    assert all(x.requires_grad for x in resnet(images.requires_grad_())), "images that have gradients keep them"


def test_a_backbone_in_evaluation_mode_rounds_as_the_papers_code_does():
    resnet, images = resnet_of_random_norms(18), torch.randn(1, 3, 97, 129)
    plain = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d).eval()
    plain.load_state_dict({**plain.state_dict(), **resnet.body.state_dict()})
    x = plain.maxpool(plain.relu(plain.bn1(plain.conv1(images))))
    x = plain.layer2(plain.layer1(x))
    assert torch.equal(resnet.eval()(images)[1], x)


@pytest.mark.parametrize("learns", [False, True])
def test_hooks_on_convolutions_and_norms_are_called(learns):
    resnet, seen = ResNet(18), []
    for module in resnet.modules():
        if isinstance(module, (torch.nn.Conv2d, FrozenBatchNorm2d)):
            module.register_forward_hook(lambda module, *_: seen.append(module))
    with torch.set_grad_enabled(learns):
        resnet(torch.randn(1, 3, 64, 64))
    assert len(seen) == len(set(seen)) == 40


def with_random_norms(network):
    """What norms and what is affine start as would hide that they are left out."""
    torch.manual_seed(0)
    for name, values in network.state_dict().items():
        if name.endswith("running_mean"):
            values.normal_()
        elif values.dim() == 1:
            values.uniform_(0.5, 1.5)
    return network.eval()


PUBLISHED = {
    "rt_detr/rtdetr_r18vd": (lambda: ResNetVd(18, norm="batch", frozen=0), 11_199_968, 0),
    "rt_detr/rtdetr_r34vd": (lambda: ResNetVd(34, norm="batch", frozen=0), 21_308_128, 0),
    "rt_detr/rtdetr_r50vd": (lambda: ResNetVd(50), 23_474_016, 28_512),
    "d_fine/dfine_hgnetv2_n": (lambda: HGNetv2("B0", True, (3, 4), "batch", frozen=0), 1_850_396, 0),
    "d_fine/dfine_hgnetv2_s": (lambda: HGNetv2("B0", True, norm="batch", frozen=0), 1_850_396, 0),
    "d_fine/dfine_hgnetv2_s_sizes3": (lambda: HGNetv2("B0", True, norm="batch", frozen=0), 1_850_396, 0),
    "d_fine/dfine_hgnetv2_m": (lambda: HGNetv2("B2", True, norm="batch", frozen=0), 6_026_626, 0),
    "d_fine/dfine_hgnetv2_l": (lambda: HGNetv2("B4"), 13_507_680, 24_928),
    "d_fine/dfine_hgnetv2_x": (lambda: HGNetv2("B5"), 33_231_840, 25_440),
}
"""{recording: (its backbone, how many parameters it has, how many of them do not train)}."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_time_backbones_have_the_published_parameters(name):
    build, total, frozen = PUBLISHED[name]
    with torch.device("meta"):
        backbone = build()
    assert sum(p.numel() for p in backbone.parameters()) == total
    assert sum(p.numel() for p in backbone.parameters() if not p.requires_grad) == frozen


RECORDED = Path(__file__).parents[3] / "shared" / "reference"


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_real_time_backbones_compute_what_the_papers_code_does(name, learns):
    """What a recording says of the maps: shapes, means, deviations, largest values."""
    file = RECORDED / f"{name}.json"
    if not file.exists():
        pytest.skip("there is no such recording")
    recorded, table = json.loads(file.read_text()), RT_DETR_BACKBONE if "rt_detr" in name else D_FINE_BACKBONE
    shapes = {key: tuple(entry["shape"]) for key, entry in recorded["state_dict"].items() if "backbone." in key}
    backbone = PUBLISHED[name][0]().eval()
    backbone.load_pretrained(renamed({key: filled(key, shape) for key, shape in shapes.items()}, table))
    with torch.set_grad_enabled(learns):
        maps = backbone(torch.stack([make_image(h, w, float(i)) for i, (h, w) in enumerate(recorded["sizes"])]))
    for i, x in enumerate(x.detach().double() for x in maps):
        wanted = recorded["features"][f"backbone.{i}"]
        found = {"mean": x.mean(), "std": x.std(correction=0), "absmax": x.abs().max()}
        assert list(x.shape) == wanted["shape"]
        assert {key: value.item() for key, value in found.items()} == pytest.approx(
            {key: wanted[key] for key in found}, abs=1e-5
        )
    assert f"backbone.{len(maps)}" not in recorded["features"]


def renamed(weights, table):
    """What a key table makes of weights, each by one rule."""
    names = {}
    for key in weights:
        if not DERIVED.search(key):
            (rule,) = (rule for rule in table.items() if re.match(rule[0], key))
            names[key] = re.sub(*rule, key)
    return {name: weights[key] for key, name in names.items()}


@pytest.mark.parametrize("name", ["resnet50d", "hgnetv2_b0", "hgnetv2_b4"])
def test_timms_networks_are_the_same(name):
    theirs = with_random_norms(timm.create_model(name))
    ours = ResNetVd(50) if name == "resnet50d" else HGNetv2(name[-2:].upper(), affine=name.endswith("b0"))
    ours.load_pretrained(theirs.state_dict())
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        found, wanted = ours.eval()(images)[-1], theirs.forward_features(images)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "B0", "B4"])
def test_transformers_networks_are_the_same(kind):
    """Under their names in detectors of transformers."""
    transformers = pytest.importorskip("transformers")
    last = {"out_features": ["stage2", "stage3", "stage4"]}
    if kind in ("basic", "bottleneck"):
        depth, sizes = (18, [64, 128, 256, 512]) if kind == "basic" else (50, [256, 512, 1024, 2048])
        depths = {"depths": [2, 2, 2, 2]} if kind == "basic" else {}
        config = transformers.RTDetrResNetConfig(layer_type=kind, hidden_sizes=sizes, **depths, **last)
        theirs, ours = transformers.RTDetrResNetBackbone(config), ResNetVd(depth, norm="batch")
        table = HUGGINGFACE_RT_DETR_BACKBONE
    else:
        ours, table = HGNetv2(kind, affine=kind == "B0", norm="batch"), HUGGINGFACE_D_FINE_BACKBONE
        theirs = transformers.HGNetV2Backbone(transformers.HGNetV2Config(**hgnetv2_of_transformers(kind), **last))
    weights = with_random_norms(theirs).state_dict()
    ours.load_pretrained(renamed({f"model.backbone.model.{key}": value for key, value in weights.items()}, table))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for found, wanted in zip(ours.eval()(images), theirs(images).feature_maps, strict=True):
            assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def hgnetv2_of_transformers(arch):
    """What transformers' config says of a network."""
    within, widths, blocks, layers = {
        "B0": ([16, 32, 64, 128], [16, 64, 256, 512, 1024], [1, 1, 2, 1], 3),
        "B4": ([48, 96, 192, 384], [48, 128, 512, 1024, 2048], [1, 1, 3, 1], 6),
    }[arch]
    return {
        "stem_channels": [3, 16 if arch == "B0" else 32, widths[0]],
        "embedding_size": widths[0],
        "hidden_sizes": widths[1:],
        "stage_in_channels": widths[:-1],
        "stage_mid_channels": within,
        "stage_out_channels": widths[1:],
        "stage_num_blocks": blocks,
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False, False, True, True],
        "stage_kernel_size": [3, 3, 5, 5],
        "stage_numb_of_layers": [layers] * 4,
        "use_learnable_affine_block": arch == "B0",
    }


REAL_TIME = {
    "resnet_vd_18": lambda **options: ResNetVd(18, **options),
    "resnet_vd_50": lambda **options: ResNetVd(50, **options),
    "hgnetv2": lambda **options: HGNetv2("B0", **options),
    "hgnetv2_affine": lambda **options: HGNetv2("B0", affine=True, **options),
}


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("kind", REAL_TIME)
def test_real_time_backbones_without_gradients(kind, norm):
    """Norms within convolutions, and norms apart; the images keep their numbers."""
    backbone = with_random_norms(REAL_TIME[kind](norm=norm, stages=(1, 2, 3, 4)))
    backbone = backbone.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 65, 97).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    wanted = backbone(images)
    with torch.no_grad():
        found = backbone(images)
    assert torch.equal(images, before)
    assert [x.shape[1] for x in found] == backbone.channels
    for ours, expected in zip(found, wanted, strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert (ours - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("kind", REAL_TIME)
def test_batch_norms_of_real_time_backbones_count_what_they_see(kind):
    """Also those of a frozen stem, as in the papers' code; frozen norms stay."""
    for norm in ("batch", "frozen"):
        backbone = REAL_TIME[kind](norm=norm, frozen=1).train()
        before = {name: value.clone() for name, value in backbone.state_dict().items() if "running" in name}
        backbone(torch.randn(2, 3, 64, 64))
        after = backbone.state_dict()
        assert [torch.equal(value, after[name]) for name, value in before.items()] == [norm == "frozen"] * len(before)
        counts = [value.item() for name, value in after.items() if name.endswith("num_batches_tracked")]
        assert counts == [1] * (len(before) // 2 if norm == "batch" else 0)


@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize("kind", REAL_TIME)
def test_leading_pieces_of_real_time_backbones_can_be_frozen(kind, frozen):
    backbone = REAL_TIME[kind](norm="batch", frozen=frozen, stages=(1, 2, 3))
    maps = backbone(torch.randn(2, 3, 64, 64))
    assert [x.requires_grad for x in maps] == [stage + 1 > frozen for stage in (1, 2, 3)]
    pieces = [("conv1.", "stem."), *((f"res_layers.{i}.", f"stages.{i}.") for i in range(3))][:frozen]
    fixed = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert fixed == {name for name, _ in backbone.named_parameters() if any(name.startswith(p) for p in pieces)}


@pytest.mark.parametrize("kind", REAL_TIME)
def test_real_time_backbones_take_weights_of_whole_networks(kind):
    """Of classifiers and of detectors, though they have fewer stages themselves; nothing may be missing."""
    classifier = "head.fc.bias" if kind.startswith("hgnetv2") else "fc.bias"
    marked = {name: torch.full_like(value, 0.5) for name, value in REAL_TIME[kind]().state_dict().items()}
    for prefix, more in (("", classifier), ("backbone.", "decoder.weight")):
        backbone = REAL_TIME[kind](stages=(2, 3))
        backbone.load_pretrained({**{prefix + name: value for name, value in marked.items()}, more: torch.zeros(1)})
        assert all(p.eq(0.5).all() for p in backbone.parameters())
    with pytest.raises(RuntimeError, match="Missing"):
        backbone.load_pretrained(dict(list(marked.items())[1:]))


def test_resnet_vd_says_whose_weights_it_was_given():
    with pytest.raises(RuntimeError, match="`ResNet` takes them"):
        ResNetVd(18).load_pretrained(torchvision.models.resnet18().state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_without_gradients_on_a_gpu(depth, monkeypatch):
    fused = Mock(wraps=torch.cudnn_convolution_add_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", fused)
    allow_tf32(False)
    compare_without_gradients(depth, "cuda")
    assert fused.called
