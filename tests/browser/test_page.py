"""The HTML page in headless Chromium: it draws, it fetches nothing, names stay text, labels do not overlap."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import profiles

from headwater import reports
from headwater.reports.document import Document, Figure, Section

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
REQUIRED = os.environ.get("HEADWATER_REQUIRE_ALL", "") not in ("", "0")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="Chromium is not installed"),
]

# Written into the page as JSON once everything has been drawn; read back with --dump-dom.
PROBE = """
<script>
const probe = { errors: [], violations: [], dialogs: 0 };
window.alert = () => { probe.dialogs += 1; };
addEventListener("error", event => probe.errors.push(String(event.message)));
addEventListener("securitypolicyviolation", event => probe.violations.push(event.blockedURI + " " + event.violatedDirective));
</script>
"""
REPORT = """
<script>
addEventListener("load", () => setTimeout(() => {
  ACTIONS
  setTimeout(() => {
    const box = node => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
    const all = (root, selector) => [...root.querySelectorAll(selector)];
    probe.theme = document.documentElement.dataset.theme;
    probe.background = getComputedStyle(document.body).backgroundColor;
    probe.width = document.documentElement.scrollWidth;
    probe.window = innerWidth;
    probe.requests = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
    probe.plots = all(document, ".plot").map(plot => ({
      drawn: plot.querySelectorAll("path.point, path.js-line").length,
      title: plot.querySelector(".gtitle")?.textContent ?? "",
      titleBox: plot.querySelector(".gtitle") ? box(plot.querySelector(".gtitle")) : null,
      axes: all(plot, ".xtitle, .x2title, .ytitle, .y2title").map(n => n.textContent),
      legends: all(plot, ".legend, .legend2").map(box),
      x: all(plot, ".xtick text, .x2tick text").map(n => ({ text: n.textContent, box: box(n) })),
      y: all(plot, ".ytick text, .y2tick text").map(n => ({ text: n.textContent, box: box(n) })),
      paper: plot.querySelector(".main-svg")?.style.background ?? "",
      buttons: all(plot, ".modebar-btn").map(n => n.dataset.title),
    }));
    probe.firstRow = document.querySelector("tbody tr")?.textContent ?? "";
    probe.visibleRows = all(document, "tbody tr").filter(r => !r.hidden).length;
    const out = document.createElement("pre");
    out.id = "probe";
    out.textContent = JSON.stringify(probe);
    document.body.append(out);
  }, 500);
}, 200));
</script>
"""


def browse(page: str, tmp_path: Path, *, width: int = 1200, actions: str = "", dark: bool = False) -> dict[str, Any]:
    """Open a page in Chromium and return what the probe saw."""
    assert CHROMIUM is not None, "HEADWATER_REQUIRE_ALL is set and Chromium is not installed"
    # The page's own policy stays as it is: inline script is what it allows.
    probed = page.replace("<title>", PROBE + "<title>", 1)
    probed = probed.replace("</body>", REPORT.replace("ACTIONS", actions) + "</body>")
    path = tmp_path / "page.html"
    path.write_text(probed, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-extensions", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", f"--window-size={width},1400",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []), "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found is not None, result.stderr[-2000:]
    seen: dict[str, Any] = json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return seen


def overlap(a: list[float], b: list[float]) -> bool:
    """Whether two boxes share more than a pixel in both directions."""
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1


def assert_no_label_overlaps(plot: dict[str, Any]) -> None:
    for axis in ("x", "y"):
        for a, b in itertools.combinations(plot[axis], 2):
            assert not overlap(a["box"], b["box"]), (a, b)


PAGES = {
    "five": profiles.deep_sigmoid(2),
    "thousand": profiles.deep_sigmoid(500, -0.01),
    "transformer": profiles.transformer(12),
    "recurrent": profiles.recurrent(),
    "troubled": profiles.troubled(),
    "hostile": profiles.hostile(),
}


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, Any]]:
    """What the probe saw on a page of :data:`PAGES` at a width; each is opened once."""

    @functools.cache
    def look(name: str, width: int = 1200) -> dict[str, Any]:
        return browse(reports.to_html_page(PAGES[name]), tmp_path_factory.mktemp(name), width=width)

    return look


@pytest.mark.parametrize(
    ("name", "width"), [*((name, 1200) for name in PAGES), ("thousand", 500), ("transformer", 500), ("troubled", 500)]
)
def test_a_page_draws_itself_without_a_request_or_an_error(
    name: str, width: int, visit: Callable[[str, int], dict[str, Any]]
) -> None:
    seen = visit(name, width)
    assert seen["requests"] == []
    assert seen["violations"] == []
    assert seen["errors"] == []
    assert seen["dialogs"] == 0
    assert seen["width"] <= seen["window"]  # no sideways scrolling of the page as a whole
    assert seen["plots"]
    for plot in seen["plots"]:
        assert plot["drawn"] > 0
        assert plot["title"]
        assert len(plot["axes"]) >= 2
        assert all("no unit" in title for title in plot["axes"][1:])
        assert plot["x"]
        assert plot["y"]
        assert_no_label_overlaps(plot)
        assert not any(overlap(plot["titleBox"], legend) for legend in plot["legends"])


def test_a_hostile_name_is_shown_as_it_is_written(visit: Callable[[str, int], dict[str, Any]]) -> None:
    seen = visit("hostile", 1200)
    assert seen["dialogs"] == 0
    assert "<script>alert(4)</script>" in seen["plots"][0]["title"]
    assert "a&b<b>bold</b>" in [label["text"] for label in seen["plots"][0]["x"]]


def test_no_button_offers_to_send_the_chart_anywhere(visit: Callable[[str, int], dict[str, Any]]) -> None:
    seen = visit("five", 1200)
    assert seen["plots"][0]["buttons"] == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]


def test_the_page_follows_the_system_and_the_button(
    tmp_path: Path, visit: Callable[[str, int], dict[str, Any]]
) -> None:
    page = reports.to_html_page(PAGES["five"])
    light = visit("five", 1200)
    dark = browse(page, tmp_path, dark=True)
    switched = browse(page, tmp_path, actions='document.getElementById("theme").click();')
    assert (light["theme"], dark["theme"], switched["theme"]) == ("light", "dark", "dark")
    assert light["background"] == "rgb(255, 255, 255)"
    assert dark["background"] == switched["background"] == "rgb(18, 22, 28)"
    # The picture changes with the page.
    assert dark["plots"][0]["paper"] == switched["plots"][0]["paper"] != light["plots"][0]["paper"]


def test_a_table_sorts_by_value_and_filters_by_text(tmp_path: Path) -> None:
    page = reports.to_html_page(profiles.deep_sigmoid(15))
    header = "document.querySelectorAll('thead')[0].rows[0].cells[4]"  # the gradient's rms
    rising = browse(page, tmp_path, actions=f"{header}.click();")
    falling = browse(page, tmp_path, actions=f"{header}.click(); {header}.click();")
    # 10**(-0.845 * 15) = 2.11e-13 at layer 0; the largest, 10**(0.6 - 0.845), would be Sigmoid 29: 5.69e-01; output 1.
    assert rising["firstRow"].startswith("0Linear")
    assert falling["firstRow"].startswith("30Linear")
    box = "document.querySelector('input.filter')"
    filtered = browse(page, tmp_path, actions=f"{box}.value = 'sigmoid'; {box}.dispatchEvent(new Event('input'));")
    # 31 layers, 15 of them Sigmoid, and 32 parameters that another box filters.
    assert filtered["visibleRows"] == 15 + 32


def test_a_figure_that_is_folded_up_is_drawn_when_it_is_opened(tmp_path: Path) -> None:
    figure = Figure(lambda template: reports.to_figure(profiles.deep_sigmoid(2), template=template), "Inside")
    page = reports.to_html_page(Document("Folded", (Section("More", (figure,), collapsed=True),)))
    assert browse(page, tmp_path)["plots"][0]["drawn"] == 0
    opened = browse(page, tmp_path, actions="document.querySelector('details').open = true;")
    assert opened["plots"][0]["drawn"] > 0
    assert opened["plots"][0]["titleBox"][2] > 100


def test_a_page_of_several_parts_draws_every_part(tmp_path: Path) -> None:
    seen = browse(reports.to_html_page([profiles.deep_sigmoid(2), profiles.recurrent()], title="Two"), tmp_path)
    assert len(seen["plots"]) == 3
    assert all(plot["drawn"] for plot in seen["plots"])
