"""The page of a diagnosis in headless Chromium: it draws both pictures, fetches nothing, and no label overlaps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import profiles
from tests.browser.test_page import CHROMIUM, REQUIRED, assert_no_label_overlaps, browse, overlap

from headwater import reports
from headwater.detectors import DEFAULT_DETECTORS, diagnosis_of
from headwater.records import Profile

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="Chromium is not installed"),
]

PAGES = {
    "five": profiles.deep_sigmoid(2),
    "thousand": profiles.deep_sigmoid(500, -0.02),
    "hostile": profiles.hostile(),
}


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [("five", 1200, False), ("thousand", 1200, True), ("thousand", 500, False), ("hostile", 1200, False)],
)
def test_the_page_of_a_diagnosis_draws_itself(name: str, width: int, dark: bool, tmp_path: Path) -> None:
    profile: Profile = PAGES[name]
    page = reports.to_html_page(diagnosis_of(profile, DEFAULT_DETECTORS))
    seen = browse(page, tmp_path, width=width, dark=dark)
    assert (seen["requests"], seen["violations"], seen["errors"], seen["dialogs"]) == ([], [], [], 0)
    assert seen["width"] <= seen["window"]
    assert seen["theme"] == ("dark" if dark else "light")
    waterfall, along = seen["plots"][:2]
    assert waterfall["title"].startswith("Gradient budget of")
    assert along["title"].endswith("where the findings are")
    for plot in (waterfall, along):
        assert plot["drawn"] > 0
        assert_no_label_overlaps(plot)
        assert not any(overlap(plot["titleBox"], legend) for legend in plot["legends"])
