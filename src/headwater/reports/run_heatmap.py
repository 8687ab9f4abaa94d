"""The map of a run: layers down, optimizer steps across, log10 as colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from headwater.errors import InputError
from headwater.records.finding import Finding, Severity
from headwater.records.run_matrix import is_nonfinite
from headwater.reports.document import Template
from headwater.reports.figures import PALETTE, escape, finish, sampled_ticks
from headwater.reports.notation import counted, power
from headwater.reports.run_view import QUANTITIES, Grid, RunView, without_common_end

__all__ = ["FOLDED_ROWS", "add_finding_marks", "heatmap_figure", "read_heatmap", "step_axis"]

FOLDED_ROWS = 48
"""Rows of the map that a page opens with; repeated blocks are folded above. Chosen by us."""
SCALE = [[0.0, "#1f4e79"], [0.25, "#4d7ba3"], [0.5, "#9aa5a8"], [0.75, "#cdbf7a"], [1.0, "#fde945"]]
"""Dark blue to yellow, lightness rising evenly: the ends of cividis (Nuñez, Anderton, Renslow, *Optimizing colormaps with
consideration for color vision deficiency*, 2018) without its darkest part, which is kept for exact zeros. Ours."""
_ZERO, _NONFINITE = "#000000", PALETTE["vermillion"]
_MARKED = 12  # steps with a mark; the findings of others are in the table. Chosen by us.
_TONE = {Severity.CRITICAL: "vermillion", Severity.WARNING: "orange", Severity.INFO: "gray"}
_SYMBOL = {Severity.CRITICAL: "triangle-down", Severity.WARNING: "diamond", Severity.INFO: "circle"}
_UNITS = {
    "gradient": "log10 rms<br>(no unit)", "output_gradient": "log10 rms<br>(no unit)",
    "activation": "log10 rms<br>(no unit)", "update": "log10 ‖Δw‖/‖w‖<br>(no unit)",
}  # fmt: skip
_ROW_PIXELS, _LEGEND = 16, 40
_LABELS = 40  # names down the side of a map; chosen by us


def heatmap_figure(view: RunView, *, template: Template = "dark", max_rows: int = FOLDED_ROWS) -> Any:
    """Draw the map of a run, with a switch between the quantities that were observed.

    Args:
        view: of the run.
        template: ``dark`` or ``light``.
        max_rows: repeated blocks are folded above that many tensors.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: no quantity was observed.
    """
    grids = view.grids(max_rows)
    if not grids:
        raise InputError("this run has no gradient, activation or update to draw over its steps")
    figure = go.Figure()
    spans: list[tuple[int, int]] = []
    for number, grid in enumerate(grids):
        before = len(figure.data)
        for trace in _traces(grid, visible=number == 0):
            figure.add_trace(trace)
        spans.append((before, len(figure.data)))
    maps = len(figure.data)
    add_finding_marks(figure, view.summary.findings)
    axes = [_name_axis(grid) for grid in grids]
    if len(grids) > 1:
        figure.update_layout(updatemenus=[_switch(grids, spans, axes, maps, len(figure.data))])
    figure.update_layout(yaxis=axes[0])
    figure.update_xaxes(**step_axis(grids[0].steps), showgrid=False)
    figure.update_layout(showlegend=True)
    rows = max(len(grid.rows) for grid in grids)
    figure = finish(
        figure,
        title=f"Layers over steps: {view.summary.model_type or view.summary.name}",
        reading=read_heatmap(view, max_rows),
        template=template,
        height=min(900, max(260, 110 + _ROW_PIXELS * rows)) + _LEGEND,
    )
    # The menu is on top; the legend goes below, where it is in nobody's way.
    figure.update_layout(legend={"yref": "container", "y": 0.0, "yanchor": "bottom"}, margin={"b": 60 + _LEGEND})
    return figure


def read_heatmap(view: RunView, max_rows: int = FOLDED_ROWS) -> str:
    """One sentence that reads the map.

    Args:
        view: of the run.
        max_rows: as in :func:`heatmap_figure`.

    Returns:
        Prose.
    """
    grids = view.grids(max_rows)
    if not grids:
        return "No gradient was observed."
    grid = grids[0]
    values = grid.finite()
    if not values:
        return f"No {QUANTITIES[grid.quantity]} is finite and above zero."
    low = min(grid.rows, key=lambda row: min(_finite(row.values), default=math.inf))
    text = (
        f"One row per layer, the input's at the top, one column per {'step' if grid.stride == 1 else 'stretch of steps'}; "
        f"darker is smaller, black exactly zero. The {QUANTITIES[grid.quantity]} runs from {power(values[0])} "
        f"(`{_safe(low.label)}`) to {power(values[-1])}, {values[-1] - values[0]:.1f} decades."
    )
    broken = sum(any(is_nonfinite(v) for v in row.values) for row in grid.rows)
    if broken:
        text += f" {counted(broken, 'row')} had NaN or infinite elements: the cells in vermillion."
    if grid.stride > 1:
        text += f" Each column is the median of {counted(grid.stride, 'recorded step')}."
    if grid.folded:
        text += f" The {grid.count:,} layers are folded into {len(grid.rows)} rows; a fold shows its median."
    return text


def add_finding_marks(figure: Any, findings: Sequence[Finding], *, y: float = 1.0) -> None:
    """Mark the steps of findings: a dotted line over the whole picture and a symbol with the words at its top.

    Args:
        figure: with steps on its horizontal axes.
        findings: of the run; at most 12 steps, those of the worst first, are marked. A step has one mark, that of its
            worst finding, which names all of them.
        y: height of the symbol, 0 (bottom of the picture) to 1 (top).
    """
    by_step: dict[int, list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: (-f.severity.rank, f.symptom_of is not None, f.step or 0)):
        if finding.step is not None:
            by_step.setdefault(finding.step, []).append(finding)
    dated = dict(list(by_step.items())[:_MARKED])
    for step, (finding, *_) in dated.items():
        color = PALETTE[_TONE[finding.severity]]
        figure.add_shape(
            type="line", x0=step, x1=step, y0=0, y1=1, xref="x", yref="paper",
            line={"color": color, "width": 1.5, "dash": "dot"},
        )  # fmt: skip
    for severity in Severity:  # the worst is drawn last, on top of its neighbours
        own = {step: told for step, told in dated.items() if told[0].severity is severity}
        if own:
            figure.add_trace(
                go.Scatter(
                    x=list(own), y=[y] * len(own), yaxis="y99", mode="markers", cliponaxis=False,
                    name=f"{severity.value} finding", hoverinfo="text",
                    text=["<br>".join([f"<b>step {step}</b>", *map(_told, told)]) for step, told in own.items()],
                    marker={
                        "symbol": _SYMBOL[severity], "size": 11, "color": PALETTE[_TONE[severity]],
                        "line": {"width": 1, "color": "#ffffff"},
                    },
                )
            )  # fmt: skip
    if dated:
        figure.update_layout(
            yaxis99={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True, "side": "right"}
        )


def _told(finding: Finding) -> str:
    why = f", explained by {escape(finding.symptom_of)}" if finding.symptom_of else ""
    return f"{finding.severity.value}: {escape(finding.code)} {escape(finding.defect)}{why}"


def step_axis(steps: Sequence[int]) -> dict[str, Any]:
    """A horizontal axis of optimizer steps, a little wider than the steps themselves.

    Args:
        steps: ascending, at least one.

    Returns:
        Settings for ``update_xaxes``.
    """
    span = steps[-1] - steps[0]
    room = max(0.5, 0.012 * span)
    whole = {"tick0": 0, "dtick": 1} if span <= 10 else {}  # there is no step between two steps
    return {
        "title": {"text": "optimizer step", "standoff": 10}, "automargin": True,
        "range": [steps[0] - room, steps[-1] + room], **whole,
    }  # fmt: skip


def _finite(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def _safe(text: str) -> str:
    return text.replace("`", "'")


def _traces(grid: Grid, *, visible: bool) -> list[Any]:
    """The values, and over them what has no logarithm."""
    names = [escape(row.label) for row in grid.rows]
    values = grid.finite()
    low, high = (values[0], values[-1]) if values else (-1.0, 0.0)
    if high - low < 2.0:  # a flat map should look flat
        low, high = (low + high) / 2 - 1.0, (low + high) / 2 + 1.0
    unit = "log10 ‖Δw‖/‖w‖" if grid.quantity == "update" else "log10 rms"
    traces = [
        go.Heatmap(
            x=list(grid.steps), y=names, visible=visible, zmin=low, zmax=high, colorscale=SCALE, zsmooth=False,
            z=[[None if v is None or not math.isfinite(v) else round(v, 2) for v in row.values] for row in grid.rows],
            hovertemplate=f"<b>%{{y}}</b><br>step %{{x}}: {unit} %{{z:.2f}}<extra></extra>",
            hoverongaps=False, name=QUANTITIES[grid.quantity], showlegend=False,
            colorbar={
                "title": {"text": _UNITS[grid.quantity], "side": "top"}, "thickness": 14, "outlinewidth": 0, "x": 1.01,
                "nticks": 8,
            },
        )
    ]  # fmt: skip
    for label, color, wanted in (("exactly zero", _ZERO, _is_zero), ("NaN or infinity", _NONFINITE, is_nonfinite)):
        if any(wanted(v) for row in grid.rows for v in row.values):
            traces.append(
                go.Heatmap(
                    x=list(grid.steps), y=names, visible=visible, colorscale=[[0, color], [1, color]], showscale=False,
                    z=[[1 if wanted(v) else None for v in row.values] for row in grid.rows], hoverongaps=False,
                    text=[[_bad(v) if wanted(v) else None for v in row.values] for row in grid.rows],
                    hovertemplate="<b>%{y}</b><br>step %{x}: %{text}<extra></extra>", showlegend=False,
                )
            )  # fmt: skip
            traces.append(
                go.Scatter(
                    x=[None], y=[None], mode="markers", name=label, visible=visible, hoverinfo="skip",
                    marker={"symbol": "square", "size": 11, "color": color, "line": {"width": 1, "color": "#8a8a8a"}},
                )
            )  # fmt: skip
    return traces


def _is_zero(value: float | None) -> bool:
    return value == -math.inf


def _bad(value: float | None) -> str:
    return "exactly zero" if value == -math.inf else "infinite elements" if value == math.inf else "NaN elements"


def _name_axis(grid: Grid) -> dict[str, Any]:
    names = [escape(row.label) for row in grid.rows]
    positions, labels = sampled_ticks(without_common_end([row.label for row in grid.rows]), _LABELS)
    return {
        "type": "category", "categoryorder": "array", "categoryarray": names, "autorange": False,
        "range": [len(names) - 0.5, -0.5], "tickmode": "array", "tickvals": positions,
        "ticktext": [escape(label) for label in labels], "showgrid": False, "automargin": True,
        "title": {"text": "layer, input at the top", "standoff": 8},
    }  # fmt: skip


def _switch(
    grids: Sequence[Grid],
    spans: Sequence[tuple[int, int]],
    axes: Sequence[dict[str, Any]],
    maps: int,
    total: int,
) -> dict[str, Any]:
    """A menu: one quantity of the map at a time; the marks of the findings stay."""
    buttons = []
    for grid, (start, stop), axis in zip(grids, spans, axes, strict=True):
        shown = [start <= i < stop or i >= maps for i in range(total)]
        layout = {f"yaxis.{key}": value for key, value in axis.items() if key != "title"}
        buttons.append({"label": QUANTITIES[grid.quantity], "method": "update", "args": [{"visible": shown}, layout]})
    return {
        "type": "dropdown", "direction": "down", "x": 1.0, "xanchor": "right", "y": 1.02, "yanchor": "bottom",
        "pad": {"b": 2}, "buttons": buttons, "active": 0, "bgcolor": "rgba(128,128,128,0.12)",
        "bordercolor": "rgba(128,128,128,0.5)", "showactive": True, "font": {"size": 12},
    }  # fmt: skip
