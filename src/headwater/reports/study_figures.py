"""Pictures of a study: lines over layers, published figures dashed, ensembles as bands."""

from __future__ import annotations

import math
from typing import Any

from headwater.errors import InputError
from headwater.records.study import Chart, StudyPrescription, StudyResult
from headwater.reports.document import Template
from headwater.reports.figures import PALETTE, Series, line_figure

__all__ = ["draw_chart", "draw_trial", "study_figure"]

_LINE_COLORS = tuple(name for name in PALETTE if name != "gray")


def study_figure(result: StudyResult, *, template: Template = "dark", chart: int = 0) -> Any:
    """Draw one chart of a study.

    Args:
        result: the study.
        template: ``dark`` or ``light``.
        chart: which of its charts, from 0.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: there is no such chart.
    """
    if not 0 <= chart < len(result.charts):
        titles = "; ".join(f"{i}: {c.title}" for i, c in enumerate(result.charts))
        raise InputError(f"{result.name} has no chart {chart}; it has {titles}")
    return draw_chart(result.charts[chart], f"{result.name}: ", template)


def draw_chart(chart: Chart, prefix: str = "", template: Template = "dark") -> Any:
    """Draw a chart.

    Args:
        chart: what to draw; every series has the same positions.
        prefix: in front of its title.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.
    """
    lines: list[Series] = []
    color = -1
    for series in chart.series:
        # a dashed line belongs to the solid one before it and shares its colour
        color += 0 if series.dashed and lines else 1
        whole = all(v is not None for v in (*series.low, *series.high))
        lines.append(
            Series(
                name=series.name,
                y=series.y,
                low=tuple(v for v in series.low if v is not None) if whole else (),
                high=tuple(v for v in series.high if v is not None) if whole else (),
                hover=tuple(
                    f"{text}: {y:.3g}" if y is not None and ":" not in text else text
                    for text, y in zip(series.hover, series.y, strict=True)
                ),
                color=_LINE_COLORS[color % len(_LINE_COLORS)],
                dash="dash" if series.dashed else "solid",
            )
        )
    figure = line_figure(
        lines, title=f"{prefix}{chart.title}", x_title=chart.x_title, y_title=chart.y_title, reading=chart.reading,
        x=chart.series[0].x if chart.series else (), log=chart.log_y, template=template,
    )  # fmt: skip
    if chart.log_x and chart.series:
        ticks = list(chart.series[0].x)
        figure.update_xaxes(type="log", tickmode="array", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    elif chart.series:
        # layer numbers are whole, and there is no layer 0
        ticks = list(chart.series[0].x)[:: max(1, round(len(chart.series[0].x) / 20))]
        figure.update_xaxes(tickmode="array", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    return figure


def draw_trial(found: StudyPrescription, template: Template = "dark") -> Any:
    """Draw the losses of the trial.

    Args:
        found: the prescription; it has a trial.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: no trial was run.
    """
    if not found.losses_before or not found.losses_after:
        raise InputError("no trial was run: the time was spent before it")
    length = max(len(found.losses_before), len(found.losses_after))
    before, after = (
        [*losses, *[math.nan] * (length - len(losses))] for losses in (found.losses_before, found.losses_after)
    )
    return line_figure(
        [Series("unrepaired", before, color="gray", dash="dash"), Series(found.remedy, after)],
        title="Loss of the trial",
        x_title=f"steps of {found.optimizer} on the one batch",
        y_title="loss",
        reading="The same batch, the same seed and the same optimizer for both lines.",
        x=list(range(length)),
        log=all(v > 0 for v in (*before, *after) if math.isfinite(v)),
        template=template,
    )
