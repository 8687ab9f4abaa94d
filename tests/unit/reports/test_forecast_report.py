"""The report on a forecast shows the record's numbers, what is unknown, and how a measurement compares."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from headwater import reports
from headwater.errors import InputError
from headwater.records.budget import Budget
from headwater.records.comparison import Comparison, ComparisonRow
from headwater.records.forecast import Forecast, ForecastCoverage, LayerForecast


def layer(name: str, gradient: float | None, **changes: Any) -> LayerForecast:
    defaults: dict[str, Any] = {
        "type": "Linear", "kind": "linear", "on_trunk": True, "shape": (8, 100), "activation_rms_log10": 0.0,
        "activation_band_decades": 0.01, "gradient_rms_log10": gradient,
        "gradient_band_decades": None if gradient is None else 0.02,
    }  # fmt: skip
    return LayerForecast(name=name, **{**defaults, **changes})


def forecast(*layers: LayerForecast, **coverage: Any) -> Forecast:
    return Forecast(
        layers=layers,
        parameters=(),
        budget=Budget((), (), None),
        coverage=ForecastCoverage(operations=12, **coverage),
        loss_source="probe",
        model_type="Net",
        batch_size=8,
        parameter_count=10_000,
        dtype="float32",
        torch_version="2.13.0",
        headwater_version="0.1.0",
    )


def row(name: str, predicted: float, measured: float, **changes: Any) -> ComparisonRow:
    outside = abs(predicted - measured) > 0.1
    defaults: dict[str, Any] = {"on_trunk": True, "band_decades": 0.02, "outside": outside}
    return ComparisonRow(name=name, forecast_log10=predicted, measured_log10=measured, **{**defaults, **changes})


def comparison(*rows: ComparisonRow, **changes: Any) -> Comparison:
    defaults: dict[str, Any] = {
        "rms_error_decades": 0.2, "branch_error_decades": math.nan, "weight_error_decades": 0.05,
        "outside": tuple(r.name for r in reversed(rows) if r.outside),
    }  # fmt: skip
    return Comparison(rows=rows, **{**defaults, **changes})


def words(record: object, **options: Any) -> str:
    return " ".join(reports.to_text(record, width=140, **options).split())


THREE = forecast(layer("0", -6.0), layer("2", -4.0), layer("4", 0.0))


def test_the_sentence_says_how_much_is_lost_and_in_which_format_it_is_too_small() -> None:
    # float16's smallest normal number is 2^-14 = 10^-4.21: layer 2 at 10^-4 fits, layer 0 at 10^-6 does not.
    assert reports.document_of(THREE).summary == (
        "From `4` to `0` the gradient shrinks by 6 decades over 2 trunk steps; float16 underflows from `0` on."
    )


def test_the_table_has_rms_band_chi_and_xi_of_every_layer() -> None:
    lines = {line.split()[0]: line.split() for line in reports.to_text(THREE, width=140).splitlines() if line.strip()}
    # χ of layer 0 is (10^-6 / 10^-4)² = 10^-4 and ξ = 1/ln 10^4 = 0.109; layer 2: 10^-8, ξ = 1/ln 10^8 = 0.0543.
    assert lines["0"][:6] == ["0", "Linear", "8×100", "1.00e+00", "1.00e-06", "0.02"]
    assert lines["0"][-2:] == ["1.00e-04", "0.109"]
    assert lines["2"][-2:] == ["1.00e-08", "0.0543"]


def test_the_trunk_is_summed_up() -> None:
    # χ̄ = √(10^-4 · 10^-8) = 10^-6, ξ = 1/ln 10^6 = 0.072.
    assert (
        "Trunk: 4 → 0, −6 decades in total; χ = 1e-06 per step (geometric mean), depth scale ξ = 0.072 steps."
        in words(THREE)
    )


def test_each_number_format_is_judged() -> None:
    text = words(THREE)
    assert "float32 and bfloat16 hold every known gradient on the trunk" in text
    assert "float16 underflows from 0 on, 2 trunk layers from the loss (1.00e-06 < 6.10e-05)" in text


def test_an_operation_without_a_rule_and_what_lies_behind_it_are_named() -> None:
    record = forecast(
        layer("a", None, unknown="cumprod"),
        layer("b", -1.0),
        unruled={"cumprod": "no rule", "sort": "depends on the order"},
        unknown_layers=("a",),
        unknown_parameters=("a.weight", "a.bias"),
    )
    text = words(record)
    assert "no rule for cumprod; sort (depends on the order)" in text
    assert "the gradient of 1 layer and 2 parameters is unknown" in text
    assert "gradient rms 1.00e-01; the rest of it is unknown." in text
    line = next(line for line in reports.to_text(record, width=140).splitlines() if line.startswith("a "))
    assert line.split() == ["a", "Linear", "8×100", "1.00e+00", "-", "-", "cumprod"]


def test_a_broken_assumption_is_a_warning() -> None:
    assert "⚠ Assumption: width below 16 at 0" in words(
        forecast(layer("0", -1.0), assumptions=("width below 16 at 0",))
    )


def test_an_exactly_zero_gradient_is_no_small_number() -> None:
    record = forecast(layer("0", -math.inf), layer("1", 0.0))
    assert reports.document_of(record).summary == (
        "At initialisation the gradient is exactly zero from `0` down to the input."
    )
    assert "0 (exact)" in words(record)


def test_a_forecast_of_nothing_says_so() -> None:
    record = forecast(layer("0", None, unknown="sort", activation_rms_log10=None))
    assert "Nothing is known of the gradient" in reports.document_of(record).summary
    assert "Number formats" not in words(record)
    with pytest.raises(InputError, match="nothing to draw"):
        reports.to_figure(record)


def test_a_deep_model_is_folded_also_where_blocks_call_functions() -> None:
    layers = [
        layer(name, -0.1 * (60 - i))
        for i in range(60)
        for name in (f"blocks.{i}.fc", f"blocks.{i}:relu", f"blocks.{i}")
    ]
    short, long = (reports.to_text(forecast(*layers), width=140, full=full) for full in (False, True))
    assert len(short.splitlines()) < 90
    assert "blocks.59:relu" in short
    assert "blocks.30.fc" not in short
    assert "blocks.30.fc" in long


@pytest.mark.parametrize("template", ["light", "dark"])
def test_the_figure_has_a_log_axis_and_a_band_of_three_deviations(template: Any) -> None:
    figure = reports.to_figure(THREE, template=template)
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.title.text == "rms per element"
    band, line = figure.data[:2]
    assert list(line.y) == pytest.approx([1e-6, 1e-4, 1.0])
    # 0.02 decades, three deviations: 10^(-6 + 0.06) on the upper edge, 10^(-6 - 0.06) at the end of the outline.
    assert band.fill == "toself"
    assert (band.y[0], band.y[-1]) == pytest.approx((10**-5.94, 10**-6.06))


def test_a_gradient_beyond_a_double_is_drawn_at_the_edge_and_told_in_full() -> None:
    figure = reports.to_figure(forecast(layer("0", -400.0), layer("1", 0.0)))
    assert figure.data[1].y[0] == pytest.approx(1e-250)
    assert "1.00e-400" in figure.data[1].text[0]


def test_a_comparison_lists_both_and_marks_what_is_outside() -> None:
    record = comparison(row("0", -6.0, -5.5), row("2", -4.0, -4.02), row("4", 0.0, 0.0), unmatched=("odd",))
    lines = {line.split()[0]: line.split() for line in reports.to_text(record, width=140).splitlines() if line.strip()}
    assert lines["0"] == ["0", "−6.000", "−5.500", "0.02", "+0.500", "outside"]
    assert lines["2"] == ["2", "−4.000", "−4.020", "0.02", "−0.020"]
    text = words(record)
    assert "RMS error, decades: 0.200 along the trunk, 0.050 of the parameters' gradients." in text
    assert "Outside the band: 1 trunk layer, the one nearest the loss first: 0." in text
    assert "Without a forecast: odd." in text
    assert "measured departs from theory from 0 on." in text


def test_a_folded_comparison_keeps_what_is_outside() -> None:
    rows = [row(f"b.{i}", -0.1 * i, -0.1 * i - (0.5 if i == 40 else 0.0)) for i in range(100)]
    line = next(
        line for line in reports.to_text(comparison(*rows), width=140).splitlines() if line.rstrip().endswith("outside")
    )
    assert line.split()[:3] == ["b.40", "−4.000", "−4.500"]


def test_the_figure_of_a_comparison_is_a_line_with_a_band_and_points() -> None:
    figure = reports.to_figure(comparison(row("0", -6.0, -5.5), row("2", -4.0, -4.02), row("4", 0.0, 0.0)))
    kinds = {trace.name: (trace.mode, len(trace.y)) for trace in figure.data if trace.name}
    assert kinds == {"forecast": ("lines", 3), "measured": ("markers", 2), "measured, outside the band": ("markers", 1)}
    assert figure.data[0].fill == "toself"
    assert figure.layout.yaxis.type == "log"


def test_branches_are_drawn_only_where_there_is_no_trunk() -> None:
    branch = row("side", -1.0, -1.0, on_trunk=False)
    assert list(reports.to_figure(comparison(row("0", 0.0, 0.0), branch)).data[1].x) == [0]
    assert len(reports.to_figure(comparison(branch)).data[1].x) == 1
    with pytest.raises(InputError, match="no layer in common"):
        reports.to_figure(comparison(rms_error_decades=math.nan))


def test_a_page_holds_both_with_their_pictures() -> None:
    page = reports.to_html_page([THREE, comparison(row("0", -6.0, -5.5), row("4", 0.0, 0.0))])
    assert page.count("Gradient forecast of Net") >= 1
    assert "Forecast and measurement" in page
    assert "How it was forecast" in page


def test_names_are_never_read_as_markup() -> None:
    record = dataclasses.replace(THREE, layers=(layer("**x**<b>", -1.0), layer("y", 0.0)))
    assert "<b>" not in reports.to_html_fragment(record).replace("&lt;b&gt;", "")
