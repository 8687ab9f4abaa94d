"""The pictures of a run: what a cell shows, how much a page may hold, what is never lost when it is thinned out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import runs

from headwater.errors import InputError
from headwater.records.finding import Severity
from headwater.reports import to_figure, to_html_page
from headwater.reports.run_depth import read_depth
from headwater.reports.run_figures import GUIDE, run_figure
from headwater.reports.run_heatmap import FOLDED_ROWS, SCALE, step_axis
from headwater.reports.run_view import CELLS, COLUMNS, RunView, thin

WHAT = ("heatmap", "depth", "course", "updates", "contributors")


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("template", ["dark", "light"])
def test_every_picture_has_a_title_units_and_a_sentence(what: str, template: str) -> None:
    figure = run_figure(runs.spiking(), what=what, template=template)  # type: ignore[arg-type]
    assert figure.layout.title.text
    assert figure.layout.title.subtitle.text.endswith(".")
    axes = [axis for axis in figure.select_xaxes()][-1:] + list(figure.select_yaxes())
    for axis in axes:
        assert axis.visible is False or axis.title.text, axis


def test_a_cell_is_the_log10_of_the_rms() -> None:
    figure = run_figure(runs.vanishing(5, 20))
    trace = figure.data[0]
    # Layer i: 10**(-2 - 0.8·(4 - i)).
    assert [row[0] for row in trace.z] == pytest.approx([-5.2, -4.4, -3.6, -2.8, -2.0])
    assert list(trace.y) == [f"layers.{i}.weight" for i in range(5)]
    assert list(trace.x) == [0, 1, 2, 4, 8, 10, 20]
    assert trace.colorbar.title.text == "log10 rms<br>(no unit)"
    assert figure.layout.yaxis.range == (4.5, -0.5)  # the input at the top


def test_a_flat_map_spans_two_decades_and_so_looks_flat() -> None:
    run = runs.healthy(3, 20)
    run.formulas = {"gradient": lambda t, s: 1e-3}
    trace = run_figure(run).data[0]
    assert (trace.zmin, trace.zmax) == (-4.0, -2.0)


def test_zero_and_nan_have_their_own_colours_and_nothing_observed_has_none() -> None:
    run = runs.healthy(4, 20)
    values = {0: 0.0, 2: math.nan, 4: None}
    run.formulas = {"gradient": lambda t, s: values.get(t.order, 1e-3)}
    figure = run_figure(run)
    shown, zero, _, nan, _ = figure.data
    assert [row[0] for row in shown.z] == [None, None, -3.0]  # the third layer was never observed: it has no row
    assert [row[0] for row in zero.z] == [1, None, None]
    assert [row[0] for row in nan.z] == [None, 1, None]
    assert zero.colorscale[0][1] == "#000000"
    assert {trace.name for trace in figure.data} >= {"exactly zero", "NaN or infinity"}


def test_a_tensor_with_some_nan_or_infinite_elements_is_marked_though_its_rms_is_finite() -> None:
    run = runs.healthy(2, 8)
    assert len(RunView(run).grid("gradient").finite()) == 10  # type: ignore[union-attr]
    # Steps 0, 1, 2, 4, 8: an infinite element at 1, a NaN at 4 among 3 infinite ones.
    run.nonfinite = lambda quantity: {"layers.0.weight": ((1, 0, 1), (4, 1, 3))}  # type: ignore[method-assign]
    grid = RunView(run).grid("gradient")
    assert grid is not None
    assert grid.rows[0].values[1] == math.inf
    assert [math.isnan(v) for v in grid.rows[0].values if v is not None] == [False, False, False, True, False]
    figure = run_figure(run)
    (marks,) = [t for t in figure.data if t.type == "heatmap" and t.text is not None]
    assert list(marks.text[0]) == [None, "infinite elements", None, "NaN elements", None]


def test_the_switch_shows_one_quantity_at_a_time() -> None:
    figure = run_figure(runs.spiking())
    (menu,) = figure.layout.updatemenus
    assert [b.label for b in menu.buttons] == [
        "gradient of weights", "gradient of outputs", "activations", "update ratio"
    ]  # fmt: skip
    for button in menu.buttons:
        shown = [t for t, on in zip(figure.data, button.args[0]["visible"], strict=True) if on]
        assert [t.name for t in shown if t.type == "heatmap"] == [button.label]
        assert any(t.name == "warning finding" for t in shown)
        names = next(t.y for t in shown if t.type == "heatmap")
        assert list(button.args[1]["yaxis.categoryarray"]) == list(names)


def test_blocks_fold_and_every_layer_is_in_exactly_one_row() -> None:
    view = RunView(runs.vanishing(1000, 100, 0.02))
    folded, whole = view.grid("gradient", FOLDED_ROWS), view.grid("gradient")
    assert folded is not None
    assert whole is not None
    assert len(folded.rows) <= FOLDED_ROWS
    assert folded.folded
    assert not whole.folded
    names = [name for row in folded.rows for name in row.names]
    assert names == [row.label for row in whole.rows]
    by_name = {row.label: row.values[0] for row in whole.rows}
    middle = folded.rows[len(folded.rows) // 2]
    inside = sorted(by_name[name] for name in middle.names)  # type: ignore[type-var]
    assert middle.values[0] in inside
    assert middle.values[0] == inside[(len(inside) - 1) // 2]  # the lower median


def test_a_map_never_holds_more_cells_than_a_page_can_bear() -> None:
    grid = RunView(runs.vanishing(1000, 10_000, 0.02)).grid("gradient")
    assert grid is not None
    assert len(grid.rows) * len(grid.steps) <= CELLS
    assert grid.stride > 1
    short = RunView(runs.healthy(3, 10_000)).grid("gradient")
    assert short is not None
    assert len(short.steps) <= COLUMNS


@pytest.mark.slow
def test_a_page_of_a_thousand_layers_and_a_hundred_thousand_steps_stays_below_12_mb() -> None:
    run = runs.vanishing(1000, 100_000, 0.02)
    run._norm_log10 = lambda step, group: -1.0  # type: ignore[method-assign]  # a thousand layers at 10,000 steps
    page = to_html_page(RunView(run))
    assert len(run.steps) > 10_000
    assert len(page.encode()) < 12e6


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=300), st.integers(2, 60))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float | None], points: int) -> None:
    kept = thin(range(len(values)), values, points)
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    assert len(kept) <= max(points, 2) + 2
    seen = [v for v in values if v is not None]
    if seen:
        chosen = [values[i] for i in kept if values[i] is not None]
        assert max(v for v in chosen if v is not None) == max(seen)
        assert min(v for v in chosen if v is not None) == min(seen)


def test_a_spike_of_one_step_survives_in_the_course() -> None:
    run = runs.spiking(3, 20_000, at=10_000, which=1)
    figure = run_figure(run, what="course")
    norm = next(t for t in figure.data if t.name == "gradient norm before clipping")
    assert len(norm.x) < len(run.steps)
    assert 10_000 in norm.x
    after = next(t for t in figure.data if t.name == "gradient norm after clipping")
    at = {x: y for x, y in zip(norm.x, norm.y, strict=True)}
    clipped = {x: y for x, y in zip(after.x, after.y, strict=True)}
    assert clipped.get(10_000, 0.01 * at[10_000]) == pytest.approx(0.01 * at[10_000], rel=1e-3)


def test_only_panels_with_numbers_are_drawn() -> None:
    plain = runs.healthy()
    titles = [axis.title.text for axis in run_figure(plain, what="course").select_yaxes() if axis.title.text]
    assert [t.partition("<br>")[0] for t in titles] == ["loss", "gradient norm", "learning rate"]
    scaled = [a.title.text for a in run_figure(runs.spiking(), what="course").select_yaxes() if a.title.text]
    assert scaled[-1].startswith("loss scale")


def test_a_loss_that_may_be_negative_is_drawn_on_a_plain_axis() -> None:
    run = runs.healthy()
    run.loss = lambda s: -1.0 + s
    axis = next(iter(run_figure(run, what="course").select_yaxes()))
    assert axis.type != "log"


def test_the_guide_line_is_named_a_rule_of_thumb() -> None:
    figure = run_figure(runs.healthy(), what="updates")
    (guide,) = [t for t in figure.data if "rule of thumb" in (t.name or "")]
    assert set(guide.y) == {GUIDE}


def test_the_slider_restyles_what_is_drawn_and_nothing_else() -> None:
    run = runs.vanishing(6, 400)
    figure = run_figure(run, what="depth")
    (slider,) = figure.layout.sliders
    assert len(slider.steps) <= 40
    assert [slider.steps[0].label, slider.steps[-1].label] == ["0", "400"]
    changed, traces = slider.steps[-1].args
    assert len(changed["y"]) == len(traces)
    for index, y in zip(traces, changed["y"], strict=True):
        assert list(figure.data[index].y) == list(y)
        assert len(y) == 6
    # Layer 0 of 6: 10**(-2 - 4) = 1e-6.
    weights = next(t for t in figure.data if t.name == "weight gradient")
    assert weights.y[0] == pytest.approx(1e-6, rel=1e-2)


def test_the_sentence_compares_the_ends_of_one_model() -> None:
    assert read_depth(RunView(runs.vanishing(6, 20))).startswith(
        "At the end of the run the gradient of `layers.0.weight` is 1.00e-06 and that of `layers.5.weight` 1.00e-02: "
        "−4 decades on the way back."
    )
    assert "`G.layers.3.weight`" in read_depth(RunView(runs.two_models()))


def test_contributors_are_percent_and_the_largest_is_on_top() -> None:
    figure = run_figure(runs.spiking(), what="contributors")
    (bars,) = figure.data
    assert bars.x[-1] == pytest.approx(100.0, abs=0.1)
    assert figure.layout.yaxis.ticktext[-1] == "layers.3.weight"
    assert len(bars.x) == 3  # the others hold less than a thousandth


def test_unknown_options_and_empty_runs_raise() -> None:
    with pytest.raises(InputError, match="what is 'pie'"):
        to_figure(RunView(runs.healthy()), what="pie")
    with pytest.raises(InputError, match="takes no option colour"):
        run_figure(runs.healthy(), colour=1)
    for what in WHAT:
        with pytest.raises(InputError):
            run_figure(runs.nothing(), what=what)


def test_lightness_of_the_scale_rises_evenly() -> None:
    # Rec. 709 luma of the five colours: a map that is printed in grey keeps its order.
    def luma(color: str) -> float:
        r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    steps = [luma(color) for _, color in SCALE]
    assert all(0.1 < b - a < 0.25 for a, b in itertools.pairwise(steps))


def test_names_cannot_become_markup_of_the_plot() -> None:
    for what in ("heatmap", "depth"):
        shown = json.loads(run_figure(runs.hostile(), what=what).to_json())
        assert runs.HOSTILE not in json.dumps(shown)


def test_steps_without_a_finite_norm_or_loss_are_crosses_in_their_panel() -> None:
    run = runs.healthy(2, 8)
    run.formulas = {**run.formulas, "gradient": lambda t, s: 1e-3}
    rows = run.recorded_steps()
    bad = {1: math.nan, 4: math.inf, 8: -math.inf}  # an exact zero is a number
    run.recorded_steps = lambda group=None: tuple(  # type: ignore[method-assign]
        dataclasses.replace(r, gradient_norm_log10=bad.get(r.step, -3.0), loss=math.nan if r.step == 2 else 1.0)
        for r in rows
    )
    figure = run_figure(run, what="course")
    crosses = {t.name: list(t.x) for t in figure.data if t.name and t.name.endswith("NaN or infinite")}
    assert crosses == {"gradient norm NaN or infinite": [1, 4], "loss NaN or infinite": [2]}


def test_there_is_no_tick_between_two_steps() -> None:
    assert step_axis([0, 1])["dtick"] == 1
    assert "dtick" not in step_axis([0, 200])


def test_a_step_has_one_mark_with_the_words_of_all_its_findings_and_the_worst_is_on_top() -> None:
    run = runs.healthy(2, 20)
    warnings = [runs.finding(f"HW60{i}", Severity.WARNING, 0, symptom_of="HW101") for i in range(3)]
    run.findings = (*warnings, runs.finding("HW101", step=0), runs.finding("HW602", Severity.WARNING, 4))
    marks = [t for t in run_figure(run).data if t.name and t.name.endswith("finding")]
    assert [(t.name, list(t.x)) for t in marks] == [("warning finding", [4]), ("critical finding", [0])]
    assert marks[1].text[0].startswith("<b>step 0</b><br>critical: HW101")
    assert marks[1].text[0].count("explained by HW101") == 3


def test_a_loss_scale_has_an_axis_of_powers_of_two() -> None:
    figure = run_figure(runs.spiking(), what="course")
    (axis,) = [figure.layout[k] for k in figure.layout if k.startswith("yaxis") and figure.layout[k].ticktext]
    assert "2<sup>16</sup>" in axis.ticktext
