"""datasets/images.py: one way to read all that people have, one message for what cannot be read, and which files."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from datasets.image_files import find_image_files, read_images
from datasets.images import (
    MAX_PIXELS,
    CorruptImageError,
    OutputNames,
    check_found,
    find_files,
    image_suffixes,
    read_image,
)

pytestmark = pytest.mark.filterwarnings("error")

COLOURS = np.zeros((30, 40, 3), np.uint8)  # four quarters, no two alike
COLOURS[:15, :20], COLOURS[:15, 20:], COLOURS[15:, :20], COLOURS[15:, 20:] = (
    (200, 40, 40), (40, 200, 40), (40, 40, 200), (220, 220, 60),
)  # fmt: skip
RGB = Image.fromarray(COLOURS)
GREY = np.asarray(RGB.convert("L"))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # by a quarter, to the right


def lab(image):
    profiles = (ImageCms.createProfile(space) for space in ("sRGB", "LAB"))
    return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")


def with_alpha(mode):
    image = RGB.convert("RGBA")
    image.putalpha(100)
    return image.convert(mode)


OTHERS = {"save_all": True, "append_images": [RGB.rotate(180)]}
KINDS = {
    "rgb.png": (RGB, {}),
    "grey.png": (RGB.convert("L"), {}),
    "alpha.png": (with_alpha("RGBA"), {}),
    "grey_alpha.png": (with_alpha("LA"), {}),
    "palette.png": (RGB.quantize(8), {"transparency": bytes([0, 128, 255])}),
    "palette.gif": (RGB.quantize(8), {"transparency": 1}),
    "key.png": (RGB, {"transparency": (200, 40, 40)}),
    "cmyk.jpg": (RGB.convert("CMYK"), {"quality": 100}),
    "cmyk.tif": (RGB.convert("CMYK"), {}),
    "ycbcr.tif": (RGB.convert("YCbCr"), {}),
    "lab.tif": (lab(RGB), {}),
    "16.png": (Image.fromarray(GREY.astype(np.uint16) * 257), {}),
    "16_little.tif": (Image.fromarray((GREY.astype(np.uint16) * 257).astype("<u2")), {}),
    "16_big.tif": (Image.fromarray((GREY.astype(np.uint16) * 257).astype(">u2")), {}),
    "32_of_16.tif": (Image.fromarray(GREY.astype(np.int32) * 257), {}),
    "frames.gif": (RGB, OTHERS),
    "frames.png": (RGB, OTHERS),
    "frames.webp": (RGB, OTHERS | {"lossless": True}),
    "pages.tif": (RGB, OTHERS),
    "UPPER.JPG": (RGB, {"quality": 100, "subsampling": 0}),
    "phone.jpg": (RGB, {"exif": TURNED, "quality": 100, "subsampling": 0}),
    "phone.png": (RGB, {"exif": TURNED}),
    "phone.tif": (RGB, {"exif": TURNED}),
    "phone.webp": (RGB, {"exif": TURNED, "lossless": True}),
    "phone.mpo": (RGB, {"exif": TURNED, "format": "MPO", "quality": 100, "subsampling": 0} | OTHERS),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_people_have_is_read_alike(tmp_path, name):
    image, options = KINDS[name]
    image.copy().save(tmp_path / name, **options)
    found = read_image(tmp_path / name)
    grey = image.mode in ("L", "LA") or image.mode.startswith("I")
    expected = np.repeat(GREY[..., None], 3, 2) if grey else COLOURS
    expected = np.rot90(expected, -1) if "phone" in name else expected
    corners = np.s_[[4, 4, -5, -5], [4, -5, 4, -5]]
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found)[corners].astype(int) - expected[corners]).max() <= 5
    assert not found.getexif()  # nothing turns it again
    (again,) = read_images(tmp_path / name)
    assert again.image == found


def test_a_listed_size_decides_about_turning(tmp_path):
    RGB.save(tmp_path / "phone.png", exif=TURNED)
    sizes = {listed: read_image(tmp_path / "phone.png", listed).size for listed in ((40, 30), (30, 40), (0, 0), (9, 9))}
    assert sizes == {(40, 30): (40, 30), (30, 40): (30, 40), (0, 0): (30, 40), (9, 9): (30, 40)}


def test_a_damaged_exif_entry_turns_nothing(tmp_path):
    RGB.save(tmp_path / "phone.jpg", exif=TURNED)
    encoded = (tmp_path / "phone.jpg").read_bytes()
    place = encoded.index(b"Exif\0\0") + 6
    (tmp_path / "phone.jpg").write_bytes(encoded[:place] + b"\xff" * 12 + encoded[place + 12 :])
    assert read_image(tmp_path / "phone.jpg").size == (40, 30)


def write_corrupt(path, kind):
    """One file of all kinds that cannot be used."""
    if kind in ("float", "long"):
        pixels = GREY.astype(np.float32) / 255 if kind == "float" else GREY.astype(np.int32) * 70000
        Image.fromarray(pixels).save(path, "TIFF")
    elif kind == "half":
        RGB.save(path, "PNG")
        path.write_bytes(path.read_bytes()[:60])
    elif kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.write_bytes({"empty": b"", "text": b"hello", "header": b"\x89PNG\r\n\x1a\n"}[kind])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "the file is empty"),
        ("text", "not an image of a known format"),
        ("header", "not an image of a known format"),
        ("half", "image file is truncated"),
        ("float", "its pixels are fractions of an unknown range; save it with 8 or 16 bits"),
        ("long", "its pixels are 4060000 to 14140000, which are not 16 bits; save it with 8 or 16 bits"),
        ("absent", "No such file or directory"),
        ("folder", "Is a directory"),
    ],
)
def test_what_cannot_be_read_has_one_message(tmp_path, kind, reason):
    path = tmp_path / "x.jpg"
    write_corrupt(path, kind)
    with pytest.raises(CorruptImageError) as error:
        read_image(path)
    assert str(error.value) == f"{path}: cannot be read: {reason}"


def test_the_limit_of_pixels_is_ours(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (9460, 9460)).save(path)  # Pillow warns of it
    message = (
        r"large.png: cannot be read: 9460 x 9460 are 89491600 pixels, and more than 89478485 are.*data.max_pixels.*"
    )
    with pytest.raises(CorruptImageError, match=message + "--max_pixels"):
        read_image(path)
    RGB.save(tmp_path / "small.png")
    with pytest.raises(CorruptImageError, match="40 x 30 are 1200 pixels, and more than 1199 are"):
        read_image(tmp_path / "small.png", max_pixels=1199)
    assert read_image(tmp_path / "small.png", max_pixels=1200).size == (40, 30)
    assert read_image(path, max_pixels=9460**2).size == (9460, 9460)
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS == 89_478_485


def test_what_pillow_refuses_can_be_allowed(tmp_path, monkeypatch):
    for name in ("large.png", "large.tif"):
        RGB.save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # more than twice of it raises in Pillow, TIFF once more
    with warnings.catch_warnings(), pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
    assert read_image(tmp_path / "large.png").size == read_image(tmp_path / "large.tif").size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 100


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def tree(tmp_path):
    for name in ("a/x.jpg", "a/._x.jpg", "a/.hidden/x.png", "a/b/X.JPEG", "a/b/x.webp", "a/notes.txt", "c/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folders_are_searched_with_their_sub_folders_and_nothing_hidden(tree):
    a = tree / "a"
    found = find_image_files([str(a)])
    assert found == {a / "b/X.JPEG": a, a / "b/x.webp": a, a / "x.jpg": a}
    assert a / "b/x.webp" not in find_image_files([str(a)], without=a / "b")
    assert list(find_image_files([str(a / "b")], without=a / "b")) == [a / "b/X.JPEG", a / "b/x.webp"]
    os.symlink(a, a / "b/back")
    os.symlink(tree / "c", a / "linked")
    assert list(find_image_files([str(a)])) == [a / "b/X.JPEG", a / "b/x.webp", a / "linked/x.jpg", a / "x.jpg"]


def test_names_are_relative_to_the_folder_as_long_as_that_tells_them_apart(tree):
    a, c = tree / "a", tree / "c"
    assert find_image_files([str(a), str(c)]) == {
        a / "b/X.JPEG": a,
        a / "b/x.webp": a,
        a / "x.jpg": None,
        c / "x.jpg": None,
    }


def test_files_and_patterns_keep_the_names_that_they_were_given(tree):
    a = tree / "a"
    assert find_image_files([str(a / "._x.jpg"), str(a / "notes.txt")]) == {a / "._x.jpg": None, a / "notes.txt": None}
    assert find_image_files([f"{tree}/**/*.jpg"]) == {a / "x.jpg": None, tree / "c/x.jpg": None}
    assert find_image_files([f"{tree}/*.gif", str(tree / "absent")]) == {tree / "*.gif": None, tree / "absent": None}


def test_a_folder_without_images_says_what_was_looked_for(tree):
    (tree / "c/x.jpg").unlink()
    (path,) = find_files([str(tree / "c")], image_suffixes())
    with pytest.raises(CorruptImageError, match=r"c: a folder without images: .*sub-folders ends in .*\.jpg.*hidden"):
        check_found(path, image_suffixes())
    with pytest.raises(CorruptImageError, match=r"a folder without images: .*\.mp4.*\.png"):
        next(read_images(path))


def test_a_folder_that_cannot_be_listed_is_named(tree, monkeypatch):
    walk, access = os.walk, os.access

    def denied(folder, onerror, **options):  # the tests may run as root, to whom all is open
        onerror(PermissionError(13, "Permission denied", str(tree / "a/b")))
        return (row for row in walk(folder, **options) if row[0] != str(tree / "a/b"))

    monkeypatch.setattr(os, "walk", denied)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tree / "a/b" and access(path, mode))
    assert list(find_image_files([str(tree / "a")])) == [tree / "a/b", tree / "a/x.jpg"]
    with pytest.raises(CorruptImageError, match="a/b: a folder that cannot be listed: permission denied"):
        next(read_images(tree / "a/b"))


def test_all_formats_that_pillow_decodes_are_looked_for():
    assert {
        ".jpg",
        ".jpeg",
        ".png",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".ppm",
        ".pgm",
        ".jp2",
    } <= image_suffixes()
    assert not {".h5", ".eps", ".pdf", ".mpg", ".txt"} & image_suffixes()


def test_every_input_has_an_output_of_its_own(tree):
    names, a, out = OutputNames(tree / "out"), tree / "a", tree / "out"
    given = [(a / "x.jpg", a), (a / "x.png", a), (a / "b/x.jpg", a), (tree / "c/x.jpg", None), (a / "x-2.jpg", a)]
    assert [names.place(*file) for file in given] == [
        out / "x", out / "x-2", out / "b/x", out / "x-3", out / "x-2-2",
    ]  # fmt: skip
    assert (out / "b").is_dir()
