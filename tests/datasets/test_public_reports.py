"""Annotation files as public bug reports describe them: each is used rightly, or refused with entry and value."""

import json
import logging
import re
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

import main as program
from datasets.analysis import analyse_detections, read_results
from datasets.annotations import read_annotations
from datasets.categories import COCO, Categories
from datasets.coco_eval import CocoEvaluator, detections_as_coco
from datasets.image_paths import check_files, located
from datasets.validate import main as validate
from models import build_detector
from tests.tiny import ROOT, write_tiny_config
from util.cli.arguments import parse_arguments
from util.config import load_config

CASES = ROOT.parent / "shared/cases"
NAMES = ("disc", "box", "bar")
HUGE = 1389547896321548700
SPLITS = {"train": 4, "val": 3}


def content(split, num_images):
    """An annotation file of images with four objects each, of all three classes."""
    rng = np.random.default_rng(num_images)
    images = [{"id": i, "file_name": f"{i:04d}.jpg", "width": 160, "height": 120} for i in range(1, num_images + 1)]
    entries = []
    for image in images:
        for place in range(4):  # in quarters of the image, so that none covers another
            x, y = 80 * (place % 2), 60 * (place // 2)
            w, h = rng.integers(20, 60, 2).tolist()
            number = len(entries) + 1
            entry = {"id": number, "image_id": image["id"], "category_id": 1 + number % 3, "iscrowd": 0}
            entries.append(entry | {"bbox": [x, y, w, h], "area": w * h})
    categories = [{"id": key, "name": name} for key, name in enumerate(NAMES, 1)]
    return {"info": {}, "images": images, "annotations": entries, "categories": categories}


def write(root, change=lambda file, split: None, name="{:04d}.jpg"):
    """A data set whose two files were changed; returns its folder."""
    for split, num_images in SPLITS.items():
        folder = root / f"{split}2017"
        folder.mkdir(parents=True, exist_ok=True)
        file = content(split, num_images)
        for image in file["images"]:
            path = folder / name.format(image["id"])
            path.parent.mkdir(exist_ok=True)
            pixels = np.random.default_rng(image["id"] + 100 * num_images).integers(0, 255, (120, 160, 3), np.uint8)
            Image.fromarray(pixels).save(path)
        change(file, split)
        (root / "annotations").mkdir(exist_ok=True)
        path = root / f"annotations/instances_{split}2017.json"
        path.write_text(json.dumps(file), encoding="utf-8")
    return root


def each(entries, **values):
    """Sets keys of all entries; a function is called with the entry."""
    for entry in entries:
        entry.update({key: value(entry) if callable(value) else value for key, value in values.items()})


def objects(**values):
    return lambda file, split: each(file["annotations"], **values)


def images(**values):
    return lambda file, split: each(file["images"], **values)


def categories(**values):
    return lambda file, split: each(file["categories"], **values)


def renumbered(image=lambda key: key, category=lambda key: key):
    """Other ids."""

    def change(file, split):
        each(file["images"], id=lambda entry: image(entry["id"]))
        each(file["categories"], id=lambda entry: category(entry["id"]))
        each(
            file["annotations"],
            image_id=lambda entry: image(entry["image_id"]),
            category_id=lambda entry: category(entry["category_id"]),
        )

    return change


def without(*keys):
    def change(file, split):
        for entry in file["annotations"]:
            for key in keys:
                entry.pop(key, None)

    return change


def polygons(file, split):
    """No boxes, but outlines."""
    for entry in file["annotations"]:
        x, y, w, h = entry.pop("bbox")
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]


def masks(file, split):
    """No boxes, but uncompressed masks, and one that is compressed."""
    from pycocotools import mask

    for entry in file["annotations"]:
        x, y, w, h = entry.pop("bbox")
        pixels = np.zeros((120, 160), np.uint8, order="F")
        pixels[y : y + h, x : x + w] = 1
        flat = pixels.reshape(-1, order="F")
        ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
        counts = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
        entry["segmentation"] = {"size": [120, 160], "counts": counts}
        if entry["id"] == 1:
            entry["segmentation"]["counts"] = mask.encode(pixels)["counts"].decode()


def urls(file, split):
    """LVIS' images have an address in place of a name."""
    for image in file["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"


def roboflow(file, split):
    each(file["categories"], supercategory="things")
    file["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})


def lacks_a_class(file, split):
    if split == "val":
        file["categories"].pop()
        file["annotations"] = [entry for entry in file["annotations"] if entry["category_id"] < 3]


def reversed_ids(file, split):
    if split == "val":
        renumbered(category=lambda key: 4 - key)(file, split)


def swallowed(file, split):
    """Keys of other lists' entries, in categories and in the file's own description."""
    each(file["categories"], image_id=1, file_name="x")
    file["info"] = {"file_name": "x", "deep": [{"image_id": 3}]}


def flat_polygons(file, split):
    polygons(file, split)
    each(file["annotations"], segmentation=lambda entry: entry["segmentation"][0], bbox=[])


NOTHING = ()
READABLE = {
    "as it should be": (lambda file, split: None, NOTHING),
    "crowd as text": (objects(iscrowd=lambda e: ["0", "false", "False", "no", ""][e["id"] % 5]), NOTHING),
    "crowd as nothing": (objects(iscrowd=None), NOTHING),
    "no crowd, no area": (without("iscrowd", "area"), NOTHING),
    "crowd as false": (objects(iscrowd=False), NOTHING),
    "crowd as 0.0": (objects(iscrowd=0.0), NOTHING),
    "category ids as fractions": (categories(id=lambda e: float(e["id"])), NOTHING),
    "all ids as fractions": (renumbered(float, float), NOTHING),
    "all ids as text": (renumbered(str, str), NOTHING),
    "objects' ids as text": (objects(category_id=lambda e: str(e["category_id"])), NOTHING),
    "categories' ids as text": (categories(id=lambda e: str(e["id"])), NOTHING),
    "image ids with zeros": (renumbered(lambda key: f"{key:012d}"), NOTHING),
    "huge image ids": (renumbered(lambda key: HUGE + key), NOTHING),
    "huge category ids": (renumbered(category=lambda key: 2**53 + key), NOTHING),
    "the largest ids": (renumbered(lambda key: 2**63 - key, lambda key: key - 2**63), NOTHING),
    "a category -1": (renumbered(category=lambda key: {1: -1}.get(key, key)), NOTHING),
    "a category 0": (renumbered(category=lambda key: key - 1), NOTHING),
    "images from -1": (renumbered(lambda key: key - 3), NOTHING),
    "negative areas": (objects(area=lambda e: -e["area"]), "12 areas that no object in its box can have"),
    "absurd areas": (objects(area=1e12), "12 areas that no object .*computed from the box"),
    "areas of zero": (objects(area=0), "12 areas that no object"),
    "areas as text": (objects(area="large"), "12 areas that no object"),
    "areas that are no numbers": (objects(area=float("nan")), "12 areas that no object"),
    "boxes as text": (objects(bbox=lambda e: [str(number) for number in e["bbox"]]), NOTHING),
    "polygons alone": (polygons, "12 objects without a box .*: boxed by their outline"),
    "flat polygons and empty boxes": (flat_polygons, "12 objects without a box"),
    "masks alone": (masks, "12 objects without a box"),
    "file names in objects": (objects(file_name="0001.jpg", info={"a": 1}, attributes={"image_id": 3}), NOTHING),
    "image ids in images": (images(image_id=7, bbox=[1, 2, 3, 4]), NOTHING),
    "keys of other lists": (swallowed, NOTHING),
    "segments beside boxes": (objects(segments_info=[]), NOTHING),
    "sizes of -1": (images(width=-1, height=-1), NOTHING),
    "sizes of nothing": (images(width=None, height=""), NOTHING),
    "sizes as text": (images(width="160", height="120"), NOTHING),
    "addresses": (urls, "3 images without a file_name .*coco_url"),
    "Windows' separators": (
        images(file_name=lambda e: f"images\\{e['file_name']}"),
        r"3 file names.*images\\0001.jpg is",
    ),
    "supercategories of nothing": (categories(supercategory=None), NOTHING),
    "names for a console to stumble over": (categories(name=lambda e: f"\x1b[31m{'x' * 99}\n{e['id']}"), NOTHING),
    "absolute names": (images(file_name=lambda e: f"C:\\data\\{e['file_name']}"), "3 file names .* only one file"),
    "upper case": (images(file_name=lambda e: e["file_name"].upper()), "3 file names .*0001.JPG is 0001.jpg"),
    "one name twice": (
        categories(name=lambda e: "disc" if e["id"] != 2 else "box"),
        r"1 categories whose name is listed before \(3: disc\): kept as classes of their own",
    ),
    "no names": (categories(name=None), NOTHING),
    "a root class": (roboflow, "1 categories without objects that others have as supercategory .*0: things"),
    "val lacks a class": (lacks_a_class, NOTHING),
    "val has other numbers": (reversed_ids, NOTHING),
}


def targets(found):
    """Detections at the true boxes, in descending scores."""
    for index in range(len(found)):
        rows = found.objects(index)
        boxes = torch.from_numpy(found.boxes[rows]).clone()
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor(
            [found.categories.slots[key] for key in found.category_ids[rows].tolist()], dtype=torch.long
        )
        scores = torch.linspace(0.9, 0.5, len(boxes)) if len(boxes) else torch.zeros(0)
        yield {"boxes": boxes, "labels": labels, "scores": scores}, {"image_id": torch.tensor(found.image_ids[index])}


def check_that_the_truth_is_perfect(found, folder):
    """Evaluates the ground truth, and what a report reads of its results."""
    evaluator = CocoEvaluator(found)
    for result, target in targets(found):
        evaluator.update([result], [target])
    detections = evaluator.detections()
    scores = evaluator.evaluate(detections)
    assert scores.numbers["AP"] == pytest.approx(1)
    there = {found.categories.labels[slot] for slot in found.slots()[~found.crowd]}
    assert {name: ap for name, (ap, _) in scores.classes.items() if ap >= 0} == pytest.approx(dict.fromkeys(there, 1.0))
    (folder / "results.json").write_text(json.dumps(detections_as_coco(found, detections)))
    again = read_results(folder / "results.json", found)
    np.testing.assert_allclose(again, detections)
    analysis = analyse_detections(found, again)
    assert analysis.numbers["AP"] == pytest.approx(1)
    assert analysis.confusion.trace() == (~found.crowd).sum() == analysis.confusion.sum()


@pytest.mark.parametrize("name", READABLE)
def test_a_readable_file_is_read_rightly(name, tmp_path):
    change, said = READABLE[name]
    root = write(tmp_path, change)
    found = located(read_annotations(root / "annotations/instances_val2017.json"), root / "val2017")
    assert check_files(found.names, root / "val2017")[0].all()
    assert len(found.boxes) == 12 - 4 * (name == "val lacks a class")
    plain = read_annotations(write(tmp_path / "plain") / "annotations/instances_val2017.json")
    if name != "val lacks a class":
        np.testing.assert_array_equal(found.boxes, plain.boxes)
        np.testing.assert_array_equal(found.areas, plain.areas)
    assert not found.crowd.any()
    texts = "\n".join(map(str, found.problems))
    assert re.search(said, texts) if said else not texts
    check_that_the_truth_is_perfect(found, tmp_path)


@pytest.mark.parametrize("name", [name for name in READABLE if name != "sizes of -1"])
def test_the_fixed_copy_of_a_readable_file_has_nothing_to_be_said(name, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = write(tmp_path, READABLE[name][0])
    assert validate([str(root), "--fix", str(tmp_path / "fixed")]) == 0
    fixed = read_annotations(tmp_path / "fixed/annotations/instances_val2017.json")
    assert all(re.search("root class|classes of their own", problem.effect) for problem in fixed.problems)
    assert check_files(fixed.names, root / "val2017")[0].all()
    before = located(read_annotations(root / "annotations/instances_val2017.json"), root / "val2017")
    for column in ("image_ids", "names", "boxes", "category_ids", "crowd", "areas"):
        np.testing.assert_array_equal(getattr(fixed, column), getattr(before, column))


@pytest.mark.skipif(not CASES.is_dir(), reason="the inputs of the reports are not here")
@pytest.mark.parametrize("file", sorted(CASES.glob("*/annotations/*.json")), ids=lambda file: str(file.parts[-3:]))
def test_the_reports_own_files(file, tmp_path):
    if file.parts[-3] == "panoptic" or file.name == "test_nocat.json":
        with pytest.raises(ValueError, match="a panoptic file|lists no categories"):
            read_annotations(file)
        return
    found = read_annotations(file)
    folder = file.parents[1] / file.stem.removeprefix("instances_")
    if folder.is_dir():
        found = located(found, folder)
        assert check_files(found.names, folder)[0].all()
    if found.has_targets():
        check_that_the_truth_is_perfect(found, tmp_path)
    else:
        assert file.parts[-3] in ("box-of-five", "no-truth-in-val", "blind")


@pytest.mark.parametrize(
    "outline",
    [
        {"size": [0, 0], "counts": "abc"},  # a decoder that divides by the size would end the process
        {"size": [120, 160], "counts": [3, 4]},
        {"size": [120, 160], "counts": [-1, 120 * 160 + 1]},
        {"size": [120], "counts": [3]},
        {"counts": "abc"},
        [[1, 2, 3]],
        [[1, 2, 3, 4]],
        [["x"] * 6],
        [],
        None,
        "polygon",
        7,
    ],
)
def test_what_is_no_outline_gives_no_box(tmp_path, outline):
    def change(file, split):
        without("bbox")(file, split)
        each(file["annotations"], segmentation=outline)

    found = read_annotations(write(tmp_path, change) / "annotations/instances_val2017.json")
    assert len(found.boxes) == 0
    (problem,) = found.problems
    assert str(problem).startswith("12 entries without a usable bbox (four numbers) (annotations[0]: no bbox")


def test_a_list_that_stands_there_twice_is_not_lost(tmp_path):
    path = write(tmp_path) / "annotations/instances_val2017.json"
    path.write_text(path.read_text()[:-1] + ', "annotations": []}')
    with pytest.raises(ValueError, match="it has several 'annotations'"):
        read_annotations(path)


def test_objects_that_are_listed_twice_get_a_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)

    def twice(file, split):
        file["annotations"] += [entry | {"id": entry["id"] + 100} for entry in file["annotations"]]

    assert validate([str(write(tmp_path, twice)), "--strict"]) == 1
    assert re.search(
        r"12 objects whose image, category and box are listed before: kept\n +annotations\[12\]", caplog.text
    )


def test_a_table_of_classes_stays_a_table(tmp_path):
    change = READABLE["names for a console to stumble over"][0]
    found = read_annotations(write(tmp_path, change) / "annotations/instances_val2017.json")
    evaluator = CocoEvaluator(found)
    for result, target in targets(found):
        evaluator.update([result], [target])
    lines = evaluator.evaluate(evaluator.detections()).table().splitlines()
    assert len(lines) == 2 + 1 + 3
    assert all(line.isprintable() and len(line) < 120 for line in lines)


# ------------------------------------------------------------------------------------------------------- file names


@pytest.mark.parametrize(
    ("files", "name", "meant"),
    [
        (["a.jpg"], "sub/a.jpg", "a.jpg"),
        (["sub/a.jpg"], "a.jpg", "sub/a.jpg"),
        (["sub/a.jpg"], "SUB\\A.JPG", "sub/a.jpg"),
        (["a.jpg"], "/home/me/images/a.jpg", "a.jpg"),
        (["a.jpg"], "./a.JPG", "a.jpg"),
        ([unicodedata.normalize("NFD", "Müller.jpg")], "Müller.jpg", unicodedata.normalize("NFD", "Müller.jpg")),
        (["Müller.jpg"], unicodedata.normalize("NFD", "MÜLLER.jpg"), "Müller.jpg"),
        (["one/a.jpg", "two/a.jpg"], "a.jpg", None),
        (["one/a.jpg", "two/a.jpg"], "TWO/a.jpg", "two/a.jpg"),
        (["a.jpg", "A.JPG"], "a.JPG", None),
        (["a.jpg"], "https://host.org/images/a.jpg", "a.jpg"),
        (["my a.jpg"], "upload%2Fmy%20a.jpg", "my a.jpg"),
        (["a.jpg"], " a.jpg ", "a.jpg"),
        (["a.jpg"], "a.JPEG", "a.jpg"),
        (["a.jpg", "a.jpeg"], "A.jpg", None),
        (["a.png"], "a.jpg", None),
        (["a.jpg"], "a", None),
        (["other/a.jpg"], "sub/a.jpg", None),
        (["a.jpg"], "../a.jpg", None),
        (["a.jpg"], "..\\a.jpg", None),
    ],
)
def test_a_name_means_one_file_or_none(tmp_path, files, name, meant):
    folder = tmp_path / "images"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")
    one = {"images": [{"id": 1, "file_name": name}], "categories": [{"id": 1}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(one))
    found = located(read_annotations(tmp_path / "a.json"), folder)
    assert found.name(0) == (meant or name)
    assert len(found.problems) == (meant is not None)
    exists, problems = check_files(found.names, folder)
    assert exists[0] == (meant is not None)
    if meant is None and ".." not in name:
        candidates = [] if files == ["other/a.jpg"] and name == "sub/a.jpg" else files
        assert all(file in str(problems[0]) for file in candidates)


def test_two_names_do_not_mean_one_file(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"")
    names = ["one/a.jpg", "two/a.jpg"]
    for listed in (names, ["a.jpg", "one/a.jpg"]):
        entries = [{"id": number, "file_name": name} for number, name in enumerate(listed)]
        file = {"images": entries, "categories": [{"id": 1}], "annotations": []}
        (tmp_path / "a.json").write_text(json.dumps(file))
        found = located(read_annotations(tmp_path / "a.json"), tmp_path / "images")
        assert [found.name(row) for row in range(2)] == listed


# ------------------------------------------------------------------------------------------ trainings and evaluations


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config whose model is as small as can be."""
    return write_tiny_config(tmp_path_factory.mktemp("config"), epochs=1)


def run(config, root, output, *more):
    """main.py within this process; returns its exit status, and what it said."""
    words = ["-c", config, "--coco_path", root, "--output_dir", output, "--num_workers", "0", *more]
    log = output / "info.txt"
    before = log.stat().st_size if log.is_file() else 0
    status = program.main(parse_arguments([str(word) for word in words]))
    return status, log.read_text(encoding="utf-8")[before:]


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """The data and the output of a training."""
    root, output = write(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("trained")
    assert run(config, root, output)[0] == 0
    return root, output


def five(file, split):
    each(file["annotations"], bbox=lambda entry: [*entry["bbox"], 0.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            five,
            r"(?s)holds no usable object.*16 entries without a usable bbox .*annotations\[0\]: bbox \[0, 0, .*, 0.0\]",
        ),
        (without("bbox"), "(?s)holds no usable object.*16 entries without a usable bbox .*: no bbox"),
        (objects(category_id="disc"), "(?s)holds no usable object.*16 entries without a usable category_id .*'disc'"),
        (categories(id=lambda e: f"c{e['id']}"), r"categories\[0\] = .*'c1'.* has no whole number as its 'id'"),
        (images(id=lambda e: f"img{e['id']}"), r"images\[0\]: 'img1' is not a whole number"),
        (lambda file, split: file.update(annotations=[]), "holds no usable object.*'annotations' is empty"),
        (objects(image_id=77), "(?s)holds no usable object.*16 objects of an image that is not listed"),
        (lambda file, split: file.pop("categories"), "lists no categories"),
    ],
)
def test_a_training_on_nothing_stops(config, tmp_path, change, message):
    root = write(tmp_path / "data", change)
    assert validate([str(root)]) == 2
    status, said = run(config, root, tmp_path / "out")
    assert status == 2
    assert re.search(message, said)


def test_crowds_alone_and_boxes_in_fractions_get_a_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert validate([str(write(tmp_path / "a", objects(iscrowd=1))), "--strict"]) == 1
    assert "16 crowds, and no other objects" in caplog.text

    def shares(file, split):
        each(file["annotations"], bbox=lambda e: [e["bbox"][0] / 160, e["bbox"][1] / 120, 0.2, 0.4], area=0.08)

    assert validate([str(write(tmp_path / "b", shares)), "--strict"]) == 1
    assert "16 boxes of a pixel or less, most of the file; COCO's are in pixels, these look like shares" in caplog.text


def other_case(file, split):
    if split == "val":
        each(file["categories"], name=lambda entry: entry["name"].title())


def test_val_with_other_names_is_refused_with_both(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = write(tmp_path / "data", other_case)
    assert validate([str(root), "--strict"]) == 1
    assert "3 classes of val2017 that train2017 does not list (Disc, Box, Bar)" in caplog.text
    status, said = run(config, root, tmp_path / "out")
    assert status == 2
    own, others = "only this one has 'Disc', 'Box', 'Bar'", "only the other has 'disc', 'box', 'bar'"
    assert f"{own}, {others} (in other letters of upper and lower case, spaces or accents)" in said
    assert run(config, root, tmp_path / "out", "--ignore_class_names")[0] == 0


@pytest.mark.parametrize("change", [lacks_a_class, reversed_ids])
def test_val_is_matched_to_train_by_name(config, tmp_path, change):
    status, said = run(config, write(tmp_path / "data", change), tmp_path / "out", "--save_results")
    assert status == 0
    assert ("lacks classes of" if change is lacks_a_class else "numbers its classes otherwise than") in said


def test_an_evaluation_is_of_the_same_classes_whatever_their_numbers(config, trained, tmp_path):
    _, output = trained
    numbers = {}
    for name, change in {
        "plain": lambda file, split: None,
        "reversed": renumbered(category=lambda key: 4 - key),
        "huge": renumbered(lambda key: HUGE + key, lambda key: 2**60 - key),
    }.items():
        data = write(tmp_path / name, change)
        out = tmp_path / f"out_{name}"
        status, said = run(config, data, out, "--eval", "--save_results", "--resume", output / "checkpoint.pth")
        assert status == 0
        assert ("numbers its classes otherwise than" in said) == (name != "plain")
        numbers[name] = json.loads((out / "eval.json").read_text())["regular"]
        found = read_annotations(data / "annotations/instances_val2017.json")
        read_results(out / "results.json", found)
    for name in ("reversed", "huge"):
        assert numbers[name]["coco_eval_bbox"] == pytest.approx(numbers["plain"]["coco_eval_bbox"])
        assert numbers[name]["classes"] == {key: pytest.approx(v) for key, v in numbers["plain"]["classes"].items()}
        assert numbers[name]["loss"] == pytest.approx(numbers["plain"]["loss"])


def renamed(file, split):
    each(file["categories"], name=lambda entry: f"new {entry['name']}")


def test_other_classes_than_the_checkpoints_stop_evaluation_and_training(config, trained, tmp_path):
    data, checkpoint = write(tmp_path / "data", renamed), trained[1] / "checkpoint.pth"
    message = "only this one has 'new disc', 'new box', 'new bar', only the other has 'disc', 'box', 'bar'"
    status, said = run(config, data, tmp_path / "out", "--eval", "--resume", checkpoint)
    assert status == 2
    assert all(part in said for part in (message, str(checkpoint), "--ignore_class_names"))
    assert run(config, data, tmp_path / "out", "--eval", "--resume", checkpoint, "--ignore_class_names")[0] == 0
    status, said = run(config, data, tmp_path / "more", "--resume", checkpoint, "--options", "schedule.epochs=2")
    assert status == 2
    assert message in said


def test_a_training_goes_on_with_renumbered_classes(config, trained, tmp_path):
    """And its next checkpoint has the new ids, in the old slots."""
    data = write(tmp_path / "data", renumbered(category=lambda key: 40 - key))
    more = ("--resume", trained[1] / "checkpoint.pth", "--options", "schedule.epochs=2")
    status, said = run(config, data, tmp_path / "out", *more)
    assert status == 0
    assert "numbers its classes otherwise" in said
    saved = torch.load(tmp_path / "out/checkpoint.pth", weights_only=True)["categories"]
    assert saved == {"ids": [39, 38, 37], "names": list(NAMES)}
    fewer = write(tmp_path / "fewer", lambda file, split: lacks_a_class(file, "val"))
    status, said = run(config, fewer, tmp_path / "fewer_out", *more)
    assert status == 2
    assert "lacks 1: bar of" in said


def test_a_blind_split_takes_the_checkpoints_classes(config, trained, tmp_path):
    root, output = trained
    listed = content("val", SPLITS["val"])["images"]
    for name, file in {"blind": {"images": listed}, "named": {"images": listed, "categories": []}}.items():
        (root / f"annotations/{name}.json").write_text(json.dumps(file))
        options = (f"data.test.annotations=annotations/{name}.json", "data.test.images=val2017")
        more = ("--test", "--resume", output / "checkpoint.pth", "--options", *options)
        assert run(config, root, tmp_path / name, *more)[0] == 0
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("blind", "named"))
    assert one == other
    assert {row["category_id"] for row in one} <= {1, 2, 3}
    assert len(one) == 180


def test_a_blind_split_takes_cocos_classes_of_a_checkpoint_that_says_nothing(config, tmp_path):
    """As the papers' own files do, for 91 slots."""
    root = write(tmp_path / "data")
    (root / "annotations/blind.json").write_text(json.dumps({"images": content("val", 3)["images"]}))
    classes = "model.num_classes=91"
    weights = build_detector(load_config(config, {"model.num_classes": 91})).state_dict()
    torch.save({"model": weights}, tmp_path / "theirs.pth")
    options = (classes, "data.test.annotations=annotations/blind.json", "data.test.images=val2017")
    status, _ = run(
        config, root, tmp_path / "out", "--test", "--resume", tmp_path / "theirs.pth", "--options", *options
    )
    assert status == 0
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert rows
    assert {row["category_id"] for row in rows} <= set(COCO)


def test_a_val_split_without_objects_gets_a_word_and_the_newest_is_the_best(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = write(tmp_path / "data", lambda file, split: split == "val" and file.update(annotations=[]))
    assert validate([str(root), "--strict"]) == 1
    assert "1 splits without an object to find (val2017): every AP will be -1" in caplog.text
    status, said = run(config, root, tmp_path / "out", "--options", "schedule.epochs=2")
    assert status == 0
    assert "holds no object that is to be found, so that every AP will be -1" in said
    assert "3 of 3 classes have no object here, and no row" in said
    best = torch.load(tmp_path / "out/checkpoint_best_regular.pth", weights_only=True)
    assert (best["epoch"], best["AP"]) == (2, -1)


def test_classes_of_one_name_keep_their_rows(config, tmp_path):
    root = write(tmp_path / "data", READABLE["one name twice"][0])
    assert run(config, root, tmp_path / "out")[0] == 0
    entry = json.loads((tmp_path / "out/log.txt").read_text().splitlines()[-1])
    assert set(entry["test_classes"]) == {"disc (1)", "box", "disc (3)"}


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("a", "b"), ("a", "b")),
        (("a", "b", "a"), ("a (0)", "b", "a (2)")),
        (("a", "a", "a (1)"), ("a (0)", "a (1)", "a (1) (2)")),
        (("", "a", "", "b", ""), ("", "a", "", "b", "")),  # COCO's gaps
    ],
)
def test_every_class_has_a_label_of_its_own(names, labels):
    assert Categories(tuple(range(len(names))), names).labels == labels


# ----------------------------------------------------------------------------------------------------------- validate


def test_validate_reads_roboflows_layout_and_compares_splits(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = write(tmp_path / "data", lacks_a_class)
    for split, folder in {"train": "train", "val": "valid"}.items():
        (root / f"{split}2017").rename(root / folder)
        (root / f"annotations/instances_{split}2017.json").rename(root / folder / "_annotations.coco.json")
    (root / "valid/0001.jpg").write_bytes((root / "train/0002.jpg").read_bytes())
    assert validate([str(root), "--fix", str(tmp_path / "fixed")]) == 0
    assert (tmp_path / "fixed/valid/_annotations.coco.json").is_file()
    table = caplog.text[caplog.text.index("objects of") :]
    assert re.search(r"objects of +train +valid\ndisc +5 +4\nbox +6 +4\nbar +5 +-\n", table)
    assert "1 classes that valid has no object of (bar): they get no AP" in table
    assert re.search(r"1 images that train and valid share \(\S+train/0002.jpg = \S+valid/0001.jpg\)", table)


def test_validate_looks_at_a_configs_data(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = write(tmp_path)
    assert validate(["-c", str(config), str(root), "--strict"]) == 0
    assert re.search(r"objects of +train +val\n", caplog.text)
    mine = tmp_path / "mine.py"
    mine.write_text(f"_base_ = {str(config)!r}\ndata = dict(root={str(root)!r}, val=dict(annotations='absent.json'))\n")
    assert validate(["-c", str(mine)]) == 2
    assert "absent.json: there is no such annotation file" in caplog.text
    assert validate(["-c", str(tmp_path / "none.py")]) == 2
    with pytest.raises(SystemExit):
        validate([])


def test_every_split_of_a_config_has_a_fixed_copy_of_its_own(config, tmp_path, monkeypatch):
    """Also below a folder that only a home tells."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data")
    assert validate(["-c", str(config), "~/data", "--fix", str(tmp_path / "fixed")]) == 0
    for split, num_images in SPLITS.items():
        fixed = read_annotations(tmp_path / f"fixed/annotations/instances_{split}2017.json")
        assert len(fixed) == num_images


def test_help_says_what_happens_by_default(capsys):
    with pytest.raises(SystemExit):
        validate(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    options = ("--images", "--queries", "--no_decode", "--strict", "--fix", "--workers")
    for option, following in zip(options, [*options[1:], None], strict=True):
        part = text[text.rindex(f" {option} ") :]
        assert "(default: " in part[: part.rindex(f" {following} ") if following else None], option
