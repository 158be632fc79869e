"""What people may hand in by mistake, and what they are told: the file, the key, the remedy."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import validate
from datasets.annotations import read_annotations
from datasets.categories import Categories
from datasets.coco import CorruptImageError, DetectionDataset, Limits
from datasets.loader import build_dataset, build_loader, check_dataset
from datasets.transforms import EvalTransform
from models import build_criterion, build_detector, build_postprocessor
from models.ops import key_aware_deform_attn, ms_deform_attn
from util.checkpoints.files import CheckpointError, load_strictly, read_checkpoint
from util.cli.arguments import parse_arguments
from util.config import ConfigError, load_config, parse_options
from util.config.registry import call_with_config
from util.tensors.image_batch import ImageBatch
from util.training.optimizer import build_optimizer, build_schedule
from util.training.options import TrainingOptions

CONFIG = "config/small/lite_dino_r18_shapes.py"
DEFORMABLE = "config/deformable_detr/deformable_detr_r50.py"
IMAGES = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3)]
CELLS = [{"id": 1, "name": "red"}, {"id": 7, "name": "white"}]


def entry(**change):
    return {"id": 5, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0} | change


@pytest.fixture
def root(tmp_path):
    """A data set of three images; returns its folder."""
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 30)).save(tmp_path / f"train2017/{i}.png")
    write(tmp_path, {})
    return tmp_path


def write(root, change):
    """Writes the annotation file with some lists changed; returns its path."""
    path = root / "annotations/instances_train2017.json"
    path.write_text(json.dumps({"images": IMAGES, "categories": CELLS, "annotations": [entry()]} | change))
    return path


# -------------------------------------------------------------------------------------------------- annotation files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"images": None}, "it has no list 'images'"),
        ({"images": {}}, "it has no list 'images'"),
        ({"images": ["0.png"]}, r"images\[0\] has no 'file_name'"),
        ({"images": [{"id": 1}]}, r"images\[0\] has no 'file_name'"),
        ({"images": [{"file_name": "a"}]}, r"images\[0\]: None is not a whole number"),
        ({"images": [{"id": "x1", "file_name": "a"}]}, r"images\[0\]: 'x1' is not a whole number"),
        ({"images": [{"id": 1.5, "file_name": "a"}]}, r"images\[0\]: 1.5 is not a whole number"),
        ({"images": [{"id": 2**70, "file_name": "a"}]}, "is not a whole number"),
        ({"images": [{"id": 1, "file_name": 7}]}, "7 is not a name"),
        ({"images": [{"id": 1, "file_name": ""}]}, "'' is not a name"),
        ({"images": [{"id": 1, "file_name": "a\0b"}]}, "is not a name"),
        ({"images": [{"id": 1, "file_name": "a", "height": -3, "width": 4}]}, "height -3, width 4"),
        ({"images": [{"id": 1, "file_name": "a", "height": "high", "width": 4}]}, "'high' is not a whole number"),
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "image id is listed twice: 1;.*--fix"),
        ({"categories": []}, "lists no categories"),
        ({"categories": {"1": "red"}}, "'categories' is a dict, not a list"),
        ({"categories": ["red"]}, r"categories\[0\] = 'red' has no whole number as its 'id'"),
        ({"categories": [{"name": "red"}]}, r"categories\[0\] = .* has no whole number"),
        ({"categories": [*CELLS, CELLS[0]]}, "category id twice: 1"),
        ({"annotations": "none"}, "'annotations' is a str, not a list"),
        (
            {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": []}]},
            "a panoptic file, .*segments_info",
        ),
    ],
)
def test_files_that_are_not_coco_are_named(root, change, message):
    path = write(root, change)
    with pytest.raises(ValueError, match=message) as error:
        read_annotations(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not a JSON file: it is empty"),
        (b'{"images": [', "not a JSON file: "),
        (b"\xff\xfe\xff\xff", "not a JSON file: "),
        (b"[" * 100_000, "not a JSON file: "),
        (b"[]", "it has no list 'images'"),
        (b"3", "it has no list 'images'"),
    ],
)
def test_files_that_are_not_json_are_named(root, text, message):
    path = root / "annotations/broken.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"broken.json: {message}|broken.json: not a COCO.*{message}"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (entry(bbox=[1, 2, 0, 4]), r"1 boxes without area \(object 5 of category 1 on 0.png\): left out"),
        (entry(bbox=[9, 9, -3, 4]), "reversed boxes"),
        (entry(bbox=[1, 2, float("nan"), 4]), "not finite"),
        (entry(bbox=[1, 2, float("inf"), 4]), "not finite"),
        (entry(bbox=[50, 2, 3, 4]), "boxes outside of their image"),
        (entry(bbox=[-9, 2, 3, 4]), "boxes outside of their image"),
        (entry(category_id=3), r"a category that is not listed \(object 5 of category 3 on 0.png"),
        (entry(image_id=99), r"an image that is not listed \(object 5 of category 1 on image 99"),
        (entry(bbox=[1, 2, 3]), r"without a usable bbox \(four numbers\) \(annotations\[1\]: bbox \[1, 2, 3\]\)"),
        (entry(bbox=[1, 2, 3, "wide"]), "without a usable bbox"),
        (entry(bbox=None), "without a usable bbox"),
        (entry(bbox="1234"), "without a usable bbox"),
        (entry(bbox=[1, 2, 3, 4, 0.5]), "without a usable bbox"),
        (
            entry(image_id="first"),
            r"a usable image_id \(a whole number\) \(annotations\[1\]: image_id 'first'\): left out",
        ),
        (entry(category_id=None), "a usable category_id .*: category_id None"),
        (entry(category_id=1.5), "a usable category_id .*: category_id 1.5"),
        (entry(category_id="red"), "a usable category_id .*: category_id 'red'"),
        (entry(category_id=2**63), "a usable category_id .*: category_id 9223372036854775808"),
        (entry(iscrowd="maybe"), r"a usable iscrowd \(0 or 1\) .*: iscrowd 'maybe'"),
        (entry(iscrowd=2), "a usable iscrowd .*: iscrowd 2"),
        ("text", r"annotations that are no objects \(annotations\[1\]: 'text'\)"),
        (None, "annotations that are no objects"),
        ({"image_id": 0}, "without a usable bbox .*: no bbox"),
        ({"bbox": [1, 2, 3, 4]}, "without a usable image_id .*: no image_id"),
    ],
)
def test_objects_that_make_no_sense_are_left_out_and_counted(root, broken, message):
    found = read_annotations(write(root, {"annotations": [entry(id=1), broken, entry(id=2)]}))
    assert len(found.boxes) == 2
    (problem,) = found.problems
    assert problem.count == 1
    assert re.search(message, str(problem)), problem


def test_missing_files_are_named(root):
    with pytest.raises(FileNotFoundError, match="absent.json: there is no such annotation file; docs/training.md"):
        read_annotations(root / "absent.json")


@pytest.mark.parametrize(
    ("listed", "convention", "message"),
    [
        (CELLS, "voc", "data.categories = 'voc' is none of auto, coco, contiguous"),
        ([{"id": 91, "name": "x"}], "coco", "ids from 1 to 90; take 'contiguous'"),
        ([{"id": 0, "name": "x"}], "coco", "ids from 1 to 90; take 'contiguous'"),
    ],
)
def test_categories_that_cannot_be_numbered(listed, convention, message):
    with pytest.raises(ValueError, match=message):
        Categories.of(listed, convention)


# ---------------------------------------------------------------------------------------------------------- images


def dataset(root, training=True, limits=None, **change):
    found = read_annotations(write(root, change))
    return DetectionDataset(found, root / "train2017", EvalTransform(30, 40), training, limits=limits)


def named(name):
    return {"images": [{"id": 0, "file_name": name, "width": 40, "height": 30}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "1.png: cannot be read: the file is empty"),
        (b"no image", "1.png: cannot be read: not an image of a known format"),
        (b"GIF89a" + bytes(40), "1.png: cannot be read: "),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "1.png: cannot be read: "),
        ("half", "1.png: cannot be read: "),
        ("larger", r"1.png: is \(50, 30\) pixels large, its annotations say \(40, 30\)"),
        ("fractions", "1.png: cannot be read: its pixels are fractions of an unknown range; save it with 8 or 16 bits"),
        ("absent", "1.png: cannot be read: .*No such file"),
        ("folder", "1.png: cannot be read: .*Is a directory"),
    ],
)
def test_images_that_cannot_be_read_say_why(root, content, message):
    path = root / "train2017/1.png"
    if content == "half":
        path.write_bytes(path.read_bytes()[:60])
    elif content == "larger":
        Image.new("RGB", (50, 30)).save(path)
    elif content == "fractions":
        Image.fromarray(np.zeros((30, 40), np.float32)).save(path, "TIFF")
    elif content in ("absent", "folder"):
        path.unlink()
        if content == "folder":
            path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(CorruptImageError, match=message):
        dataset(root).load_image(1)
    assert int(dataset(root)[1][1]["image_id"]) == 2


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", ".."])
def test_names_cannot_leave_the_folder(root, name):
    Image.new("RGB", (40, 30)).save(root / "secret.png")
    with pytest.raises(CorruptImageError, match="leads out of the image folder"):
        dataset(root, **named(name)).load_image(0)


def test_too_many_broken_images_stop_training_and_are_named(root):
    for i in range(3):
        (root / f"train2017/{i}.png").write_bytes(b"")
    with pytest.raises(CorruptImageError, match="(?s)2 images in a row.*data.corrupt.in_a_row.*1.png.*2.png"):
        dataset(root, limits=Limits(in_a_row=2))[1]
    Image.new("RGB", (40, 30)).save(root / "train2017/2.png")
    loader = build_loader(dataset(root, limits=Limits(files=2)), 1, workers=0)
    for epoch in range(3):  # the same two files are two
        loader.sampler.epoch = epoch
        assert len(list(loader)) == 3
    loader = build_loader(dataset(root, limits=Limits(files=1)), 1, workers=0)
    with pytest.raises(
        CorruptImageError, match="(?s)2 images cannot be read.*data.corrupt.files.*the first:.*png.*png"
    ):
        list(loader)


# ------------------------------------------------------------------------------------------------- whole sets of data


def options(root, **more):
    return load_config(CONFIG, {"data.root": str(root), "data.val": None} | more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.root": 3}, "data: root=3 should be the path of a folder; give it with --coco_path"),
        ({"data.root": "absent"}, r"(?s)data.train: no image folder absent/train2017.*--coco_path"),
        ({"data.train": None}, r"data.train: expected dict\(images=FOLDER, annotations=FILE\), found None"),
        ({"data.train.annotations": "none.json"}, "data.train: .*none.json: there is no such annotation file"),
        ({"data.train.annotations": "train2017/0.png"}, "data.train: .*0.png: not a JSON file"),
        ({"data.categories": "voc"}, "data.train: .*data.categories = 'voc' is none of"),
        ({"data.augment": None}, "data.augment: expected a dict with the options of TrainTransform, found None"),
        ({"data.augment.scales": ()}, r"data.augment: TrainTransform: scales: \(\) should be whole numbers of pixels"),
        ({"data.augment.scales": (0,)}, "scales: .* 1 or more"),
        ({"data.augment.scales": 480}, "scales=480 should be tuple"),
        ({"data.augment.max_size": 0}, "max_size: .* 1 or more"),
        ({"data.augment.flip": 2}, "flip=2 must lie between 0 and 1"),
        ({"data.augment.flip": "often"}, "flip='often' should be float"),
        ({"data.augment": {"flip_vertical": -0.1}}, "flip_vertical=-0.1 must lie between"),
        ({"data.augment.crop": {"scales": (400,)}}, "should name scales, min_size and max_size"),
        ({"data.augment.crop": {"scales": (20,), "min_size": 24, "max_size": 48}}, "larger than the smallest"),
        ({"data.augment.crop": {"scales": (50,), "min_size": 24, "max_size": 20}}, "crop.max_size=20 is less"),
        ({"data.corrupt.files": "many"}, "data.corrupt: Limits: files='many' should be int"),
        ({"data.corrupt.in_a_row": 0}, "in_a_row=0 must be 1 or more"),
    ],
)
def test_data_options_that_make_no_sense(root, change, message):
    with pytest.raises(ConfigError, match=message):
        build_dataset(options(root, **change), "train")


@pytest.mark.parametrize(
    ("size", "message"), [(4, "do not fill one batch of 4; lower"), (0, "= 0 must"), ("2", "= '2' must")]
)
def test_batches_that_cannot_be_made(root, size, message):
    with pytest.raises(ConfigError, match=message):
        build_loader(dataset(root), size, workers=0)


def test_missing_images_are_found_before_training(root):
    (root / "train2017/1.png").unlink()
    (root / "train2017/2.png").unlink()
    found = check_dataset(dataset(root), queries=0)
    said = [str(problem) for problem in found if not problem.harmless]
    assert len(said) == 2
    assert re.search(r"1 images with more objects than the model's 0 queries \(0.png with 1\): .*num_queries", said[0])
    assert re.search(r"2 images that are not in .*train2017 \(1.png, 2.png\): replaced", said[1])
    with pytest.raises(ConfigError, match=r"only 1 of its 3 images.*missing: 1.png.*--fix.*data.corrupt.files"):
        check_dataset(dataset(root, limits=Limits(files=1)), None)
    (root / "train2017/0.png").unlink()
    with pytest.raises(ConfigError, match=r"none of its 3 images are in .*Is it the right folder"):
        check_dataset(dataset(root, training=False), None)


# ------------------------------------------------------------------------------------------------- models and recipes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "deformable_detr_r50.py: model: expected a dict with the parts of a detector, found 3"),
        ({"model.num_heads": 7}, "d_model=256 is not a multiple of num_heads=7"),
        ({"model.d_model": "wide"}, "d_model='wide' should be int"),
        ({"model.num_classes": 0}, "model: num_classes=0 must be 1 or more"),
        ({"model.backbone": None}, "expected a dict with a 'type', found None"),
        ({"model.backbone.norm": "layer"}, "model.backbone: ResNet: norm='layer' is none of"),
        ({"model.backbone.stages": (5,)}, r"stages=\(5,\) must be some of 1, 2, 3, 4"),
        ({"model.backbone.stages": "all"}, "stages='all' should be tuple"),
        ({"model.encoder": {"type": "SparseEncoder", "keep_ratio": 1.5}}, "SparseEncoder"),
        ({"model.encoder.layer.dropout": "some"}, "dropout='some' should be float"),
        ({"model.encoder.num_layers": 2.5}, "num_layers=2.5 should be int"),
        ({"model.encoder.num_layers": True}, "num_layers=True should be int"),
        ({"model.queries.num_queries": 0}, "model: num_queries=0 must be 1 or more"),
    ],
)
def test_models_that_cannot_be_built(change, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(load_config(DEFORMABLE, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criterion.matcher.ce": "x"}, "criterion.matcher: HungarianMatcher: ce='x' should be float"),
        ({"criterion.losses": None}, "criterion: losses: expected a dict, found None"),
        ({"criterion.matcher.type": "Greedy"}, "no part is called 'Greedy'"),
        ({"postprocess": None}, "expected a dict with a 'type', found None"),
    ],
)
def test_losses_that_cannot_be_built(change, message):
    cfg = load_config(DEFORMABLE, change)
    with pytest.raises(ConfigError, match=message):
        (build_criterion(cfg), build_postprocessor(cfg))


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("optimizer", {"optimizer.lr": "fast"}, "optimizer: build_optimizer: lr='fast' should be float"),
        ("optimizer", {"optimizer.lr": -1}, "Invalid learning rate: -1"),
        ("optimizer", {"optimizer.scale": 3}, "scale=3 should be dict"),
        ("optimizer", {"optimizer.scale": {"nothing": 0.1}}, "'nothing', which is in no parameter's name"),
        (
            "schedule",
            {"schedule.kind": "poly"},
            "schedule: build_schedule: kind='poly' is none of step, cosine, onecycle",
        ),
        ("schedule", {"schedule.epochs": "long"}, "epochs='long' should be int"),
        ("schedule", {"schedule.epochs": 0}, "epochs=0 must be 1 or more"),
        ("training", {"training.clip_norm": -1.0}, "clip_norm=-1.0 must be above 0"),
        ("training", {"training.accumulate": 0}, "accumulate=0 must be 1 or more"),
    ],
)
def test_recipes_that_make_no_sense(section, change, message):
    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(1, 1)})
    cfg = load_config(CONFIG, change)
    target, more = {
        "optimizer": (build_optimizer, {"model": model}),
        "schedule": (build_schedule, {"optimizer": torch.optim.SGD(model.parameters(), 1), "steps_per_epoch": 1}),
        "training": (TrainingOptions, {}),
    }[section]
    with pytest.raises(ConfigError, match=message):
        call_with_config(target, cfg[section], where=section, **more)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["model.d_model"], "--options model.d_model: expected name=value"),
        (["=3"], "--options =3: expected name=value"),
        (["a=__import__('os').system('x')"], r"--options a=.*not a literal. Quote it if a string is meant"),
        (["a=[1, os]"], "not a literal"),
        (["a=" + "(" * 300], "not a literal"),
    ],
)
def test_options_that_are_no_literals(pairs, message):
    with pytest.raises(ConfigError, match=message):
        parse_options(pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", "mine.py: cannot be run as a config: SyntaxError"),
        ("x = 1 / 0", "mine.py: cannot be run as a config: ZeroDivisionError"),
        ("import torch\nx = torch", "mine.py: torch is a module; a config holds dicts, lists, strings and numbers"),
        ("x = [dict(a={1, 2})]", "mine.py: x.a is a set"),
        ("_base_ = 'mine.py'", "_base_ leads back to this file: mine.py -> mine.py"),
    ],
)
def test_config_files_that_make_no_sense(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "mine.py")


# ---------------------------------------------------------------------------------------------------- op and batches


def arguments():
    torch.manual_seed(0)
    return {
        "value": torch.randn(2, 13, 2, 8),
        "shapes": ((3, 4), (1, 1)),
        "locations": torch.rand(2, 5, 2, 2, 3, 2),
        "weights": torch.rand(2, 5, 2, 2, 3),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": ((3, 4), (2, 2))}, "value holds 13 tokens, but the levels .* have 16"),
        ({"shapes": ((13, 1),)}, "do not fit value"),
        ({"weights": torch.zeros(2, 5, 2, 2, 4)}, "weights .* do not fit locations"),
        ({"locations": torch.zeros(2, 5, 2, 2, 3, 3)}, r"expected value \(N, S, M, D\) and locations"),
        ({"value": torch.zeros(2, 13, 8)}, "expected value"),
        ({"backend": "tpu"}, "backend 'tpu' is not available here; available: .*reference"),
    ],
)
def test_op_arguments_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(**arguments() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(2, 13, 2, 4)}, r"key \(2, 13, 2, 4\) and value \(2, 13, 2, 8\) differ in shape"),
        ({"query": torch.zeros(2, 4, 2, 8)}, r"query \(2, 4, 2, 8\) does not fit locations"),
    ],
)
def test_key_aware_arguments_that_do_not_fit_are_named(change, message):
    fitting = arguments()
    del fitting["weights"]
    with pytest.raises(ValueError, match=message):
        key_aware_deform_attn(**{"query": torch.zeros(2, 5, 2, 8), "key": fitting["value"], **fitting, **change})


@pytest.mark.parametrize("images", [[], [torch.zeros(30, 40)]])
def test_batches_are_lists_of_images(images):
    with pytest.raises(ValueError, match=r"a batch is a list of \(3, h, w\) tensors, got shapes"):
        ImageBatch.of(images)


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "absent.pth: there is no such checkpoint"),
        ("text.pth", b"hello", "text.pth"),
        ("list.pth", [1, 2], "list.pth: holds a list, not a dict of weights"),
        ("object.pth", {"model": torch.nn.Linear(1, 1)}, "object.pth: holds more than tensors.*is not loaded"),
        ("bad.safetensors", b"\x08\0\0\0\0\0\0\0nonsense", "bad.safetensors: damaged"),
    ],
)
def test_files_that_are_no_checkpoints_are_named(tmp_path, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / name)


def test_weights_of_another_model_are_listed():
    with pytest.raises(
        CheckpointError, match=r"(?s)x.pth does not fit.*missing \(1\): bias.*mis-shaped.*weight \(3, 3\)"
    ):
        load_strictly(torch.nn.Linear(2, 3), {"weight": torch.zeros(3, 3)}, "x.pth")


# ------------------------------------------------------------------------------------------------------ command lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: -c/--config_file"),
        (["-c", "x.py", "--batch_size", "0"], "argument --batch_size: 0 is less than 1"),
        (["-c", "x.py", "--batch_size", "two"], "argument --batch_size: invalid whole number value: 'two'"),
        (["-c", "x.py", "--num_workers", "-1"], "argument --num_workers: -1 is less than 0"),
        (["-c", "x.py", "--seed", "-1"], "argument --seed: -1 is less than 0"),
        (["-c", "x.py", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["-c", "x.py", "--resum", "a", "--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_command_lines_that_make_no_sense(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        parse_arguments(words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{root}/absent.json"], "absent.json: there is no such annotation file"),
        (["{root}/train2017"], "train2017: there are no annotations/instances_.*--images"),
        (["{file}", "--images", "{root}/absent"], "absent: there is no such image folder; give it with --images"),
        (["{file}", "--images", "{root}/train2017", "--fix", "{file}"], "--fix writes a copy, and does not replace"),
    ],
)
def test_what_validate_cannot_work_with(root, words, message, caplog):
    file = root / "annotations/instances_train2017.json"
    before = file.read_bytes()
    assert validate.main([word.format(root=root, file=file) for word in words]) == 2
    assert re.search(message, caplog.text)
    assert file.read_bytes() == before
