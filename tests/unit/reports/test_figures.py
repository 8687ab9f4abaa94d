"""Figures: every one has a title, axis titles with units, the record's numbers, and labels that fit."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import profiles

from headwater import reports
from headwater.errors import InputError
from headwater.records import Profile
from headwater.reports.figures import MAX_TICKS, PALETTE, Series, line_figure, log_range, sampled_ticks, template_of

PROFILES = {
    "five": profiles.deep_sigmoid(2),
    "thousand": profiles.deep_sigmoid(500, -0.01),
    "transformer": profiles.transformer(12),
    "recurrent": profiles.recurrent(),
    "troubled": profiles.troubled(),
    "hostile": profiles.hostile(),
}


def trace(figure: Any, name: str) -> Any:
    return next(t for t in figure.data if t.name == name)


def assert_complete(figure: Any) -> None:
    """A title, a reading, and a title with a unit on every axis that carries labels."""
    assert figure.layout.title.text
    assert figure.layout.title.subtitle.text
    axes = [axis for axis in figure.select_xaxes() if axis.showticklabels is not False] + list(figure.select_yaxes())
    assert all(axis.title.text for axis in axes)
    assert all("no unit" in axis.title.text and axis.type == "log" for axis in figure.select_yaxes())


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("what", ["profile", "parameters"])
@pytest.mark.parametrize("template", ["dark", "light"])
def test_every_figure_has_a_title_a_reading_and_axes_with_units(name: str, what: str, template: str) -> None:
    figure = reports.to_figure(PROFILES[name], template=template, what=what)
    assert_complete(figure)
    json.loads(figure.to_json())


def test_the_figure_over_time_is_complete_and_holds_the_record_s_numbers() -> None:
    figure = reports.to_figure(profiles.recurrent(30), what="time")
    assert_complete(figure)
    hidden = trace(figure, "lstm: ∂L/∂h_t")
    assert list(hidden.x) == list(range(30))
    # 1e-2 at the last step, 0.2 decades less per step back.
    assert hidden.y[29] == pytest.approx(1e-2)
    assert hidden.y[0] == pytest.approx(10 ** (-2 - 0.2 * 29))


def test_the_profile_shows_activation_gradient_weights_and_biases_as_separate_series() -> None:
    profile = profiles.deep_sigmoid(3)
    figure = reports.to_figure(profile)
    assert list(trace(figure, "output").y) == pytest.approx([0.32, 0.52] * 3 + [0.2])
    # Linear k: 10**(-0.845 (3 - k)); its Sigmoid 10**0.6 more; the output 1.
    levels = [10 ** (-0.845 * (3 - k) + shift) for k in range(3) for shift in (0.0, 0.6)]
    assert list(trace(figure, "∂L/∂output").y) == pytest.approx([*levels, 1.0])
    assert list(trace(figure, "weights").x) == [0, 2, 4, 6]
    assert list(trace(figure, "weights").y) == pytest.approx([0.5 * v for v in (*levels[::2], 1.0)])
    assert list(trace(figure, "biases").y) == pytest.approx([*levels[::2], 1.0])


def test_branches_are_faint_marks_beside_the_trunk() -> None:
    figure = reports.to_figure(profiles.transformer(2))
    assert "lines" in trace(figure, "∂L/∂output, trunk").mode
    branch = trace(figure, "∂L/∂output, branches")
    assert branch.mode == "markers"
    assert branch.marker.opacity < 0.6
    assert len(branch.x) == 14


@pytest.mark.parametrize("statistic", ["rms", "mean_abs", "l2_norm", "max_abs"])
def test_the_statistic_can_be_chosen(statistic: str) -> None:
    figure = reports.to_figure(profiles.deep_sigmoid(2), statistic=statistic)
    # Four elements of equal size: all statistics agree but the L2 norm, which is √4 times as large.
    expected = 1.0 * (2.0 if statistic == "l2_norm" else 1.0)
    assert trace(figure, "∂L/∂output").y[-1] == pytest.approx(expected)


def test_what_has_no_place_on_a_log_axis_is_marked_at_its_edge_and_named() -> None:
    figure = reports.to_figure(profiles.troubled())
    ends = figure.layout.yaxis.range
    for name, positions in (("exactly zero", [0, 1]), ("NaN or infinity", [2, 3]), ("not observed", [4])):
        marks = trace(figure, name)
        assert list(marks.x) == positions
        assert all(ends[0] < math.log10(y) < ends[0] + 0.15 * (ends[1] - ends[0]) for y in marks.y)
    assert "the loss does not depend on it" in trace(figure, "not observed").text[0]
    assert trace(figure, "∂L/∂output, trunk").y[1] is None


def test_a_value_below_the_range_of_a_double_is_drawn_at_the_edge_and_told_in_full() -> None:
    gradient = trace(reports.to_figure(profiles.troubled()), "∂L/∂output, trunk")
    position = list(gradient.x).index(5)
    assert gradient.y[position] > 0.0
    assert "3.16e-321" in gradient.text[position]


def test_hover_text_names_the_layer_and_its_numbers() -> None:
    text = trace(reports.to_figure(profiles.deep_sigmoid(5)), "∂L/∂output").text[0]
    assert "<b>0</b> Linear 1×100" in text
    assert "∂L/∂output: rms 5.96e-05" in text


def test_names_are_escaped_wherever_plotly_would_read_markup() -> None:
    figure = reports.to_figure(profiles.hostile())
    text = figure.to_json()
    assert "<script" not in text.replace("\\u003c", "<")
    assert "&lt;script&gt;alert(4)" in figure.layout.title.text
    assert any("&lt;" in label for label in figure.layout.xaxis2.ticktext)


def test_a_thousand_layers_carry_at_most_twenty_labels() -> None:
    figure = reports.to_figure(PROFILES["thousand"])
    axis = figure.layout.xaxis2
    assert len(axis.ticktext) <= MAX_TICKS
    assert len(trace(figure, "∂L/∂output").x) == 1001


def test_labels_of_blocks_are_the_names_of_the_blocks() -> None:
    positions, labels = sampled_ticks([row.name for row in profiles.transformer(12).layers])
    assert "transformer.h.3" in labels
    names = [row.name for row in profiles.transformer(12).layers]
    assert all(names[i].startswith(label) for i, label in zip(positions, labels, strict=True))


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=3000), st.sampled_from(["{i}", "h.{b}.c{i}", "layer{i}"]))
def test_labels_keep_their_distance_whatever_the_names(count: int, pattern: str) -> None:
    names = [pattern.format(i=i, b=i // 7) for i in range(count)]
    positions, labels = sampled_ticks(names)
    assert len(positions) == len(labels) <= MAX_TICKS
    assert all(b - a >= count / MAX_TICKS for a, b in itertools.pairwise(positions) if count > MAX_TICKS)
    assert all(len(label) <= 24 for label in labels)


def test_many_points_are_drawn_with_webgl() -> None:
    assert {t.type for t in reports.to_figure(PROFILES["thousand"]).data} == {"scatter"}
    assert "scattergl" in {t.type for t in reports.to_figure(profiles.deep_sigmoid(2000, -0.001)).data}


def test_a_flat_series_gets_two_decades_of_axis() -> None:
    low, high = log_range([0.1, 0.1])
    assert high - low > 2.0
    assert low < 0.1 < high


def test_the_band_reaches_from_the_smallest_to_the_largest_element() -> None:
    from headwater.records import Statistics

    layers = [profiles.layer(str(i), "Linear", i, 1.0, Statistics.of([1e-6, 0.0, 1e-2])) for i in range(2)]
    band = trace(reports.to_figure(profiles.profile(layers), band=True), "∂L/∂output, smallest nonzero to largest")
    assert sorted(band.y) == pytest.approx([1e-6, 1e-6, 1e-2, 1e-2])


def test_colours_stay_clear_of_both_backgrounds() -> None:
    # WCAG 2.1, non-text contrast (1.4.11): 3:1. Sky and orange are lighter and only ever mark points beside a line.
    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for name in ("blue", "vermillion", "green", "gray"):
        for template in ("light", "dark"):
            paper = template_of(template).layout.paper_bgcolor  # type: ignore[arg-type]
            a, b = sorted((luminance(PALETTE[name]), luminance(paper)), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 3.0, (name, template)


def test_the_templates_differ_in_everything_but_the_series() -> None:
    light, dark = (reports.to_figure(profiles.deep_sigmoid(2), template=t) for t in ("light", "dark"))
    assert light.layout.template.layout.paper_bgcolor != dark.layout.template.layout.paper_bgcolor
    assert [t.line.color for t in light.data] == [t.line.color for t in dark.data]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "depth"}, "what is 'depth'; it can be 'profile', 'parameters', 'time'"),
        ({"statistic": "median"}, "statistic is 'median'; it can be 'rms'"),
        ({"what": "time"}, "no gradient over time"),
    ],
)
def test_an_unknown_option_is_refused_with_the_known_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reports.to_figure(profiles.deep_sigmoid(2), **options)


def test_an_empty_profile_is_refused_rather_than_drawn_blank() -> None:
    empty = profiles.profile([], trunk=())
    assert isinstance(empty, Profile)
    for what in ("profile", "parameters"):
        with pytest.raises(InputError, match="to draw"):
            reports.to_figure(empty, what=what)


def test_lines_leave_a_gap_where_there_is_no_value() -> None:
    figure = line_figure(
        [Series("a", [1.0, None, 0.0, math.nan, 1e-3], low=[0.5] * 5, high=[2.0] * 5)],
        title="T", x_title="step", y_title="rms (no unit)", reading="It falls.",
    )  # fmt: skip
    assert list(trace(figure, "a").y) == [1.0, None, None, None, 1e-3]
    assert figure.layout.yaxis.type == "log"
