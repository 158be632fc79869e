"""Images made of several: mosaics, blended batches, and when they begin and end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets import distortion
from datasets.distortion import DistortZoomCrop
from datasets.images import CorruptImageError
from datasets.loader import build_dataset
from datasets.mixing import MixUp, Mosaic
from datasets.preparation import describe_preparation
from datasets.shapes import make_shapes
from datasets.span import Span
from datasets.transforms import Sample, TrainTransform
from tests.datasets.test_preparation import assert_equal, batches, config
from tests.tiny import ROOT
from util.config import ConfigError, load_config

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
ALWAYS = {"data.mosaic": {"probability": 1.0, "side": 32}, "data.mixup": {"probability": 1.0}}
PLAIN = {"type": "DistortZoomCrop", "height": 64, "width": 64, "stop_epoch": 0, "flip": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "data"
    make_shapes(folder, train=13, val=2)
    return folder


def rectangles() -> list[Sample]:
    """Four images of sizes of their own with a rectangle each, of the class and colour of its place."""
    made = []
    for number, colour in enumerate(COLOURS):
        width, height = 90 + 30 * number, 140 - 20 * number
        image = Image.new("RGB", (width, height), (16, 16, 16))
        box = (width // 4, height // 3, width * 3 // 4, height * 2 // 3)
        image.paste(colour, box)
        made.append(Sample(image, np.float32([box]), np.array([number]), epoch=7))
    return made


def nothing() -> Sample:
    return Sample(Image.new("RGB", (30, 20)), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def marked(image: Image.Image, label: int) -> np.ndarray:
    """x0, y0, x1, y1 of the pixels that have a class' colour."""
    rows, columns = (np.abs(np.array(image).astype(int) - COLOURS[label]).max(-1) < 128).nonzero()
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


# ------------------------------------------------------------------------------------------------------------- mosaics


@pytest.mark.parametrize("seed", range(12))
def test_boxes_of_a_mosaic_lie_on_what_they_mark(seed):
    found = Mosaic(side=160)(rectangles(), np.random.default_rng(seed))
    assert found.image.size == (320, 320)
    assert (found.mosaic, found.epoch) == (True, 7)
    whole = (found.boxes > 0).all(1) & (found.boxes < 320).all(1)
    assert whole.any()
    for box, label in zip(found.boxes[whole], found.labels[whole], strict=True):
        np.testing.assert_allclose(marked(found.image, label), box, atol=2)
    for box, label in zip(found.boxes[~whole], found.labels[~whole], strict=True):  # cut, and enclosing what was turned
        x0, y0, x1, y1 = marked(found.image, label)
        assert (box[:2] <= (x0 + 2, y0 + 2)).all()
        assert (box[2:] >= (x1 - 2, y1 - 2)).all()


def test_without_a_move_it_is_four_stretched_quarters():
    found = Mosaic(side=40, rotation=0.0, shift=0.0, scale=(1.0, 1.0))(rectangles(), np.random.default_rng(0))
    for sample, (across, down) in zip(rectangles(), ((0, 0), (40, 0), (0, 40), (40, 40)), strict=True):
        quarter = found.image.crop((across, down, across + 40, down + 40))
        assert np.array_equal(np.array(quarter), np.array(sample.stretch(40, 40).image))
    assert found.labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.boxes[3], (50, 40 + 80 / 6, 70, 40 + 160 / 6), atol=0.5)


def test_what_leaves_the_square_goes():
    corners = [Sample(Image.new("RGB", (40, 40)), np.float32([[0, 0, 3, 3]]), np.array([n])) for n in range(4)]
    kept = set()
    for seed in range(60):
        found = Mosaic(side=40, scale=(1.4, 1.5))(corners, np.random.default_rng(seed))
        assert len(found.boxes) == len(found.labels)
        assert ((found.boxes >= 0) & (found.boxes <= 80)).all()
        assert (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all()
        kept.add(len(found.boxes))
    assert min(kept) < 3


def test_images_without_objects_make_mosaics_too():
    found = Mosaic(side=16)([nothing()] * 4, np.random.default_rng(0))
    assert found.boxes.shape == (0, 4)
    assert found.boxes.dtype == np.float32
    assert DistortZoomCrop(64, 64)(found, np.random.default_rng(0)).tensors()[1]["boxes"].shape == (0, 4)
    assert Mosaic(side=160)([nothing(), *rectangles()[1:]], np.random.default_rng(3)).labels.min() >= 1


def test_how_often_and_which():
    mosaic, rng = Mosaic(start_epoch=4, stop_epoch=8), np.random.default_rng(0)
    drawn = [mosaic.partners(5, rng, 4) for _ in range(400)]
    assert abs(sum(map(bool, drawn)) - 200) < 40
    assert {len(one) for one in drawn} == {0, 3}
    assert {number for one in drawn for number in one} == set(range(5))
    assert not any(mosaic.partners(5, rng, epoch) for epoch in (0, 3, 8, 99) for _ in range(20))


def test_mosaics_are_neither_put_on_canvases_nor_cropped(monkeypatch):
    for name in ("zoom_out", "crop_by_overlap"):
        monkeypatch.setattr(distortion, name, lambda *_: pytest.fail("a mosaic has been scaled and cut"))
    mosaic = Mosaic(side=32)(rectangles(), np.random.default_rng(0))
    changed = [DistortZoomCrop(64, 64, distort=1.0, zoom_out=1, crop=1)(mosaic, np.random.default_rng(0)).image]
    changed.append(DistortZoomCrop(64, 64, distort=0.0)(mosaic, np.random.default_rng(0)).image)
    assert not np.array_equal(*map(np.array, changed))


def test_detrs_augmentation_takes_mosaics(root):
    transform = TrainTransform(scales=(48,), max_size=64)
    dataset = build_dataset(config(root, **{"data.multi_scale": None, **ALWAYS, "data.mixup": None}), "train")
    dataset.transform = transform
    image, target = dataset[0, 0]
    assert image.shape == (3, 48, 48)
    assert target["orig_size"].tolist() == [64, 64]


# --------------------------------------------------------------------------------------------------------------- blends


def items(count: int) -> list[tuple[Tensor, dict]]:
    def one(number: int) -> tuple[Tensor, dict]:
        boxes = torch.full((number, 4), number / 10)
        target = {"labels": torch.full((number,), number), "boxes": boxes, "image_id": torch.tensor(number)}
        return torch.full((3, 4, 4), float(number)), {**target, "corrupt": [str(number)]}

    return [one(number) for number in range(count)]


def test_blends_have_the_objects_of_both():
    shares = set()
    for seed in range(40):
        found = MixUp(probability=1.0)(items(3), np.random.default_rng(seed), 0)
        assert [target["labels"].tolist() for _, target in found] == [[2, 2], [1], [2, 2, 1]]
        assert [len(target["boxes"]) for _, target in found] == [2, 1, 3]
        assert [target["corrupt"] for _, target in found] == [["0"], ["1"], ["2"]]
        assert [int(target["image_id"]) for _, target in found] == [0, 1, 2]
        share = float(found[1][0][0, 0, 0])  # of 1 and 0
        assert 0.45 <= share <= 0.55
        torch.testing.assert_close(found[0][0], torch.full((3, 4, 4), 2 * (1 - share)))
        torch.testing.assert_close(found[2][0], torch.full((3, 4, 4), 2 * share + 1 - share))
        shares.add(share)
    assert len(shares) == 40
    assert max(shares) - min(shares) > 0.08


def test_how_often_batches_are_blended():
    mixup, given = MixUp(start_epoch=4, stop_epoch=8), items(2)
    blended = [mixup(given, np.random.default_rng(seed), 5) is not given for seed in range(400)]
    assert abs(sum(blended) - 200) < 40
    assert all(mixup(given, np.random.default_rng(0), epoch) is given for epoch in (0, 3, 8, 99))


def test_a_batch_of_one_has_nobody_to_blend_with():
    given = items(2)[1:]
    assert MixUp(probability=1.0)(given, np.random.default_rng(0), 0) == given


# ----------------------------------------------------------------------------------------------------------- of a split


def test_whoever_makes_them_they_are_the_same(root):
    often = {"data.mosaic": {"side": 32}, "data.mixup": {}}
    found = batches(root, **often)
    assert_equal(found, batches(root, workers=2, **often))
    assert_equal(found[2:], batches(root, workers=1, images=4, **often))
    with pytest.raises(AssertionError):
        assert_equal(found, batches(root, epoch=1, **often))


def test_they_change_nothing_else(root):
    plain = batches(root)
    never = {"data.mosaic": {"probability": 0.0, "side": 32}, "data.mixup": {"probability": 0.0}}
    assert_equal(plain, batches(root, **never))
    late = {"data.mosaic": {"side": 32, "start_epoch": 1}, "data.mixup": {"start_epoch": 1}}
    assert_equal(plain, batches(root, **late))
    sides = [batch.images.images.shape for batch in plain]
    assert [batch.images.images.shape for batch in batches(root, **ALWAYS)] == sides


def test_a_blended_batch_is_that_of_its_images(root):
    changes = {"data.multi_scale": None}
    for whole, blend in zip(batches(root, **changes), batches(root, **changes, **{"data.mixup": {}}), strict=True):
        first, last = whole.images.images
        counts = [len(target["labels"]) for target in blend.targets]
        if torch.equal(blend.images.images, whole.images.images):
            assert counts == [len(target["labels"]) for target in whole.targets]
            continue
        assert counts == [sum(len(target["labels"]) for target in whole.targets)] * 2
        torch.testing.assert_close(blend.images.images.sum(0), first + last)


def test_most_objects(root):
    most = build_dataset(config(root), "train").annotations.most_objects()
    for changes, times in ((ALWAYS, 8), ({"data.mosaic": {}}, 4), ({"data.mixup": {}}, 2), ({}, 1)):
        dataset = build_dataset(config(root, **changes), "train")
        assert dataset.most_objects() == times * most
        assert all(len(target["labels"]) <= times * most for _, target in dataset.__getitems__([(0, 0), (1, 0)]))


def test_evaluation_sees_images_as_they_are(root):
    assert_equal_items(*(build_dataset(config(root, **changes), "val")[0] for changes in ({}, ALWAYS)))


def assert_equal_items(one: tuple[Tensor, dict], other: tuple[Tensor, dict]):
    assert torch.equal(one[0], other[0])
    assert all(torch.equal(one[1][name], other[1][name]) for name in ("labels", "boxes", "orig_size"))


def test_a_data_set_of_one_image_is_in_all_quarters(root):
    dataset = build_dataset(config(root, **{"data.augment": PLAIN, **ALWAYS}), "train")
    dataset.annotations = dataset.annotations.head(1)
    still = {"rotation": 0.0, "shift": 0.0, "scale": (1.0, 1.0)}
    dataset.mosaic = Mosaic(1.0, 32, **still)
    image, target = dataset[0, 0]
    for rows in (slice(0, 32), slice(32, 64)):
        for columns in (slice(0, 32), slice(32, 64)):
            assert torch.equal(image[:, rows, columns], image[:, :32, :32])
    assert len(target["labels"]) == 4 * len(dataset.annotations.boxes)


def broken(tmp_path, count: int) -> Path:
    """A data set of 13 images of which the first ones cannot be read."""
    folder = tmp_path / "data"
    make_shapes(folder, train=13, val=2)
    listed = json.loads((folder / "annotations/instances_train2017.json").read_text())
    for entry in listed["images"][:count]:
        (folder / "train2017" / entry["file_name"]).write_bytes(b"no image")
    return folder


def test_corrupt_images_of_a_mosaic_are_replaced_and_reported(tmp_path):
    dataset = build_dataset(config(broken(tmp_path, 3), **ALWAYS, **{"data.multi_scale": None}), "train", seed=1)
    found = [dataset[index, 0] for index in range(3, 13)]
    assert all(
        int(target["image_id"]) == int(dataset.annotations.image_ids[3 + n]) for n, (_, target) in enumerate(found)
    )
    said = [message for _, target in found for message in target["corrupt"]]
    assert len(set(said)) == 3
    assert any(not target["corrupt"] for _, target in found)
    assert_equal_items(found[0], dataset[3, 0])


def test_too_many_corrupt_images_of_a_mosaic_end_the_training(tmp_path):
    dataset = build_dataset(config(broken(tmp_path, 12), **ALWAYS), "train")
    with pytest.raises(CorruptImageError, match=r"10 images in a row .*data.corrupt.in_a_row allows more"):
        [dataset[12, epoch] for epoch in range(9)]


# ----------------------------------------------------------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("span", "inside", "said"),
    [
        (Span(), (0, 1, 2, 3, 4, 5), ""),
        (Span(2), (2, 3, 4, 5), " from epoch 2"),
        (Span(0, 3), (0, 1, 2), " until epoch 3"),
        (Span(2, 4), (2, 3), " from epoch 2 until epoch 4"),
        (Span(0, 0), (), " until epoch 0"),
    ],
)
def test_spans(span, inside, said):
    assert tuple(epoch for epoch in range(6) if epoch in span) == inside
    assert str(span) == said


def test_strong_augmentation_begins_and_ends():
    given, transform = rectangles()[0], DistortZoomCrop(64, 64, start_epoch=2, stop_epoch=4)
    plain = {given.stretch(64, 64).image.tobytes(), given.hflip().stretch(64, 64).image.tobytes()}
    for epoch in range(6):
        of_epoch = Sample(given.image, given.boxes, given.labels, epoch)
        found = {transform(of_epoch, np.random.default_rng(seed)).image.tobytes() for seed in range(12)}
        assert (found == plain) is (epoch not in (2, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.mosaic": {"probability": 1.5}}, r"data.mosaic: Mosaic: probability=1.5 must lie between 0 and 1"),
        ({"data.mosaic": {"propability": 0.5}}, r"Mosaic has no option 'propability'; did you mean 'probability'"),
        ({"data.mosaic": {"side": 0}}, r"side: \(0,\) should be whole numbers of pixels"),
        ({"data.mosaic": {"rotation": -1}}, r"rotation=-1 must lie between 0 and 180"),
        ({"data.mosaic": {"shift": 2}}, r"shift=2 must lie between 0 and 1"),
        ({"data.mosaic": {"scale": (1.5, 0.5)}}, r"scale=\(1.5, 0.5\) should be two numbers, the lower one first"),
        ({"data.mosaic": {"scale": ("a", 1)}}, r"scale=\('a', 1\) should be two numbers"),
        ({"data.mosaic": {"scale": (0, 1)}}, r"scale=\(0, 1\) must lie above 0"),
        ({"data.mosaic": {"start_epoch": -1}}, r"start_epoch=-1 must be 0 or more"),
        ({"data.mixup": {"start_epoch": 5, "stop_epoch": 4}}, r"start_epoch=5 lies after stop_epoch=4; lower it, too"),
        ({"data.mixup": {"ratio": (0.5,)}}, r"ratio=\(0.5,\) should be two numbers"),
        ({"data.mixup": {"ratio": (-0.5, 0.5)}}, r"ratio=-0.5 must lie between 0 and 1"),
        ({"data.mixup": True}, r"data.mixup: expected a dict with the options of MixUp, found True"),
        (
            {"data.mixup": {}, "data.multi_scale": None, "data.augment": {"scales": (32,), "max_size": 64}},
            r"data.mixup: needs data.augment of the type 'DistortZoomCrop'",
        ),
    ],
)
def test_sections_that_make_no_sense(root, changes, message):
    with pytest.raises(ConfigError, match=message):
        describe_preparation(config(root, **changes).data)


def test_what_is_said_of_them(root):
    _, line = describe_preparation(
        config(root, **{"data.mosaic": {"start_epoch": 4, "stop_epoch": 66}, "data.mixup": {"probability": 0.25}}).data
    )
    mosaics = "50 % of images are mosaics of 4 from epoch 4 until epoch 66"
    assert line == f"in training {mosaics}, 25 % of batches are blended"
    cfg = load_config(ROOT / "config/d_fine/deim_hgnetv2_s.py")
    assert "distorted and cropped from epoch 4 until epoch 120" in describe_preparation(cfg.data)[0]


DEIM = [path for family in ("rt_detr", "d_fine") for path in sorted((ROOT / "config" / family).glob("deim_*.py"))]


@pytest.mark.parametrize("path", DEIM, ids=lambda path: path.stem)
def test_epochs_of_deim_belong_together(path):
    cfg = load_config(path)
    data, schedule = cfg.data, cfg.schedule
    for strong in (data.augment, data.mosaic, data.mixup):
        assert strong.start_epoch == 4
    assert data.mosaic.stop_epoch == data.mixup.stop_epoch == schedule.epochs // 2
    assert schedule.flat_epochs == 4 + schedule.epochs // 2
    assert schedule.final_epochs == schedule.epochs - data.augment.stop_epoch
    moved = load_config(path, {"start_epoch": 1, "mixed_until": 2, "stop_epoch": 3}).data
    assert (moved.augment.start_epoch, moved.augment.stop_epoch) == (1, 3)
    assert [(mix.start_epoch, mix.stop_epoch) for mix in (moved.mosaic, moved.mixup)] == [(1, 2)] * 2
