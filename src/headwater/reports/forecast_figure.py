"""A forecast as a picture: theory as a line with its band, a measurement as points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from headwater.errors import InputError
from headwater.records.comparison import Comparison, ComparisonRow
from headwater.records.forecast import Forecast, LayerForecast
from headwater.reports.document import Template
from headwater.reports.figures import PALETTE, Series, clamp_log10, escape, line_figure, log_axis, log_range, scatter
from headwater.reports.notation import decades, power

__all__ = ["comparison_figure", "forecast_figure"]

BAND = 3.0
"""Standard deviations between draws that the shaded band covers on either side, as in a comparison. Chosen by us."""


def forecast_figure(forecast: Forecast, *, template: Template = "dark") -> Any:
    """Draw the forecast rms of gradient and activation along the layers.

    Args:
        forecast: the record.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: no layer has a forecast.
    """
    from headwater.reports.forecast_report import read_forecast

    rows = [
        row for row in forecast.layers if row.gradient_rms_log10 is not None or row.activation_rms_log10 is not None
    ]
    if not rows:
        raise InputError("no layer has a forecast, so there is nothing to draw; the coverage says why")
    series = []
    for what, color, symbol, dash in (
        ("gradient", "blue", "∂L/∂output", "solid"),
        ("activation", "orange", "output", "dash"),
    ):
        logs = [getattr(row, f"{what}_rms_log10") for row in rows]
        bands = [getattr(row, f"{what}_band_decades") for row in rows]
        if not any(_drawn(v) for v in logs):
            continue
        low, high = _edges(logs, bands)
        series.append(
            Series(
                f"{what}: rms of {symbol}",
                [_value(v) for v in logs],
                low,
                high,
                [_told(row, what) for row in rows],
                color,
                dash,
            )
        )
    return line_figure(
        series,
        title=f"Gradient forecast of {forecast.model_type}",
        x_title="layer, in execution order",
        y_title="rms per element",
        reading=f"{read_forecast(forecast)} Shaded: {BAND:g} standard deviations between draws.",
        names=[row.name for row in rows],
        template=template,
    )


def _drawn(log10: float | None) -> bool:
    return log10 is not None and math.isfinite(log10)


def _value(log10: float | None) -> float | None:
    return 10.0 ** clamp_log10(log10) if log10 is not None and math.isfinite(log10) else None


def _edges(logs: Sequence[float | None], bands: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Lower and upper edge of the band; where nothing is known it closes on the last value that is, so that no wedge opens."""
    low: list[float] = []
    high: list[float] = []
    known = next(v for v in logs if v is not None and math.isfinite(v))
    for value, band in zip(logs, bands, strict=True):
        width = 0.0
        if value is not None and math.isfinite(value):
            known, width = value, BAND * (band or 0.0)
        low.append(10.0 ** clamp_log10(known - width))
        high.append(10.0 ** clamp_log10(known + width))
    return low, high


def _told(row: LayerForecast, what: str) -> str:
    log10 = getattr(row, f"{what}_rms_log10")
    band = getattr(row, f"{what}_band_decades")
    if log10 is None:
        return f"{row.name}: {what} unknown"
    text = "0 (exact)" if log10 == -math.inf else power(log10)
    trunk = ", on the trunk" if row.on_trunk else ""
    return f"{row.name} ({row.type}{trunk}): {what} rms {text} ± {band or 0.0:.2f} decades"


def comparison_figure(comparison: Comparison, *, template: Template = "dark") -> Any:
    """Draw forecast and measured gradients: theory as a line with its band, the measurement as points.

    Args:
        comparison: the record.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``; the trunk's layers where there are any, else all.

    Raises:
        InputError: forecast and measurement have no layer in common.
    """
    rows = [row for row in comparison.rows if row.on_trunk] or list(comparison.rows)
    if not rows:
        raise InputError("forecast and measurement have no layer in common, so there is nothing to draw")
    logs = [row.forecast_log10 for row in rows]
    low, high = _edges(logs, [row.band_decades for row in rows])
    theory = Series(
        "forecast",
        [_value(v) for v in logs],
        low,
        high,
        [f"{row.name}: forecast {decades(row.forecast_log10)} ± {row.band_decades:.3f}" for row in rows],
        "blue",
    )
    y_title = "gradient rms relative to the last trunk layer"
    figure = line_figure(
        [theory],
        title=f"Gradient along the {'trunk' if rows[0].on_trunk else 'layers'}, forecast and measured",
        x_title="layer, in execution order",
        y_title=y_title,
        reading=f"{comparison.sentence()} Shaded: {BAND:g} standard deviations between draws.",
        names=[row.name for row in rows],
        template=template,
    )
    figure.update_traces(selector={"name": "forecast"}, mode="lines")
    for name, color, symbol, outside in (
        ("measured", "orange", "circle", False),
        ("measured, outside the band", "vermillion", "x", True),
    ):
        points = [(i, row) for i, row in enumerate(rows) if row.outside is outside]
        if points:
            figure.add_trace(_points(points, name, color, symbol))
    if comparison.outside:
        place = next((i for i, row in enumerate(rows) if row.name == comparison.outside[0]), None)
        if place is not None:
            figure.add_vline(
                x=place,
                line={"color": PALETTE["vermillion"], "width": 1, "dash": "dot"},
                annotation={"text": f"departs from theory<br>from {escape(rows[place].name)} on", "font": {"size": 11}},
                annotation_position="top left" if place > len(rows) / 2 else "top right",
            )
    figure.update_yaxes(
        **log_axis(
            y_title,
            log_range([*(math.log10(v) for v in (*low, *high)), *(row.measured_log10 for row in rows)]),
        )
    )
    return figure


def _points(points: Sequence[tuple[int, ComparisonRow]], name: str, color: str, symbol: str) -> Any:
    return scatter(
        len(points),
        x=[i for i, _ in points],
        y=[_value(row.measured_log10) for _, row in points],
        name=name,
        mode="markers",
        marker={"color": PALETTE[color], "symbol": symbol, "size": 8},
        text=[
            escape(
                f"{row.name}: measured {decades(row.measured_log10)}, {decades(row.difference_decades)} from the forecast"
            )
            for _, row in points
        ],
        hovertemplate="%{text}<extra></extra>",
    )
