"""How images reach a model, by type of augmentation and resize and by normalisation; batches of sides of their own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms import v2

from datasets import distortion
from datasets.distortion import DistortZoomCrop, crop_by_overlap, distort_colours, without_small, zoom_out
from datasets.loader import build_dataset, build_loader
from datasets.multi_scale import MultiScale
from datasets.preparation import build_preparation, describe_preparation
from datasets.shapes import make_shapes
from datasets.transforms import EvalTransform, Sample, Stretch
from tests.tiny import ROOT
from tools.export import OnImage
from tools.lib import drawings
from util.config import ConfigError, load_config, merge_configs

BOXES = np.float32([[10, 20, 60, 80], [30, 5, 75, 40], [0, 0, 9, 9]])
SQUARE = {"type": "DistortZoomCrop", "height": 64, "width": 64, "stop_epoch": 3}


def sample(height=90, width=80, boxes=BOXES):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(Image.fromarray(pixels), boxes, np.arange(len(boxes)))


def as_torchvision(given):
    size = given.image.size[::-1]
    boxes = tv_tensors.BoundingBoxes(torch.from_numpy(given.boxes), format="XYXY", canvas_size=size)
    return {"image": given.image, "boxes": boxes, "labels": torch.from_numpy(given.labels)}


class Draws:
    """PyTorch's functions that draw, fed from NumPy's generator."""

    def __init__(self, rng):
        self.rng = rng

    def rand(self, *shape, **_):
        shape = shape[0] if shape and isinstance(shape[0], tuple) else shape
        return torch.tensor(self.rng.random(shape or None), dtype=torch.float64)

    def randint(self, low, high, size):
        return torch.tensor(self.rng.integers(high - low, size=size) + low)

    def randperm(self, count):
        return torch.tensor(self.rng.permutation(count))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (zoom_out, v2.RandomZoomOut(fill=0, p=1)),
        (crop_by_overlap, v2.RandomIoUCrop()),
        (lambda given, rng: distort_colours(given, rng, 0.5), v2.RandomPhotometricDistort()),
    ],
)
def test_with_the_same_draws_it_is_torchvisions(ours, theirs, monkeypatch):
    given, changed = sample(), 0
    for seed in range(40):
        found = without_small(ours(given, np.random.default_rng(seed)))
        draws = Draws(np.random.default_rng(seed))
        with monkeypatch.context() as patched:
            for name in ("rand", "randint", "randperm"):
                patched.setattr(torch, name, getattr(draws, name))
            patched.setattr(v2.ColorJitter, "_generate_value", staticmethod(draws.rng.uniform))
            if isinstance(theirs, v2.RandomZoomOut):  # whether it does at all is drawn by whoever calls ours
                expected = theirs.transform
                params = theirs.make_params([given.image])
                wanted = {
                    name: expected(value, params) for name, value in as_torchvision(given).items() if name != "labels"
                }
                wanted["labels"] = torch.from_numpy(given.labels)
            else:
                wanted = theirs(as_torchvision(given))
        wanted = v2.SanitizeBoundingBoxes(min_size=1)(wanted)
        np.testing.assert_array_equal(np.array(found.image), np.array(wanted["image"]))
        np.testing.assert_allclose(found.boxes, wanted["boxes"].numpy(), rtol=1e-6)
        assert found.labels.tolist() == wanted["labels"].tolist()
        changed += np.array(found.image).shape != np.array(given.image).shape or not np.array_equal(
            found.image, given.image
        )
    assert changed > 20


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), max_size=4),
    st.sampled_from([(90, 80), (1, 300), (300, 1), (1, 1), (2, 5)]),
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_any_image_comes_out_square_with_boxes_of_a_pixel_inside(shares, size, seed):
    height, width = size
    corners = [(min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height) for a, b, c, d in shares]
    found = DistortZoomCrop(64, 48)(
        sample(height, width, np.float32(corners).reshape(-1, 4)), np.random.default_rng(seed)
    )
    assert found.image.size == (48, 64)
    assert len(found.boxes) == len(found.labels) <= len(shares)
    assert ((found.boxes >= 0) & (found.boxes <= np.float32([48, 64] * 2) + 1e-3)).all()
    assert (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all()


def test_without_objects_nothing_is_cropped():
    given = sample(boxes=np.zeros((0, 4), np.float32))
    assert crop_by_overlap(given, np.random.default_rng(0)) is given


def test_how_often_it_happens(monkeypatch):
    counts = dict.fromkeys(("zoom_out", "crop_by_overlap"), 0)
    for name in counts:

        def counted(given, rng, name=name):
            counts[name] += 1
            return given

        monkeypatch.setattr(distortion, name, counted)
    transform, rng = DistortZoomCrop(8, 8, distort=0.0), np.random.default_rng(0)
    for _ in range(1000):
        transform(sample(9, 8), rng)
    assert abs(counts["zoom_out"] - 500) < 60
    assert abs(counts["crop_by_overlap"] - 800) < 50


def test_from_stop_epoch_on_only_flips_and_the_stretch_are_left():
    given, transform = sample(), DistortZoomCrop(64, 64, stop_epoch=3)
    plain = {given.stretch(64, 64).image.tobytes(), given.hflip().stretch(64, 64).image.tobytes()}
    for epoch, expected in ((2, False), (3, True), (9, True)):
        of_epoch = Sample(given.image, given.boxes, given.labels, epoch)
        found = {transform(of_epoch, np.random.default_rng(seed)).image.tobytes() for seed in range(12)}
        assert (found == plain) is expected


def test_a_stretch_is_pillows_antialiased_one():
    found = Stretch(32, 48)(sample())
    expected = v2.functional.resize(sample().image, [32, 48], antialias=True)
    assert np.array_equal(np.array(found.image), np.array(expected))
    np.testing.assert_allclose(found.boxes, BOXES * np.float32([48 / 80, 32 / 90] * 2), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- of a config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    make_shapes(folder, train=13, val=2)
    return folder


def config(root, **changes):
    options = {"data.root": str(root), "data.normalize": None, "data.augment": SQUARE}
    options |= {"data.multi_scale": {"sides": (32, 64, 96), "stop_epoch": 3}, "data.resize": {"type": "Stretch"}}
    return load_config(ROOT / "config/small/lite_dino_r18_shapes.py", options | changes)


def batches(root, workers=0, epoch=0, images=0, **changes):
    cfg = config(root, **changes)
    loader = build_loader(build_dataset(cfg, "train", seed=5), 2, workers)
    loader.sampler.start_at(epoch, images)
    return list(loader)


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.images.images, b.images.images)
        assert a.images.sizes == b.images.sizes
        for one, other in zip(a.targets, b.targets, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_batches_have_sides_of_their_own_whoever_makes_them(root):
    found = batches(root)
    sides = [batch.images.images.shape[-1] for batch in found]
    assert len(set(sides)) > 1
    assert set(sides) <= {32, 64, 96}
    for batch, side in zip(found, sides, strict=True):
        assert batch.images.images.shape == (2, 3, side, side)
        assert batch.images.sizes == ((side, side),) * 2
        assert not batch.images.padding.any()
        assert all(target["size"].tolist() == [side, side] for target in batch.targets)
        assert 0 <= batch.images.images.min() <= batch.images.images.max() <= 1
    assert_equal(found, batches(root, workers=2))
    assert_equal(found[2:], batches(root, images=4))
    assert_equal(found[2:], batches(root, workers=1, images=4))
    assert [batch.images.images.shape[-1] for batch in batches(root, epoch=1)] != sides
    assert {batch.images.images.shape[-1] for batch in batches(root, epoch=3)} == {64}


def test_other_sides_are_the_nearest_pixels(root):
    changed, plain = batches(root), batches(root, **{"data.multi_scale": None})
    for batch, whole in zip(changed, plain, strict=True):
        assert torch.equal(batch.images.images, interpolate(whole.images.images, batch.images.images.shape[-2:]))
        for one, other in zip(batch.targets, whole.targets, strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


def test_sides_are_drawn_as_often_as_they_are_listed():
    scale = MultiScale((32, 64, 64, 64))
    item = (torch.zeros(3, 64, 64), {})
    drawn = [scale([item], np.random.default_rng((0, 0, n, 0, 1)), 0)[0][0].shape[-1] for n in range(400)]
    assert abs(drawn.count(64) - 300) < 30


def test_oblong_images_keep_their_ratio():
    scale = MultiScale((480, 800))
    assert scale.size(480, 384, 640) == (288, 480)
    assert scale.size(800, 640, 384) == (800, 480)
    assert scale.size(64, 640, 10) == (64, 32)
    assert scale.largest([(384, 640)] * 2) == [(480, 800)] * 2


def test_the_largest_batch(root):
    assert build_dataset(config(root), "train").largest_batch(3) == [(96, 96)] * 3
    usual = config(root, **{"data.multi_scale": None, "data.augment": {"type": "TrainTransform"}})
    usual.data.augment.update(scales=(480, 800), max_size=1333)
    assert build_dataset(usual, "train").largest_batch(3) == [(800, 1333), (1333, 800), (800, 1333)]


def test_evaluation_stretches(root):
    image, target = build_dataset(config(root), "val")[0]
    assert image.shape == (3, 640, 640)
    assert target["size"].tolist() == [640, 640]
    assert target["orig_size"].tolist() != [640, 640]


@pytest.mark.parametrize("resize", [{"scale": 40, "max_size": 60}, {"type": "Stretch", "height": 40, "width": 56}])
@pytest.mark.parametrize("normalize", ["imagenet", None])
def test_a_preparation_is_what_the_data_set_does(root, resize, normalize):
    cfg = config(root, **{"data.normalize": normalize})
    cfg.data.resize = type(cfg.data)(resize)
    dataset = build_dataset(cfg, "val")
    prepare = build_preparation(cfg.data)
    assert torch.equal(prepare(dataset.load_image(1)), dataset[1][0])
    assert prepare.resize.size == ((40, 53) if "scale" in resize else (40, 56))


def test_configs_without_a_word_of_it_are_as_they_were():
    cfg = load_config(ROOT / "config/DINO/dino_4scale_r50.py")
    del cfg.data["normalize"], cfg.data["multi_scale"]
    prepare = build_preparation(cfg.data)
    assert (type(prepare.resize), prepare.normalize) == (EvalTransform, "imagenet")
    mean, std = prepare(Image.new("RGB", (8, 8), (255, 0, 0)))[:, 0, 0], torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(mean, (torch.tensor([1.0, 0, 0]) - torch.tensor([0.485, 0.456, 0.406])) / std)


def test_naming_a_type_leaves_no_options_of_the_other_one():
    base = load_config(ROOT / "config/DINO/dino_4scale_r50.py").data.to_dict()
    recipe = load_config(ROOT / "config/_base_/rt_detr_recipe.py").data.to_dict()
    merged = merge_configs(base, recipe)
    assert merged["augment"] == recipe["augment"]
    assert merged["resize"] == {"type": "Stretch", "height": 640, "width": 640}


WITH_STOPS = [path for family in ("rt_detr", "d_fine") for path in sorted((ROOT / "config" / family).glob("*.py"))]


@pytest.mark.parametrize("path", WITH_STOPS, ids=lambda path: path.stem)
def test_one_option_says_when_strong_augmentation_ends(path):
    cfg = load_config(path, {"stop_epoch": 5})
    stops = [cfg.data.augment.stop_epoch, *([cfg.data.multi_scale.stop_epoch] if cfg.data.multi_scale else [])]
    stops += [cfg.training.restart.epoch] if cfg.training.restart else []
    assert stops == [5] * len(stops)
    assert describe_preparation(cfg.data)
    whole = load_config(path)
    if whole.training.restart:
        assert whole.data.augment.stop_epoch == whole.training.restart.epoch < whole.schedule.epochs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.normalize": "zero"}, r"data.normalize: 'zero' is none of 'imagenet', None"),
        ({"data.augment": {"type": "DistortZoom"}}, r"data.augment: there is no type 'DistortZoom'; did you mean"),
        ({"data.augment": {"type": "DistortZoomCrop", "crop": 2}}, r"DistortZoomCrop: crop=2 must lie between 0 and 1"),
        ({"data.augment": {"type": "DistortZoomCrop", "scales": (3,)}}, "DistortZoomCrop has no option 'scales'"),
        ({"data.augment": {"type": "DistortZoomCrop", "stop_epoch": -1}}, r"stop_epoch=-1 must be 0 or more, or None"),
        (
            {"data.augment": {"type": "TrainTransform", "scales": (32,), "max_size": 64}},
            "needs data.augment of the type",
        ),
        ({"data.multi_scale": {"sides": (50,)}}, r"data.multi_scale: MultiScale: sides: \[50\] are no multiples of 32"),
        ({"data.multi_scale": {"sides": ()}}, r"sides: \(\) should be whole numbers of pixels"),
        ({"data.resize": {"type": "Stretch", "height": 0}}, r"data.resize: Stretch: height: \(0,\) should be"),
        ({"data.resize": {"type": "Stretch", "scale": 640}}, r"Stretch has no option 'scale'"),
    ],
)
def test_sections_that_make_no_sense(root, changes, message):
    with pytest.raises(ConfigError, match=message):
        describe_preparation(config(root, **changes).data)


def test_what_is_said_of_sizes(root):
    (line,) = describe_preparation(config(root).data)
    assert "in training stretched to 64 x 64, distorted and cropped until epoch 3, batches then 32 to 96 until" in line
    assert "in evaluation stretched to 640 x 640" in line


@pytest.mark.parametrize("normalize", ["imagenet", None])
def test_sheets_and_programs_follow_the_normalisation(root, normalize, monkeypatch):
    plain = {"type": "DistortZoomCrop", "height": 64, "width": 64, "stop_epoch": 0, "flip": 0.0}
    dataset = build_dataset(config(root, **{"data.normalize": normalize, "data.augment": plain}), "train")
    image = np.array(dataset.load_image(0).resize((64, 64), Image.Resampling.BILINEAR))
    drawn = []
    monkeypatch.setattr(drawings, "draw_boxes", lambda shown, boxes: drawn.append(np.array(shown)) or shown)
    drawings.draw_augmented(dataset, [0], epochs=1)
    np.testing.assert_array_equal(drawn, [image])
    seen, output = [], SimpleNamespace(logits=None, boxes=None)
    found = {"scores": None, "labels": None, "boxes": None}
    model = OnImage(torch.nn.Identity(), lambda *_: [found], (64, 64), normalize)
    model.detector.forward = lambda batch: seen.append(batch.images) or output
    model(torch.from_numpy(image))
    torch.testing.assert_close(seen[0][0], dataset[0][0])
