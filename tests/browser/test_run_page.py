"""The page of a run in headless Chromium: it draws, fetches nothing, names stay text, nothing overlaps, controls work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import runs
from tests.browser.test_page import CHROMIUM, REQUIRED, assert_no_label_overlaps, browse, overlap

from headwater import reports
from headwater.records.run_comparison import compare_runs
from headwater.reports.run_view import RunView

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="Chromium is not installed"),
]

# What test_page's probe does not see: maps are images, bars are groups, and menus, legends and sliders must not cover anything.
MORE = """
probe.maps = all(document, ".plot").map(plot => plot.querySelectorAll(".hm image, .bars .point").length);
probe.menus = all(document, ".plot").map(plot => all(plot, ".updatemenu-header").map(box));
probe.sliders = all(document, ".plot").map(plot => all(plot, ".slider-group").map(box));
probe.axisTitles = all(document, ".plot").map(plot => all(plot, ".xtitle, .x2title, .x3title, .x4title").map(box));
probe.marks = all(document, ".plot").map(plot => all(plot, "path.point").filter(n => n.getAttribute("display") !== "none").length);
probe.bars = all(document, ".cbtitle").map(n => n.textContent);
"""
SELECT = """
const all = (root, selector) => [...root.querySelectorAll(selector)];
const box = node => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
"""

PAGES: dict[str, Callable[[], runs.FormulaRun]] = {
    "five": runs.spiking,
    "thousand": lambda: runs.vanishing(1000, 300, 0.02),
    "hostile": runs.hostile,
    "long": lambda: runs.spiking(6, 100_000, at=50_000),
    "one step": lambda: runs.healthy(4, 0),
}


@functools.cache
def _page(name: str) -> str:
    return reports.to_html_page(RunView(PAGES[name]()))


def look(name: str, tmp_path: Path, *, width: int = 1200, dark: bool = False, actions: str = "") -> dict[str, Any]:
    # The probe's actions run half a second before it reads; what is seen here is read right before it.
    late = f"{actions} setTimeout(() => {{ {SELECT} {MORE} }}, 450);"
    return browse(_page(name), tmp_path, width=width, dark=dark, actions=late)


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        ("five", 1200, False), ("five", 500, True), ("thousand", 1200, True), ("thousand", 500, False),
        ("hostile", 1200, False), ("hostile", 500, False), ("long", 1200, False), ("one step", 1200, False),
    ],
)  # fmt: skip
def test_the_page_of_a_run_draws_itself(name: str, width: int, dark: bool, tmp_path: Path) -> None:
    seen = look(name, tmp_path, width=width, dark=dark)
    assert (seen["requests"], seen["violations"], seen["errors"], seen["dialogs"]) == ([], [], [], 0)
    assert seen["width"] <= seen["window"]
    assert seen["theme"] == ("dark" if dark else "light")
    assert len(_page(name).encode()) < 12e6
    shown = [i for i, plot in enumerate(seen["plots"]) if plot["titleBox"]]  # not inside something folded up
    assert len(shown) >= 4
    assert seen["maps"][0] >= 1
    assert seen["bars"][0].startswith("log10 rms")
    for i in shown:
        plot = seen["plots"][i]
        assert plot["title"]
        assert plot["drawn"] or seen["maps"][i]
        assert_no_label_overlaps(plot)
        for legend in plot["legends"]:
            assert not overlap(plot["titleBox"], legend)
            assert not any(overlap(menu, legend) for menu in seen["menus"][i])
        for menu in seen["menus"][i]:
            assert not overlap(plot["titleBox"], menu)
        for slider in seen["sliders"][i]:
            assert not any(overlap(title, slider) for title in seen["axisTitles"][i])
            assert not any(overlap(label["box"], slider) for label in plot["x"])


def test_findings_are_marked_on_the_map(tmp_path: Path) -> None:
    assert look("hostile", tmp_path)["marks"][0] == 2


def test_a_hostile_name_is_shown_as_it_is_written(tmp_path: Path) -> None:
    seen = look("hostile", tmp_path)
    assert seen["dialogs"] == 0
    assert runs.HOSTILE in seen["plots"][0]["title"]
    labels = [label["text"] for label in seen["plots"][0]["y"]]
    assert "<b>bold</b>&amp;" in labels
    assert "%{y}" in labels


@pytest.mark.parametrize("name", ["five", "hostile", "thousand"])
def test_the_switch_shows_another_quantity(name: str, tmp_path: Path) -> None:
    chosen = (
        "const menu = document.querySelector('.plot .updatemenu-header');"
        "menu.dispatchEvent(new MouseEvent('click', {bubbles: true}));"
        "const entries = document.querySelectorAll('.plot .updatemenu-dropdown-button');"
        "probe.fill = getComputedStyle(entries[3].querySelector('rect')).fill;"
        "entries[3].dispatchEvent(new MouseEvent('click', {bubbles: true}));"
    )
    seen = look(name, tmp_path, actions=chosen, dark=True)
    assert seen["errors"] == []
    assert seen["bars"][0].startswith("log10 ‖Δw‖")
    assert seen["maps"][0] == 1
    assert seen["fill"] == "rgb(26, 32, 40)"  # --raised of the dark theme, under light letters
    assert_no_label_overlaps(seen["plots"][0])


def test_a_pointer_on_the_map_is_told_the_name_as_text(tmp_path: Path) -> None:
    hover = (
        "const place = document.querySelector('.plot');"
        "const area = place.querySelector('.nsewdrag').getBoundingClientRect();"
        "const at = {bubbles: true, clientX: area.left + area.width / 2, clientY: area.top + 8};"
        "place.querySelector('.nsewdrag').dispatchEvent(new MouseEvent('mouseover', at));"
        "place.querySelector('.nsewdrag').dispatchEvent(new MouseEvent('mousemove', at));"
        "setTimeout(() => { probe.hover = place.querySelector('.hoverlayer').textContent;"
        "probe.images = document.querySelectorAll('.hoverlayer script, .hoverlayer img').length; }, 300);"
    )
    seen = look("hostile", tmp_path, actions=hover)
    assert runs.HOSTILE in seen["hover"]
    assert (seen["images"], seen["dialogs"]) == (0, 0)


def test_the_slider_moves_the_profile(tmp_path: Path) -> None:
    moved = (
        "const plot = [...document.querySelectorAll('.plot')].find(p => p.layout.sliders);"
        "const before = plot.data[1].y.slice();"
        "const step = plot.layout.sliders[0].steps[0];"
        "Plotly.restyle(plot, ...step.args).then(() => { probe.moved = [before[0], plot.data[1].y[0]]; });"
    )
    seen = look("five", tmp_path, actions=moved)
    # rms 10**-3.5 at the last step and 1e-3 at the first.
    before, after = seen["moved"]
    assert before == pytest.approx(10**-3.5, rel=1e-2)
    assert after == pytest.approx(1e-3, rel=1e-2)


def test_every_layer_is_drawn_when_its_part_is_opened(tmp_path: Path) -> None:
    opened = "[...document.querySelectorAll('details')].forEach(d => { d.open = true; });"
    seen = look("thousand", tmp_path, actions=opened)
    assert seen["errors"] == []
    assert seen["maps"][1] >= 1
    assert_no_label_overlaps(seen["plots"][1])


def test_the_page_of_a_comparison_draws_itself(tmp_path: Path) -> None:
    a, b = runs.healthy(), runs.healthy()
    b.formulas = {**b.formulas, "update": lambda t, s: 1e-3 * (1 + s / 100)}
    seen = browse(reports.to_html_page(compare_runs(a, b)), tmp_path)
    assert (seen["requests"], seen["violations"], seen["errors"]) == ([], [], [])
    (plot,) = seen["plots"]
    assert plot["title"] == "How the two runs drift apart"
    assert plot["drawn"] > 0
    assert all("no unit" in title or "step" in title for title in plot["axes"])
    assert_no_label_overlaps(plot)
