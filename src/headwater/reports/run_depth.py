"""The profile of a run along its depth, with a slider over the steps."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from headwater.errors import InputError
from headwater.records.run_matrix import is_nonfinite, weights_first
from headwater.records.step import Quantity
from headwater.reports.document import Template
from headwater.reports.figures import PALETTE, clamp_log10, escape, finish, log_axis, log_range, name_axis
from headwater.reports.notation import decades, power
from headwater.reports.run_view import Grid, RunView, quantile, without_common_end

__all__ = ["depth_figure", "read_depth"]

SLIDER_STEPS = 30
"""Positions of the slider: more would fill the page with copies of the profile. Chosen by us."""
_SERIES: tuple[tuple[Quantity, str, str, str], ...] = (
    ("gradient", "weight gradient", "green", "triangle-up"),
    ("output_gradient", "∂L/∂output", "vermillion", "square"),
    ("activation", "output", "blue", "circle"),
)
_CHARACTER, _NARROWEST = 6, 440  # pixels of a letter at 11 px, and of the axis of a plot 540 wide
_MARKERS = 150  # positions above which marks shrink; chosen by us


def depth_figure(view: RunView, *, template: Template = "dark") -> Any:
    """Draw gradient and activations along the layers at a step that a slider chooses; the band is the whole run.

    Args:
        view: of the run.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: no gradient was observed.
    """
    grid = view.grid("gradient")
    if grid is None:
        raise InputError("no gradient of a weight was observed in this run")
    names = [row.label for row in grid.rows]
    owners = _owners(view)
    series: list[tuple[str, str, str, Grid, list[tuple[float | None, ...] | None]]] = []
    for quantity, title, color, symbol in _SERIES:
        found = view.grid(quantity)
        if found is None:
            continue
        by_name = {name: row.values for row in found.rows for name in row.names}
        rows = [by_name.get(name if quantity == "gradient" else owners.get(name, "")) for name in _first_names(grid)]
        if any(row is not None for row in rows):
            series.append((title, color, symbol, found, rows))
    shown = _slider_steps(view, grid)
    everything = [v for *_, rows in series for row in rows if row for v in row if v is not None and math.isfinite(v)]
    ends = log_range(everything, room_below=True)
    floor = _short(10.0 ** clamp_log10(ends[0] + 0.06 * (ends[1] - ends[0])))
    figure = go.Figure(_band(grid))
    start = len(figure.data)
    for title, color, symbol, found, rows in series:
        size = 7 if len(names) <= _MARKERS else 3
        figure.add_trace(
            go.Scatter(
                x=list(range(len(names))), y=_at(found, rows, shown[-1]), name=title, connectgaps=False,
                mode="lines+markers" if len(names) <= 2 * _MARKERS else "markers", text=[escape(n) for n in names],
                hovertemplate=f"<b>%{{text}}</b><br>{title}: rms %{{y:.3g}}<extra></extra>",
                line={"color": PALETTE[color], "width": 2},
                marker={"color": PALETTE[color], "symbol": symbol, "size": size},
            )
        )  # fmt: skip
    ceiling = _short(10.0 ** clamp_log10(ends[1] - 0.03 * (ends[1] - ends[0])))
    marks: list[dict[int, list[float | None]]] = []
    for what, color, symbol, wanted, height in (
        ("exactly zero", "orange", "triangle-down", _is_zero, floor),
        ("NaN or infinite", "vermillion", "x", is_nonfinite, ceiling),
    ):
        placed = {step: _placed(grid, step, wanted, height) for step in shown}
        if any(any(v is not None for v in column) for column in placed.values()):
            marks.append(placed)
            figure.add_trace(
                go.Scatter(
                    x=list(range(len(names))), y=placed[shown[-1]], name=f"weight gradient {what}", mode="markers",
                    text=[escape(n) for n in names], hovertemplate=f"<b>%{{text}}</b><br>{what}<extra></extra>",
                    marker={"color": PALETTE[color], "symbol": symbol, "size": 9},
                )
            )  # fmt: skip
    axis = name_axis(without_common_end(names), "layer with weights, the input's on the left")
    labels = axis["ticktext"]
    longest = max(len(label) for label in labels)
    # Whether they stand upright is settled here, for the narrowest plot: what lies under them has to know.
    upright = _CHARACTER * (longest + 2) * len(labels) > _NARROWEST
    del axis["autotickangles"]
    room = 60 + (_CHARACTER * longest if upright else 20)
    figure.update_xaxes(**axis, tickangle=-90 if upright else 0)
    figure.update_layout(sliders=[_slider(series, shown, marks, start, len(figure.data), room)])
    figure.update_yaxes(**log_axis("rms per element<br>(no unit, log scale)", ends))
    figure = finish(
        figure, title="Along the depth, step by step", reading=read_depth(view), template=template, height=430
    )
    figure.layout.legend.itemsizing = "constant"
    figure.layout.height += 55 + room  # the slider under the names
    return figure


def read_depth(view: RunView) -> str:
    """One sentence that reads the profile at the last step.

    Args:
        view: of the run.

    Returns:
        Prose.
    """
    grid = view.grid("gradient")
    if grid is None:
        return "No gradient of a weight was observed."
    groups = {tensor.name: tensor.group for tensor in view.run.tensors}
    group = groups[grid.rows[0].names[0]]
    own = [row for row in grid.rows if groups[row.names[0]] == group]  # of several models the first
    last = [(row.label, v) for row in own if (v := _value(grid, row.values, grid.steps[-1])) is not None]
    known = [(name, v) for name, v in last if math.isfinite(v)]
    if len(known) < 2:
        return "The slider chooses the step; the band holds eight of ten steps of the run."
    first, final = known[0], known[-1]
    return (
        f"At the end of the run the gradient of `{_safe(first[0])}` is {power(first[1])} and that of "
        f"`{_safe(final[0])}` {power(final[1])}: {decades(first[1] - final[1])} on the way back. "
        "The band holds eight of ten steps of the run; lines of outputs are of the last step at which layers were looked at."
    )


def _safe(text: str) -> str:
    return text.replace("`", "'")


def _first_names(grid: Grid) -> list[str]:
    return [row.names[0] for row in grid.rows]


def _owners(view: RunView) -> Mapping[str, str]:
    return {tensor.name: tensor.layer for tensor in weights_first(view.run.tensors) if tensor.layer is not None}


def _slider_steps(view: RunView, grid: Grid) -> list[int]:
    """Steps for the slider: findings and steps with layers first, the rest evenly, the first and the last always."""
    with_layers = view.grid("output_gradient") or view.grid("activation")
    pool = list(with_layers.steps) if with_layers is not None else []
    if len(pool) < 5:
        pool = list(grid.steps)
    marked = [
        max((s for s in grid.steps if s <= f.step), default=grid.steps[0]) for f in view.summary.findings if f.step
    ]
    fixed = [grid.steps[0], grid.steps[-1], *marked[:8]]
    room = max(2, SLIDER_STEPS - len(set(fixed)))
    evenly = pool if len(pool) <= room else [pool[round(i * (len(pool) - 1) / (room - 1))] for i in range(room)]
    return sorted({*fixed, *evenly})


def _column(grid: Grid, step: int) -> int | None:
    """The column that a step falls into: the last one that begins at it or before."""
    position = bisect.bisect_right(grid.steps, step) - 1
    return position if position >= 0 else None


def _value(grid: Grid, values: Sequence[float | None], step: int) -> float | None:
    column = _column(grid, step)
    return None if column is None else values[column]


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _at(grid: Grid, rows: Sequence[Sequence[float | None] | None], step: int) -> list[float | None]:
    j = _column(grid, step)
    if j is None:
        return [None] * len(rows)
    return [
        _short(10.0 ** clamp_log10(v)) if row is not None and (v := row[j]) is not None and math.isfinite(v) else None
        for row in rows
    ]


def _is_zero(value: float | None) -> bool:
    return value == -math.inf


def _placed(grid: Grid, step: int, wanted: Callable[[float | None], bool], height: float) -> list[float | None]:
    """Marks of what has no logarithm."""
    return [height if wanted(_value(grid, row.values, step)) else None for row in grid.rows]


def _band(grid: Grid) -> Any:
    """Eight of ten columns of each weight's gradient, as one closed outline."""
    xs, low, high = [], [], []
    for i, row in enumerate(grid.rows):
        seen = sorted(v for v in row.values if v is not None and math.isfinite(v))
        if seen:
            xs.append(i)
            low.append(_short(10.0 ** clamp_log10(quantile(seen, 0.1))))
            high.append(_short(10.0 ** clamp_log10(quantile(seen, 0.9))))
    return go.Scatter(
        x=[*xs, *reversed(xs)], y=[*high, *reversed(low)], fill="toself", fillcolor="rgba(0,158,115,0.18)",
        line={"width": 0}, mode="lines", hoverinfo="skip", name="weight gradient, eight of ten steps",
    )  # fmt: skip


def _slider(
    series: Sequence[tuple[str, str, str, Grid, list[tuple[float | None, ...] | None]]],
    steps: Sequence[int],
    marks: Sequence[Mapping[int, list[float | None]]],
    start: int,
    stop: int,
    room: int,
) -> dict[str, Any]:
    traces = list(range(start, stop))
    entries = []
    for step in steps:
        ys: list[list[float | None]] = [_at(grid, rows, step) for _, _, _, grid, rows in series]
        ys += [placed[step] for placed in marks]
        entries.append({"label": f"{step:,}", "method": "restyle", "args": [{"y": ys}, traces]})
    return {
        "active": len(steps) - 1, "steps": entries, "pad": {"t": room, "b": 8}, "len": 1.0, "x": 0.0,
        "currentvalue": {"prefix": "step ", "xanchor": "left", "font": {"size": 14}}, "font": {"size": 10},
        "bgcolor": "rgba(128,128,128,0.25)", "bordercolor": "rgba(128,128,128,0.5)", "tickcolor": "rgba(128,128,128,0.6)",
        "activebgcolor": PALETTE["blue"],
    }  # fmt: skip
