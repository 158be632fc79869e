"""Reading, augmenting and batching: what comes out right, and what is said of what is corrupt."""

import contextlib
import io
import json
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from datasets.annotations import read_annotations
from datasets.categories import COCO, Categories
from datasets.coco import CorruptImageError, DetectionDataset
from datasets.loader import Batch, build_dataset, build_loader
from datasets.samplers import EvalSampler, TrainSampler
from datasets.shapes import CLASSES, draw_image, make_shapes
from datasets.transforms import EvalTransform, Sample, TrainTransform, resized_shape
from util.config import ConfigError, load_config

CELLS = [{"id": 1, "name": "red"}, {"id": 7, "name": "white"}]


@pytest.fixture
def folder(tmp_path):
    """A data set of three 40x30 images with two boxes each, as COCO lays it out; returns a way to change it."""

    def make(content=None, layout="", annotations=None, **entry):
        folder = tmp_path / layout / "train2017"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        if annotations is None:
            boxes = [(i, [4, 5, 10, 12]) for i in range(3)] + [(i, [20, 6, 8, 8]) for i in range(3)]
            annotations = [
                {"id": n, "image_id": i, "category_id": 7, "bbox": box, "area": 99, "iscrowd": 0}
                for n, (i, box) in enumerate(boxes)
            ]
        file = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3)],
            "categories": CELLS,
            "annotations": annotations,
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / "annotations/instances_train2017.json"
        path.write_text(json.dumps(file | (content or {})))
        return tmp_path

    return make


def dataset(root, training=True, transform=None, **more):
    annotations = read_annotations(root / "annotations/instances_train2017.json")
    return DetectionDataset(annotations, root / "train2017", transform or EvalTransform(30, 40), training, **more)


# ------------------------------------------------------------------------------------------------------- annotations


def test_an_annotation_file_becomes_arrays(folder):
    found = read_annotations(folder() / "annotations/instances_train2017.json")
    assert len(found) == 3
    assert found.boxes[found.objects(1)].tolist() == [[4, 5, 10, 12], [20, 6, 8, 8]]
    assert found.name(2) == "2.png"
    assert not found.problems


def entry(**change):
    return {"id": 5, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0} | change


def test_categories():
    own = Categories.of(CELLS)
    assert (len(own), own.slots, own.used) == (2, {1: 0, 7: 1}, [(1, "red"), (7, "white")])
    coco = Categories.of([{"id": key, "name": name} for key, name in COCO.items()])
    assert (len(coco), coco.slots[90], coco.ids[12]) == (91, 90, None)
    assert len(Categories.of([{"id": 1, "name": "person"}])) == 91
    assert len(Categories.of([{"id": 1, "name": "person"}], "contiguous")) == 1
    assert Categories.stored(None, 91) == coco
    assert Categories.stored(None, 80).used == coco.used  # of the real-time detectors' files
    assert Categories.stored(None, 3).names == ("class 0", "class 1", "class 2")


# ---------------------------------------------------------------------------------------------------------- samples


def test_a_sample(folder):
    image, target = dataset(folder())[1]
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.float32
    assert target["labels"].tolist() == [1, 1]
    torch.testing.assert_close(target["boxes"][0], torch.tensor([9 / 40, 11 / 30, 10 / 40, 12 / 30]))
    assert target["orig_size"].tolist() == target["size"].tolist() == [30, 40]
    assert target["image_id"].item() == 1


def test_crowds_are_kept_for_evaluation_only(folder):
    root = folder(annotations=[entry(), entry(iscrowd=1, bbox=[0, 0, 30, 20])])
    data = dataset(root)
    assert len(data[0][1]["labels"]) == 1
    assert data.annotations.crowd.tolist() == [False, True]


def test_boxes_are_cut_to_the_image(folder):
    _, target = dataset(folder(annotations=[entry(bbox=[35, 25, 20, 20]), entry(bbox=[50, 5, 5, 5])]))[0]
    torch.testing.assert_close(target["boxes"], torch.tensor([[37.5 / 40, 27.5 / 30, 5 / 40, 5 / 30]]))


def test_augmentation_depends_on_seed_epoch_and_index_alone(folder):
    transform = TrainTransform(scales=(24, 30, 36), max_size=60, crop={"scales": (30,), "min_size": 20, "max_size": 28})
    data = dataset(folder(), transform=transform)
    first, again = data[(1, 3)], dataset(folder(), transform=transform)[(1, 3)]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1]["boxes"], again[1]["boxes"])
    others = [data[(1, epoch)][0] for epoch in range(8)]
    assert any(other.shape != first[0].shape or not torch.equal(other, first[0]) for other in others)
    reseeded = dataset(folder(), transform=transform, seed=1)
    assert not all(torch.equal(reseeded[(1, epoch)][1]["boxes"], data[(1, epoch)][1]["boxes"]) for epoch in range(8))


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_images_are_replaced_in_training_and_reported(folder, cached):
    root = folder()
    (root / "train2017/1.png").write_bytes(b"no image")
    image, target = dataset(root, cached=cached)[1]
    assert target["image_id"].item() == 2
    assert "1.png: cannot be read" in target["corrupt"][0]
    image, target = dataset(root, training=False, cached=cached)[1]
    assert image is None
    assert target["image_id"].item() == 1
    (root / "train2017/0.png").unlink()
    (root / "train2017/2.png").write_bytes((root / "train2017/2.png").read_bytes()[:200])
    with pytest.raises(CorruptImageError, match="10 images in a row"):
        dataset(root, cached=cached)[1]


class Picky(EvalTransform):
    """Cannot take what is wide."""

    def __call__(self, sample, rng):
        if sample.image.width > 40:
            raise KeyError("too wide")
        return super().__call__(sample, rng)


def test_images_that_cannot_be_transformed_are_corrupt(folder):
    root = folder({"images": [{"id": i, "file_name": f"{i}.png", "width": 0, "height": 0} for i in range(3)]})
    Image.new("RGB", (41, 30)).save(root / "train2017/1.png")
    said = f"{root}/train2017/1.png: cannot be transformed: KeyError: 'too wide'"
    _, target = dataset(root, transform=Picky(30, 40))[1]
    assert (target["image_id"].item(), target["corrupt"]) == (2, [said])
    image, target = dataset(root, training=False, transform=Picky(30, 40))[1]
    assert (image, target["image_id"].item(), target["corrupt"]) == (None, 1, [said])


def test_a_mistake_in_a_transform_ends_a_training(folder):
    def mistaken(sample, rng):
        return sample.resise(30)

    with pytest.raises(CorruptImageError, match=r"(?s)10 images.*png: cannot be transformed: AttributeError: .*resise"):
        dataset(folder(), transform=mistaken)[1]


def test_larger_images_than_the_config_allows_are_corrupt(folder):
    options = {"data.root": str(folder()), "data.max_pixels": 1199}
    config = "config/small/lite_dino_r18_shapes.py"
    with pytest.raises(CorruptImageError, match="40 x 30 are 1200 pixels, and more than 1199 are refused"):
        build_dataset(load_config(config, options), "train").load_image(0)
    build_dataset(load_config(config, options | {"data.max_pixels": 1200}), "train").load_image(0)
    for wrong in (0, "many", 1e9):
        with pytest.raises(ConfigError, match="data: max_pixels=.* must be a whole number, 1 or more"):
            build_dataset(load_config(config, options | {"data.max_pixels": wrong}), "train")


QUARTERS = np.zeros((30, 40, 3), np.uint8)  # four colours, no two corners alike
QUARTERS[:15, :20], QUARTERS[:15, 20:], QUARTERS[15:, :20], QUARTERS[15:, 20:] = (
    (200, 40, 40), (40, 200, 40), (40, 40, 200), (220, 220, 60),
)  # fmt: skip
GRAY = np.repeat(np.asarray(Image.fromarray(QUARTERS).convert("L"))[..., None], 3, 2)


def stored(mode):
    """QUARTERS encoded as a file of some mode."""
    image, buffer = Image.fromarray(QUARTERS), io.BytesIO()
    if mode == "16 bits":
        Image.fromarray(GRAY[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    elif mode == "16 bits, other byte order":
        Image.fromarray(GRAY[..., 0].astype(">u2") * 257).save(buffer, "TIFF")
    elif mode == "16 bits, colour":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in QUARTERS.astype(np.uint16) * 257)
        parts = (
            (b"IHDR", struct.pack(">IIBBBBB", 40, 30, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
        packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
        buffer.write(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    elif mode == "palette, transparent":
        image.quantize(8).save(buffer, "PNG", transparency=bytes([0, 128, 255, 255]))
    elif mode == "P":
        image.quantize(8).save(buffer, "PNG")
    elif mode == "palette, GIF":
        image.quantize(8).save(buffer, "GIF", transparency=1)
    elif mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(100)
        image.save(buffer, "PNG")
    elif mode in ("CMYK", "YCbCr"):
        image.convert(mode).save(buffer, "JPEG", quality=100, subsampling=0)
    else:
        image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "colours"),
    [
        ("L", GRAY), ("1", None), ("P", QUARTERS), ("RGB", QUARTERS), ("RGBA", QUARTERS), ("LA", GRAY),
        ("CMYK", QUARTERS), ("YCbCr", QUARTERS), ("palette, transparent", QUARTERS), ("palette, GIF", QUARTERS),
        ("16 bits", GRAY), ("16 bits, other byte order", GRAY), ("16 bits, colour", QUARTERS),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_every_mode_becomes_the_same_rgb(folder, mode, colours):
    root = folder()
    (root / "train2017/0.png").write_bytes(stored(mode))
    image = dataset(root).load_image(0)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    pixels = np.asarray(image).astype(int)
    if colours is None:
        assert set(np.unique(pixels)) == {0, 255}
    else:
        inner = np.s_[[5, 5, 25, 25], [5, 35, 5, 35]]
        assert np.abs(pixels[inner] - colours[inner].astype(int)).max() <= 12, pixels[inner]


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""EXIF orientations, and how an image is stored under each that is to be shown upright."""


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_turned_images_are_read_as_their_listed_size_says(folder, turn, format):
    root, exif = folder(), Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    turned = Image.fromarray(QUARTERS).transpose(TURNS[turn])
    for name in ("0.png", "1.png"):
        turned.save(root / "train2017" / name, format, exif=exif)
    data = dataset(root)
    data.annotations.sizes[1] = (turned.height, turned.width)  # listed as it is stored
    shown, as_stored = (np.asarray(data.load_image(index)).astype(int) for index in (0, 1))
    corners = np.s_[[2, 2, -3, -3], [2, -3, 2, -3]]
    assert np.abs(as_stored[corners] - np.asarray(turned)[corners]).max() <= 12
    if turn > 4:
        assert np.abs(shown[corners] - QUARTERS[corners]).max() <= 12
    else:  # the size does not tell, and the papers' code never turns
        assert (shown == as_stored).all()


@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]), st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_an_image_or_a_corrupt_image(folder, format, place, byte):
    root, buffer = folder(), io.BytesIO()
    Image.fromarray(QUARTERS).save(buffer, format)
    damaged = bytearray(buffer.getvalue())
    damaged[place % len(damaged)] = byte
    (root / "train2017/0.png").write_bytes(damaged if byte % 2 else damaged[: place % len(damaged)])
    with contextlib.suppress(CorruptImageError):
        assert dataset(root).load_image(0).mode == "RGB"


# ------------------------------------------------------------------------------------------------------- transforms


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 900), st.integers(1, 1400) | st.none())
def test_resizing_keeps_the_limits(width, height, scale, limit):
    new_width, new_height = resized_shape(width, height, scale, limit)
    if limit is None or max(width, height) / min(width, height) * scale <= limit:
        assert min(new_width, new_height) == scale
    else:
        assert max(new_width, new_height) <= limit + max(width, height) / min(
            width, height
        )  # rounding of the shorter side
        assert min(new_width, new_height) <= scale


@pytest.mark.parametrize(
    ("size", "scale", "limit", "resized"),
    [
        ((1, 3000), 800, 1333, (1, 1333)),
        ((3000, 1), 800, 1333, (1333, 1)),
        ((2, 3000), 800, 1333, (1, 1333)),  # 1500 as the papers' code has it
        ((11, 3000), 800, 1333, (5, 1333)),  # 1363
        ((1, 10**6), 128, 208, (1, 208)),
        ((640, 278), 800, 1333, (1332, 579)),
        ((640, 51), 800, 1333, (1330, 106)),
        ((640, 46), 800, 1333, (1335, 96)),  # 14 to 1: as the papers' code has it
        ((1, 1), 800, 1333, (800, 800)),
    ],
)
def test_sizes_of_narrow_images(size, scale, limit, resized):
    assert resized_shape(*size, scale, limit) == resized


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 30000), (1, 1), (39, 640)])
def test_narrow_images_are_augmented_within_bounds(size):
    transform = TrainTransform((480, 800), 1333, {"scales": (400, 600), "min_size": 384, "max_size": 600})
    sample = Sample(Image.new("RGB", size), np.float32([[0, 0, *size]]), np.zeros(1, np.int64))
    for seed in range(12):
        out = transform(sample, np.random.default_rng(seed))
        assert 1 <= min(out.image.size) <= max(out.image.size) <= 1333
        tensor, target = out.tensors()
        assert tensor.shape == (3, *out.image.size[::-1])
        torch.testing.assert_close(target["boxes"], torch.tensor([[0.5, 0.5, 1, 1]]))


def test_known_sizes():
    assert resized_shape(640, 480, 800, 1333) == (1066, 800)
    assert resized_shape(480, 640, 800, 1333) == (800, 1066)
    assert resized_shape(640, 320, 800, 1333) == (1332, 666)
    assert resized_shape(500, 500, 800, 1333) == (800, 800)


boxes_in = st.lists(
    st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2).map(
        lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
    ),
    max_size=5,
)


@given(boxes_in, st.integers(0, 99))
@settings(max_examples=60)
def test_boxes_follow_their_pixels(boxes, seed):
    """Paints the boxes, augments, and finds them again where the transform says."""
    painted = np.zeros((40, 48, 3), np.uint8)
    for x0, y0, x1, y1 in boxes[:1]:
        painted[y0:y1, x0:x1] = 255
    corners = np.array(boxes[:1], np.float32).reshape(-1, 4)
    sample = Sample(Image.fromarray(painted), corners, np.zeros(len(corners), np.int64))
    transform = TrainTransform((40,), 48, {"scales": (40,), "min_size": 24, "max_size": 48}, 0.5, 0.5)
    out = transform(sample, np.random.default_rng(seed))
    pixels = np.asarray(out.image)[..., 0] > 127
    assert (out.boxes >= 0).all()
    assert (out.boxes[:, 2:] <= np.array(out.image.size) + 1e-3).all()
    if len(out.boxes):
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        if len(rows):
            found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert np.abs(found - out.boxes[0]).max() <= 1.5


def test_flipping_twice_is_nothing():
    sample = Sample(Image.new("RGB", (48, 40)), np.array([[1, 2, 9, 30]], np.float32), np.zeros(1, np.int64))
    for flip in (Sample.hflip, Sample.vflip):
        assert flip(flip(sample)).boxes.tolist() == sample.boxes.tolist()
    assert sample.hflip().boxes.tolist() == [[48 - 9, 2, 48 - 1, 30]]
    assert sample.vflip().boxes.tolist() == [[1, 40 - 30, 9, 40 - 2]]


def test_windows_have_every_size_that_is_allowed():
    sample = Sample(Image.new("RGB", (48, 24)), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    shapes = set()
    for seed in range(200):
        transform = TrainTransform((24,), 999, {"scales": (24,), "min_size": 23, "max_size": 26})
        shapes.add(transform(sample, np.random.default_rng(seed)).image.size)
    windows = {
        (24 * width // min(width, height), 24 * height // min(width, height))
        for width in (23, 24, 25, 26)
        for height in (23, 24)
    }
    assert shapes == windows | {(48, 24)}


# ------------------------------------------------------------------------------------------------ samplers and loaders


@given(st.integers(1, 50), st.integers(1, 5), st.integers(0, 3))
def test_samplers_cover_the_data(length, world, epoch):
    seen, counts = [], set()
    for rank in range(world):
        sampler = TrainSampler(length, rank, world, seed=1)
        sampler.epoch = epoch
        seen += [index for index, of_epoch in sampler if of_epoch == epoch]
        counts.add(len(list(sampler)))
    assert set(seen) == set(range(length))
    assert counts == {-(-length // world)}
    evaluated = [index for rank in range(world) for index in EvalSampler(length, rank, world)]
    assert sorted(evaluated) == list(range(length))


def test_epochs_differ_and_repeat():
    sampler = TrainSampler(20)
    first = list(sampler)
    assert list(sampler) == first
    sampler.epoch = 1
    assert [i for i, _ in sampler] != [i for i, _ in first]
    assert [i for i, _ in TrainSampler(20, seed=1)] not in ([i for i, _ in sampler], [i for i, _ in first])


def options(root, **more):
    paths = {
        "data.root": str(root),
        "data.val": {"images": "train2017", "annotations": "annotations/instances_train2017.json"},
    }
    return load_config("config/small/lite_dino_r18_shapes.py", paths | {"data.batch_size": 2} | more)


@pytest.mark.parametrize("layout", ["", "images"])
def test_both_layouts_are_found(folder, layout):
    data = build_dataset(options(folder(layout=layout)), "train")
    batches = list(build_loader(data, 2, workers=0))
    assert len(batches) == 1
    assert len(batches[0].images) == 2


def test_missing_folders_are_explained(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"(?s)no image folder .*absent/train2017.*--coco_path shapes") as error:
        build_dataset(options(tmp_path / "absent"), "train")
    assert "lite_dino_r18_shapes.py: data.train" in str(error.value)
    root = folder()
    (root / "annotations/instances_train2017.json").unlink()
    with pytest.raises(ConfigError, match="no such annotation file"):
        build_dataset(options(root), "train")
    with pytest.raises(ConfigError, match="do not fill one batch of 4"):
        build_loader(build_dataset(options(folder()), "train"), 4, workers=0)


def test_batches_tell_of_corrupt_images(folder):
    root = folder()
    (root / "train2017/1.png").write_bytes(b"")
    data = build_dataset(options(root), "val")
    (batch,) = build_loader(data, 3, workers=0)
    assert [int(target["image_id"]) for target in batch.targets] == [0, 2]
    assert "1.png" in batch.corrupt[0]
    only_corrupt = Batch.of([(None, {"image_id": torch.tensor(1), "corrupt": ["x"]})])
    assert only_corrupt.images is None
    assert only_corrupt.to("cpu").targets == []


def test_workers_load_the_same(folder):
    data = build_dataset(options(folder()), "train", cached=True)
    alone, helped = (next(iter(build_loader(data, 2, workers=n))) for n in (0, 1))
    assert torch.equal(alone.images.images, helped.images.images)


# ------------------------------------------------------------------------------------------------------------ shapes


def test_synthetic_shapes_are_deterministic_and_sound(tmp_path, caplog):
    image, _ = draw_image(np.random.default_rng(3))
    assert np.array_equal(image, draw_image(np.random.default_rng(3))[0])
    with caplog.at_level(logging.INFO):
        make_shapes(tmp_path, train=6, val=2)
        make_shapes(tmp_path, train=6, val=2)
    assert len(caplog.records) == 1  # the second call finds the first one's work
    found = read_annotations(tmp_path / "annotations/instances_train2017.json")
    assert [name for _, name in found.categories.used] == list(CLASSES)
    assert not found.problems
    corners = found.boxes[:, :2] + found.boxes[:, 2:]
    limits = found.sizes[np.repeat(np.arange(6), np.diff(found.first))][:, ::-1]
    assert (found.boxes[:, :2] >= 0).all()
    assert (corners <= limits).all()
