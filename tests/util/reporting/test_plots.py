"""util/reporting/plots.py: what is drawn for people has a size that people can look at."""

import pytest
from PIL import Image

from util.reporting.plots import HEIGHT, MARGIN, WIDEST, Box, contact_sheet


@pytest.mark.parametrize(
    ("size", "shown"), [((40, 30), round(40 * HEIGHT / 30)), ((1, 3000), 1), ((3000, 1), WIDEST), ((9000, 3000), 780)]
)
def test_narrow_images_do_not_make_a_sheet_endless(tmp_path, size, shown):
    boxes = [Box((0, 0, *size), 0, "thing")]
    contact_sheet([(Image.new("RGB", size), boxes, boxes)], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * (2 * shown + 3 * MARGIN), 20 + HEIGHT + 2 * MARGIN)
