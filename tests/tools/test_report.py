"""tools/report.py: its numbers are pycocotools', its error types have known costs, its page stands on its own."""

import contextlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.analysis import Analysis, ImageScores, analyse_detections, coco_matches, read_results, run_coco_eval
from datasets.annotations import read_annotations
from datasets.coco_eval import NUMBERS, detections_as_coco
from datasets.shapes import make_shapes
from datasets.tide import KINDS, find_errors
from tools.lib.svg import Line, line_chart, ticks
from tools.report import main
from util.config import dump_config, load_config

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)</script>'\"&"


def annotated(folder, objects, num_images=1, classes=("cat", "dog")):
    """Annotations of images with objects: (class, x, y, w, h) with, at choice, 1 for a crowd, and the image."""
    entries = []
    for number, (category, x, y, w, h, *more) in enumerate(objects, 1):
        crowd, image = (*more, 0, 1)[:2] if len(more) != 1 else (more[0], 1)
        entry = {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd}
        entries.append(entry | {"bbox": [x, y, w, h], "area": w * h})
    images = [{"id": key, "file_name": f"{key}.jpg", "height": 400, "width": 400} for key in range(1, num_images + 1)]
    categories = [{"id": key, "name": name} for key, name in enumerate(classes, 1)]
    path = folder / "truth.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": entries}))
    return read_annotations(path)


def detected(*rows):
    """(class, x, y, w, h, score) on the first image as a table."""
    return np.array([(0, x, y, w, h, score, number - 1) for number, x, y, w, h, score in rows], float).reshape(-1, 7)


A, B, FAR = (0, 0, 10, 10), (50, 50, 10, 10), (200, 200, 10, 10)
POOR = (0, 0, 10, 30)  # IoU 1/3 with A
AT_TENTH, AT_HALF = (0, 0, 10, 100), (0, 0, 10, 20)  # IoU 0.1 and 0.5 with A
HALF_RECALL = 51 / 101  # AP of precision 1 up to recall 0.5

CASES = {
    "right": ([(1, *A)], [(1, *A, 0.9)], {}, []),
    "classification": ([(1, *A), (2, *B)], [(1, *A, 0.9), (1, *B, 0.8)], {"classification": 0.5}, ["classification"]),
    "localisation": ([(1, *A)], [(1, *POOR, 0.9)], {"localisation": 1.0}, ["localisation"]),
    "both": (
        [(1, *FAR), (2, *A)],
        [(1, *POOR, 0.9), (1, *FAR, 0.8)],
        {
            "both": 0.25,
            "missed": 0.25,
        },  # class 1: 0.5 to 1; without the missed object, class 2 has none and counts no more
        ["both"],
    ),
    "duplicate": (
        [(1, *A), (1, *B)],
        [(1, *A, 0.9), (1, *A, 0.8), (1, *B, 0.7)],
        {"duplicate": 50 / 101 / 3},  # precision 2/3 above recall 0.5
        ["duplicate"],
    ),
    "background": ([(1, *A)], [(1, *FAR, 0.9), (1, *A, 0.8)], {"background": 0.5}, ["background"]),
    "background of an empty image": ([], [(1, *FAR, 0.9)], {}, ["background"]),
    "missed": ([(1, *A), (1, *B)], [(1, *A, 0.9)], {"missed": 1 - HALF_RECALL}, []),
    "the surest of two is put right": (
        [(1, *A)],
        [(1, *POOR, 0.9), (1, *POOR, 0.8)],
        {"localisation": 1.0},
        ["localisation", "localisation"],
    ),
    "what is found already is not found again": (
        [(1, *A)],
        [(1, *POOR, 0.9), (1, *A, 0.8)],
        {"localisation": 0.5},
        ["localisation"],
    ),
    "a crowd ignores": ([(1, *A), (1, 40, 40, 60, 60, 1)], [(1, *B, 0.9), (1, *A, 0.8)], {}, []),
    "thresholds belong to the upper kind": (
        [(1, *A)],
        [(1, *AT_TENTH, 0.9), (2, *AT_HALF, 0.8), (1, *AT_HALF, 0.7)],
        {"localisation": 0.5},
        ["localisation", "classification"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_with_known_costs(name, tmp_path):
    objects, rows, costs, kinds = CASES[name]
    annotations, detections = annotated(tmp_path, objects), detected(*rows)
    analysis = analyse_detections(annotations, detections, score=0.0)
    for error in analysis.errors:
        assert error.cost == pytest.approx(costs.get(error.kind, 0.0), abs=1e-12), error.kind
    assert {error.kind: error.count for error in analysis.errors if error.kind in KINDS} == {
        kind: kinds.count(kind) for kind in KINDS
    }
    (image,) = analysis.images
    assert sorted(kind for kind in image.kinds if kind not in ("", "ignored")) == sorted(kinds)
    assert image.wrong == len(kinds)
    found = image.correct + image.kinds.count("ignored") + image.wrong
    assert found == len(rows)


def test_the_confusion_matrix_counts_every_object_and_detection_once(tmp_path):
    objects = [(1, *A), (2, *B), (1, *FAR), (1, 300, 0, 60, 60, 1)]
    rows = [
        (1, *A, 0.9),
        (1, *A, 0.8),  # again
        (1, *B, 0.7),  # a dog for a cat
        (2, 100, 100, 9, 9, 0.6),  # nothing there
        (1, 310, 10, 20, 20, 0.6),  # in the crowd
        (1, *FAR, 0.1),  # too unsure
    ]
    analysis = analyse_detections(annotated(tmp_path, objects), detected(*rows), score=0.5)
    assert analysis.confusion.tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]
    (image,) = analysis.images
    assert (image.correct, image.wrong, image.missed) == (1, 3, 2)
    assert image.objects_found.tolist() == [True, False, False, True]
    assert image.f1 == 2 / 7


def test_errors_of_the_score_itself_are_sure(tmp_path):
    annotations = annotated(tmp_path, [(1, *A)])
    for score, sure in ((0.5, 1), (0.51, 0)):
        analysis = analyse_detections(annotations, detected((1, *FAR, 0.5)), score)
        assert {error.kind: error.sure for error in analysis.errors}["background"] == sure
        assert analysis.confusion.sum() == sure + 1  # and the missed object
        assert analysis.images[0].wrong == sure


def test_of_equal_images_those_with_more_to_see_are_shown():
    def make_image(index, correct, wrong, missed):
        return ImageScores(index, correct, wrong, missed, np.zeros(0, int), (), np.zeros(0, bool))

    scores = [(1, 0, 0), (0, 1, 0), (3, 0, 0), (0, 2, 3), (2, 0, 1), (0, 0, 2)]
    images = [make_image(index, *counts) for index, counts in enumerate(scores)]
    best, worst = Analysis({}, [], {}, [], np.zeros((1, 1)), images, 0.5).extremes(9)
    assert [one.index for one in worst] == [3, 5, 1]
    assert [one.index for one in best] == [2, 0, 4]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Objects of all sizes, some crowds, a class without objects, and detections of every kind of quality."""
    rng, folder = np.random.default_rng(5), tmp_path_factory.mktemp("scene")
    objects, rows = [], []
    for image in range(1, 31):
        for _ in range(rng.integers(0, 7)):
            category, (w, h) = int(rng.integers(1, 4)), rng.uniform(8, 150, 2).round(1)
            x, y = rng.uniform(0, 240, 2).round(1)
            objects.append((category, x, y, w, h, int(rng.random() < 0.1), image))
            for _ in range(rng.integers(0, 4)):
                box = np.array([x, y, w, h]) * rng.normal(1, 0.1, 4)
                seen = category if rng.random() < 0.8 else int(rng.integers(1, 5))
                rows.append((image - 1, *box, round(rng.random(), 2), seen - 1))  # rounded: some scores are equal
        rows += [(image - 1, *rng.uniform(1, 200, 4), rng.random() / 2, int(rng.integers(4)))] * 2
    return annotated(folder, objects, num_images=31, classes=("cat", "dog", "bird", "none")), np.array(rows)


@pytest.fixture(scope="module")
def reference(scene):
    """pycocotools itself, on the file as it is."""
    annotations, detections = scene
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(annotations.file))
        run = COCOeval(ground_truth, ground_truth.loadRes(detections_as_coco(annotations, detections)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def test_numbers_are_those_of_pycocotools_to_the_last_digit(scene, reference):
    analysis = analyse_detections(*scene)
    assert list(analysis.numbers.values()) == reference.stats.tolist()
    assert tuple(analysis.numbers) == NUMBERS
    for place, entry in enumerate(analysis.classes):
        for area, found in enumerate((entry.ap, *entry.by_size)):
            values = reference.eval["precision"][:, :, place, area, 2]
            assert found == (values[values > -1].mean() if (values > -1).any() else -1)
        assert entry.ap75 == reference.eval["precision"][5, :, place, 0, 2].mean()
        assert entry.ar == reference.eval["recall"][:, place, 0, 2].mean()
    assert [entry.ap for entry in analysis.classes][3] == -1
    assert analysis.classes[3].curves == {}
    assert np.mean(analysis.curves["IoU 0.50"]) == pytest.approx(analysis.numbers["AP50"])


def test_errors_start_from_the_ap50_of_pycocotools(scene, reference):
    annotations, detections = scene
    run = run_coco_eval(annotations, detections)
    errors = find_errors(annotations, detections, coco_matches(run, len(annotations.boxes)))
    assert errors.ap50() == reference.stats[1]
    assert {KINDS[code] for code in errors.kinds[errors.kinds >= 0]} == set(KINDS)
    assert all(cost.cost >= 0 for cost in errors.costs(0.5))
    wrong = (errors.matches.ground_truth < 0) & ~errors.matches.ignored
    assert np.array_equal(errors.kinds >= 0, wrong)


def test_no_detections_at_all(scene):
    annotations, _ = scene
    analysis = analyse_detections(annotations, np.zeros((0, 7)))
    assert analysis.numbers["AP"] == 0
    assert {error.kind: error.cost for error in analysis.errors}["classification"] == 0
    assert analysis.confusion[:, :-1].sum() == 0


def test_results_of_other_data_are_refused(scene, tmp_path):
    path = tmp_path / "results.json"
    for entry, message in (
        ({"image_id": 99, "bbox": [0, 0, 1, 1], "score": 1, "category_id": 1}, "image 99 is not in"),
        ({"image_id": 1, "bbox": [0, 0, 1, 1], "score": 1, "category_id": 9}, "class 9 is not in"),
        ({"image_id": 1, "bbox": [0, 0, 1], "score": 1, "category_id": 1}, "not a list of COCO results"),
        ({"image_id": 1, "bbox": [0, 0, 1, float("nan")], "score": 1, "category_id": 1}, "not finite"),
    ):
        path.write_text(json.dumps([entry]))
        with pytest.raises(ValueError, match=message):
            read_results(path, scene[0])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of an evaluation: true boxes found, moved a little, with a class of a hostile name."""
    root, output = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("output")
    make_shapes(root, train=1, val=6)
    file = root / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = HOSTILE
    file.write_text(json.dumps(content))
    annotations = read_annotations(file)
    results = [
        {"image_id": entry["image_id"], "category_id": entry["category_id"], "score": 0.9 - 0.01 * number}
        | {"bbox": [entry["bbox"][0] + number % 3, *entry["bbox"][1:]]}
        for number, entry in enumerate(content["annotations"])
    ]
    (output / "results.json").write_text(json.dumps(results))
    numbers = analyse_detections(annotations, read_results(output / "results.json", annotations)).numbers
    rounded = {key: round(value, 10) for key, value in numbers.items()}
    (output / "eval.json").write_text(json.dumps({"regular": {"AP": 0.0}, "ema": rounded}))
    epochs = [{"epoch": n, "train_loss": 3.0 - n, "train_lr": 1e-4, "test_AP": 0.2 * n} for n in range(3)]
    (output / "log.txt").write_text("\n".join(map(json.dumps, epochs)))
    cfg = load_config(ROOT / "config/small/lite_dino_r18_shapes.py", {"data.root": str(root)})
    (output / "config.py").write_text(dump_config(cfg))
    return output, numbers


class Page(HTMLParser):
    """What is in a page, and whether its tags close."""

    VOID = {"meta", "link", "img", "rect", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.values, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "data":
            self.values.append(float(dict(attributes)["value"]))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(evaluated):
    assert main([str(evaluated[0]), "--num_images", "2"]) == 0
    return (evaluated[0] / "report.html").read_text()


def test_the_page_holds_all_and_fetches_nothing(page, evaluated):
    parsed = Page(page)
    assert parsed.open == []
    known = [value for value in evaluated[1].values() if value >= 0]
    assert len(known) > 6
    assert parsed.values[: len(known)] == known
    for expected in ("EMA", HOSTILE, "localisation", "Worst images", "SigmoidTopK", "--benchmark_only"):
        assert expected in parsed.text, expected
    assert "not of one evaluation" not in parsed.text
    assert not any(tag in ("script", "iframe", "object", "form") for tag, _ in parsed.tags)
    links = [value for _, found in parsed.tags for key, value in found.items() if key in ("src", "href", "action")]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "url(" not in page
    assert "@import" not in page
    names = {found["id"] for _, found in parsed.tags if "id" in found}
    assert {link[1:] for link in links if link.startswith("#")} <= names


def test_the_page_serves_those_who_do_not_see_or_point(page):
    parsed = Page(page)
    images = [found for tag, found in parsed.tags if tag == "img"]
    assert len(images) == 2 * 2 * 2
    assert all(re.match(r"(Ground truth|Detections): .+; \d+ (missed|wrong)", found["alt"]) for found in images)
    assert all(found.get("aria-label") for tag, found in parsed.tags if found.get("role") in ("img", "region"))
    assert all(found.get("tabindex") == "0" for _, found in parsed.tags if "scroll" in found.get("class", "").split())
    assert any(tag == "html" and found.get("lang") for tag, found in parsed.tags)
    assert "prefers-color-scheme: dark" in page


def test_numbers_that_contradict_each_other_are_said(evaluated, tmp_path, capsys):
    output = tmp_path / "output"
    shutil.copytree(evaluated[0], output)
    (output / "eval.json").write_text(json.dumps({"regular": {"AP": 0.5}}))
    (output / "benchmark.json").write_text(
        json.dumps(
            {"parameters": 2e6, "trainable_parameters": 1e6, "gmacs": 3.0, "gmacs_by_part": {"backbone": 2.0}}
            | {"size": [64, 96], "device": "CPU", "dtype": "float32"}
            | {
                "batches": {
                    "1": {"latency_ms": 5.0, "latency_ms_p95": 6.0, "pictures_per_second": 200.0, "peak_mb": None}
                }
            }
        )
    )
    (output / "log.txt").unlink()
    assert main([str(output), "--out", str(tmp_path / "other.html"), "--score", "0.5"]) == 0
    text = Page((tmp_path / "other.html").read_text()).text
    assert "eval.json says AP 0.5" in text
    assert "--eval --save_results" in text
    assert "no log.txt" in text
    assert "2.00 M" in text


def test_a_torn_journal_is_drawn_as_far_as_it_goes(evaluated, tmp_path, capsys):
    output = tmp_path / "output"
    shutil.copytree(evaluated[0], output)
    with (output / "log.txt").open("a") as file:
        file.write('\n{"epoch": 3, "train_lo')
    assert main([str(output), "--num_images", "0"]) == 0
    assert "log.txt, line 4: no entry of an epoch" in capsys.readouterr().err
    assert "over 3 epochs" in (output / "report.html").read_text()


def test_what_is_missing_is_named_with_what_makes_it(evaluated, tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "main.py -c CONFIG" in capsys.readouterr().err
    shutil.copy(evaluated[0] / "config.py", tmp_path)
    assert main([str(tmp_path)]) == 2
    assert re.search(r"results\.json: not there.*--eval --save_results", capsys.readouterr().err)
    shutil.copy(evaluated[0] / "results.json", tmp_path)
    assert main([str(tmp_path), "--coco_path", str(tmp_path / "elsewhere")]) == 2
    assert "Give the folder with --coco_path" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_is_drawn_dark_and_light(page, evaluated, tmp_path):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --hide-scrollbars --window-size=500,1500"
    means = []
    for scheme in (0, 1):
        image, profile = tmp_path / f"{scheme}.png", tmp_path / f"profile{scheme}"
        more = [
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--user-data-dir={profile}",
            f"--screenshot={image}",
        ]
        address = (evaluated[0] / "report.html").as_uri()
        subprocess.run([CHROMIUM, *flags.split(), *more, address], check=True, capture_output=True, timeout=120)
        pixels = np.asarray(Image.open(image).convert("L"), float)
        assert pixels.std() > 5
        means.append(np.median(pixels))
    assert means[0] < 50
    assert means[1] > 200


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.5, 27.3), (0, 4.9e-4), (-3, 1e5)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_a_chart_is_sound_xml_whatever_its_names_are():
    chart = line_chart([Line(HOSTILE, [1.0], [2.0]), Line("b", [0, 1, 2], [5, 5, 6])], HOSTILE, "x", "<y>")
    parsed = ElementTree.fromstring(chart)
    assert parsed.get("aria-label") == HOSTILE
    assert HOSTILE in {element.text for element in parsed.iter("text")}
    xs = [float(point.split(",")[0]) for line in parsed.iter("polyline") for point in line.get("points").split()]
    assert all(0 <= x <= 400 for x in xs)
