"""Checking a data set before training, and the copy without its problems."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.annotations import read_annotations
from datasets.coco_file import load_json, parse_coco_file
from datasets.repair import write_fixed
from datasets.validate import examine, main

CELLS = [{"id": 1, "name": "red"}, {"id": 7, "name": "white"}]
BROKEN = {
    "images": [
        *({"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(4)),
        {"id": 2, "file_name": "other.png", "width": 40, "height": 30},
        {"id": 5, "file_name": "absent.png", "width": 40, "height": 30},
        {"id": 6, "file_name": "../6.png", "width": 40, "height": 30},
        {"id": 7, "file_name": "0.png"},
    ],
    "categories": [*CELLS, {"id": 7, "name": "again"}, {"id": 8, "name": "red"}],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "note": "kept"},
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [30, 20, 20, 20], "area": 400.0, "segmentation": [[1, 2]]},
        {"image_id": 2, "category_id": 1, "bbox": [5, 5, 5, 5]},
        {"id": 4, "image_id": 5, "category_id": 1, "bbox": [5, 5, 5, 5]},
        {"id": 5, "image_id": 0, "category_id": 1, "bbox": [5, 5, 0, 5]},
        {"id": 6, "image_id": 0, "category_id": 1, "bbox": [5, 5, -5, 5]},
        {"id": 7, "image_id": 0, "category_id": 1, "bbox": [90, 5, 5, 5]},
        {"id": 8, "image_id": 0, "category_id": 3, "bbox": [5, 5, 5, 5]},
        {"id": 9, "image_id": 77, "category_id": 1, "bbox": [5, 5, 5, 5]},
        {"id": 10, "image_id": 0, "category_id": 1},
        {"id": 11, "image_id": 3, "category_id": 1, "bbox": [5, 5, 5, 5]},
    ],
    "info": {"year": 2017},
}
FOUND = (
    r"1 images whose id is listed before: .*refuses.*\n +2: other.png",
    r"1 categories whose id is listed before: .*\n +7: again",
    r"1 categories whose name is listed before: kept as classes of their own.*\n +8: red",
    r"1 objects whose id is listed before: kept\n +1",
    r"1 objects without a whole number as id: kept\n +annotations\[2\]",
    r"1 entries without a usable bbox.*\n +annotations\[9\]",
    r"1 objects of an image that is not listed: left out\n +object 9 of category 1 on image 77",
    r"1 objects of a category that is not listed: left out\n +object 8 of category 3 on 0.png",
    r"1 reversed boxes .*\n +object 6",
    r"1 boxes without area: left out\n +object 5",
    r"1 boxes outside of their image: left out\n +object 7",
    r"1 boxes that reach over the border .*: cut in training\n +\[30.0, 20.0, 20.0, 20.0\] on 0.png",
    r"1 images whose height and width are not listed: .*\n +0.png",
    r"1 images with more objects than the model's 1 queries: .*\n +0.png with 2",
    r"3 images without objects: kept\n +1.png; ../6.png; 0.png",
    r"1 file names that lead out of .*\n +../6.png",
    r"1 images that are not in .*\n +absent.png",
    r"1 images whose file is listed before: kept.*\n +0.png",
    r"1 images that cannot be read: .*\n +\S+3.png: cannot be read: not an image of a known format",
)


@pytest.fixture
def root(tmp_path):
    """A data set with one problem of every kind."""
    folder = tmp_path / "train2017"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 30)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no image")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(BROKEN))
    return tmp_path


def test_every_kind_of_problem_is_found_counted_and_named(root, caplog):
    caplog.set_level("INFO")
    assert main([str(root), "--queries", "1"]) == 0
    table = caplog.text
    assert "8 images, 4 of them usable; 11 objects, 5 of them usable; 3 categories" in table
    for pattern in FOUND:
        assert re.search(pattern, table), f"{pattern}\n{table}"
    assert len(re.findall(r"(?m)^ {4,} *\d+ ", table)) == len(FOUND)
    assert main([str(root), "--strict", "--no_decode"]) == 1


def test_the_fixed_copy_holds_what_training_uses_and_has_no_problem(root, tmp_path, caplog):
    before = (root / "annotations/instances_train2017.json").read_bytes()
    assert main([str(root), "--fix", str(tmp_path / "fixed")]) == 0
    assert (root / "annotations/instances_train2017.json").read_bytes() == before
    content = json.loads((tmp_path / "fixed/annotations/instances_train2017.json").read_text())
    assert content["info"] == BROKEN["info"]
    assert [image["file_name"] for image in content["images"]] == ["0.png", "1.png", "2.png", "0.png"]
    assert [category["name"] for category in content["categories"]] == ["red", "white", "red"]
    first, second, third = content["annotations"]
    assert first == BROKEN["annotations"][0]
    assert second == BROKEN["annotations"][1] | {"id": 2, "bbox": [30, 20, 10, 10], "area": 100}
    assert third == BROKEN["annotations"][2] | {"id": 3}
    report = examine(tmp_path / "fixed/annotations/instances_train2017.json", root / "train2017")
    assert {problem.effect.split(",")[0] for problem in report.problems} <= {
        "kept",
        "kept as classes of their own",
        "boxes are not compared with them",
    }


def test_good_data_is_sound(root, caplog):
    caplog.set_level("INFO")
    good = {"images": BROKEN["images"][:3], "categories": CELLS, "annotations": BROKEN["annotations"][:1]}
    file = root / "labels.json"
    file.write_text(json.dumps(good))
    assert main([str(file), "--images", str(root / "train2017"), "--strict", "--queries", "1"]) == 0
    assert "3 images, 3 of them usable" in caplog.text
    assert "2 images without objects: kept" in caplog.text
    assert main([str(file), "--images", str(root / "train2017"), "--max_pixels", "1199"]) == 2
    assert "40 x 30 are 1200 pixels, and more than 1199 are refused" in caplog.text
    file.write_text(json.dumps(good | {"images": BROKEN["images"][:1]}))
    (root / "images").mkdir()
    (root / "train2017").rename(root / "images/train2017")
    (root / "annotations/instances_train2017.json").write_text(file.read_text())
    assert main([str(root), "--strict"]) == 0
    assert "nothing is wrong" in caplog.text


numbers = st.floats(-50, 90, width=32) | st.sampled_from([0.0, float("nan"), 1e308, -1e308])


@given(st.lists(st.tuples(st.lists(numbers, min_size=4, max_size=4), st.integers(0, 3), st.integers(0, 2)), max_size=6))
@settings(max_examples=25)
def test_a_fixed_copy_is_read_as_the_original_is_used(tmp_path_factory, objects):
    folder = tmp_path_factory.mktemp("fixed")
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": box}
        for n, (box, image, category) in enumerate(objects, 1)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3)]
    (folder / "a.json").write_text(json.dumps({"images": images, "categories": CELLS, "annotations": annotations}))
    found = read_annotations(folder / "a.json")
    write_fixed(found, np.ones(3, bool), folder / "b.json")
    fixed = read_annotations(folder / "b.json")
    assert sum(problem.count for problem in found.problems) == len(objects) - len(found.boxes)
    assert not fixed.problems
    assert fixed.category_ids.tolist() == found.category_ids.tolist()
    corners = [np.concatenate([f.boxes[:, :2], f.boxes[:, :2] + f.boxes[:, 2:]], 1) for f in (found, fixed)]
    np.testing.assert_allclose(corners[1], corners[0].clip(0, (40, 30, 40, 30)), atol=1e-9)


def test_only_the_area_of_a_box_follows_when_it_is_cut(tmp_path):
    """An outline's area is another one, and says nothing of what is cut off."""
    entries = [
        {"id": number, "image_id": 0, "category_id": 1, "bbox": [30, 20, 20, 20], **area}
        for number, area in enumerate(({"area": 400}, {"area": 300.5}, {"area": None}, {}), 1)
    ]
    file = {"images": [{"id": 0, "file_name": "0.png", "width": 40, "height": 30}], "categories": CELLS}
    (tmp_path / "a.json").write_text(json.dumps({**file, "annotations": entries}))
    write_fixed(read_annotations(tmp_path / "a.json"), np.ones(1, bool), tmp_path / "b.json")
    fixed = load_json(tmp_path / "b.json")["annotations"]
    assert [entry.get("area", "none") for entry in fixed] == [100, 300.5, None, "none"]
    assert all(entry["bbox"] == [30, 20, 10, 10] for entry in fixed)


# ------------------------------------------------------------------------------------------------------ reading files


@pytest.mark.parametrize(
    "outline",
    [
        "[[1.0, 2.5e1, -3]]",
        "[]",
        "[[1.0, 2.0], [NaN, 1]]",
        '[[1.0], "x"]',
        '{"counts": [1, 2], "size": [3, 4]}',
        '{"counts": "a]b", "size": [3, 4]}',
        "null",
        '[{"image_id": 3}]',
    ],
)
def test_outlines_of_any_kind_are_passed_over(tmp_path, outline):
    box = '{"image_id": 0, "segmentation" : OUTLINE, "bbox": [1, 2, 3, 4], "category_id": 1, "id": 9}'
    last = '{"id": 10, "image_id": 0, "bbox": [1, 2, 3, 5], "category_id": 1, "segmentation": OUTLINE}'
    images = r'[{"id": 0, "file_name": "\"segmentation\": [1], .png"}]'
    text = f'{{"images": {images}, "annotations": [{box}, {last}], "categories": [{{"id": 1}}]}}'
    (tmp_path / "a.json").write_text(text.replace("OUTLINE", outline))
    found = parse_coco_file(tmp_path / "a.json")
    assert found.names[0] == b'"segmentation": [1], .png'
    assert found.ids.tolist() == [9, 10]
    assert found.boxes.tolist() == [[1, 2, 3, 4], [1, 2, 3, 5]]
    json.dumps(load_json(tmp_path / "a.json"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_other_systems_are_read(tmp_path, encoding):
    content = {"images": [{"id": 1.0, "file_name": "ä.png"}], "categories": CELLS, "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False), encoding)
    found = read_annotations(tmp_path / "a.json")
    assert found.name(0) == "ä.png"
    assert found.image_ids.tolist() == [1]


def test_annotations_are_flat_arrays(root):
    (root / "a.json").write_text(json.dumps(BROKEN | {"images": BROKEN["images"][:4], "categories": CELLS}))
    found = read_annotations(root / "a.json")
    arrays = [value for value in vars(found).values() if isinstance(value, np.ndarray)]
    assert len(arrays) == 10
    assert not any(array.dtype.hasobject for array in arrays)
