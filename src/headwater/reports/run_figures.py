"""The pictures of a run over its steps: loss and norms, update ratios, who made a spike; and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from headwater.errors import InputError
from headwater.records.run import RecordedStep, RunSource
from headwater.records.run_matrix import is_nonfinite
from headwater.records.run_summary import Spike
from headwater.records.statistics import LOG10_2
from headwater.records.step import RunEvent
from headwater.reports.document import Template
from headwater.reports.figures import PALETTE, clamp_log10, escape, finish, log_axis, log_range, scatter
from headwater.reports.notation import counted, percent, power, scientific, shorten_names
from headwater.reports.run_depth import depth_figure
from headwater.reports.run_heatmap import FOLDED_ROWS, add_finding_marks, heatmap_figure, step_axis
from headwater.reports.run_view import ROWS, RunView, quantile, thin

__all__ = [
    "GUIDE",
    "contributors_figure",
    "course_figure",
    "read_course",
    "read_spike",
    "read_updates",
    "run_figure",
    "update_figure",
]

GUIDE = 1e-3
"""‖Δw‖/‖w‖ per step that is often named as healthy: a rule of thumb among practitioners (log10 about −3), no law."""
_WHAT = ("heatmap", "depth", "course", "updates", "contributors")
_COLORS = ("blue", "vermillion", "green", "purple", "orange", "sky")
_PANEL = 150  # pixels of one panel of the course
_PANEL_TICKS = 4.5  # numbers that its axis has room for; chosen by us
_EVENT_MARKS = 150  # events with a mark; chosen by us
_SMALLEST_SHARE = 1e-3  # of the squared norm: below, a bar is not visible. Chosen by us.
_NOTABLE = 0.3  # decades, a factor of 2, by which a peak stands out. Chosen by us.
_QUIET = ("attached", "detached", "flight_record", "notice")  # events without a mark on the plots


def run_figure(run: RunSource | RunView, *, template: Template = "dark", what: str = "heatmap", **options: Any) -> Any:
    """Draw a run.

    Args:
        run: from ``headwater.open_run``.
        template: ``dark`` or ``light``.
        what: ``heatmap`` (layers over steps), ``depth`` (along the layers, with a slider over the steps), ``course``
            (loss, gradient norm, learning rate, loss scale), ``updates`` (update ratios) or ``contributors`` (who made
            a spike).
        **options: ``full=True`` for ``heatmap``: a row per layer, nothing folded.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: an option is unknown, or there is nothing to draw.
    """
    view = run if isinstance(run, RunView) else RunView(run)
    if what not in _WHAT:
        raise InputError(f"what is {what!r}; it can be {', '.join(map(repr, _WHAT))}")
    full = options.pop("full", False)
    if options:
        raise InputError(f"the figure of a run takes no option {', '.join(sorted(options))}")
    if what == "heatmap":
        return heatmap_figure(view, template=template, max_rows=ROWS if full else FOLDED_ROWS)
    if what == "contributors":
        if not view.summary.spikes:
            raise InputError("no spike was found in this run, so there are no contributors to draw")
        return contributors_figure(view.summary.spikes[0], template=template)
    draw: dict[str, Callable[..., Any]] = {"depth": depth_figure, "course": course_figure, "updates": update_figure}
    return draw[what](view, template=template)


# -------------------------------------------------------------------- loss, norm, learning rate, scale


def _log(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) or value <= 0.0 else math.log10(value)


def _post_log10(row: RecordedStep) -> float | None:
    if row.gradient_norm_log10 is None or not row.clip_coefficient or row.clip_coefficient == 1.0:
        return None if row.gradient_norm_log10 is None else row.gradient_norm_log10
    return row.gradient_norm_log10 + math.log10(row.clip_coefficient)


def course_figure(view: RunView, *, template: Template = "dark") -> Any:
    """Draw loss, gradient norm, learning rate and loss scale over the steps, one panel each, with events marked.

    Args:
        view: of the run.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: no step was recorded.
    """
    rows = view.recorded_steps
    if not rows:
        raise InputError("no step was recorded, so there is no course to draw")
    by_group = {group: [row for row in rows if row.group == group] for group in view.summary.groups}
    clipped = any(row.clip_coefficient not in (None, 1.0) for row in rows)
    scaled = any(row.loss_scale not in (None, 1.0) for row in rows)
    panels: list[tuple[str, bool, list[tuple[str, Callable[[RecordedStep], float | None], str]]]] = []
    if any(_finite(row.loss) for row in rows):
        positive = all(row.loss > 0 for row in rows if row.loss is not None and math.isfinite(row.loss))
        loss: Callable[[RecordedStep], float | None] = (
            (lambda row: _log(row.loss)) if positive else (lambda row: row.loss if _finite(row.loss) else None)
        )
        panels.append((f"loss<br>({'log scale' if positive else 'no unit'})", positive, [("loss", loss, "solid")]))
    norms: list[tuple[str, Callable[[RecordedStep], float | None], str]] = [
        ("gradient norm" + (" before clipping" if clipped else ""), lambda row: row.gradient_norm_log10, "solid")
    ]
    if clipped:
        norms.append(("gradient norm after clipping", _post_log10, "dot"))
    if any(row.gradient_norm_log10 is not None for row in rows):
        panels.append(("gradient norm<br>(l2, log scale)", True, norms))
    if any(_log(row.learning_rate) is not None for row in rows):
        panels.append(
            ("learning rate<br>(log scale)", True, [("learning rate", lambda row: _log(row.learning_rate), "solid")])
        )
    if scaled:
        panels.append(("loss scale<br>(log scale)", True, [("loss scale", lambda row: _log(row.loss_scale), "solid")]))
    if not panels:
        raise InputError("neither a loss nor a gradient norm was recorded, so there is no course to draw")
    titles = [title for title, *_ in panels]
    broken: dict[int, Callable[[RecordedStep], bool]] = {
        number: reads
        for number, title in enumerate(titles, 1)
        if (reads := next((r for start, r in _BROKEN.items() if title.startswith(start)), None)) is not None
    }
    figure = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=0.08 if len(panels) < 4 else 0.05)
    for number, (title, log, lines) in enumerate(panels, 1):
        seen: list[float] = []
        for group_number, (group, own) in enumerate(by_group.items()):
            for name, value, dash in lines:
                color = _COLORS[(number - 1 + (dash == "dot") + 3 * group_number) % len(_COLORS)]
                points = _line(own, value, f"{name}, {group}" if group else name, color, dash, log)
                seen += [v for row in own if (v := value(row)) is not None and math.isfinite(v)]
                if points is not None:
                    figure.add_trace(points, row=number, col=1)
        marked = [row for row in rows if number in broken and broken[number](row)]
        if marked:
            ends = log_range(seen) if log else (min(seen, default=0.0), max(seen, default=1.0))
            top = ends[1] - 0.06 * (ends[1] - ends[0])
            what = titles[number - 1].partition("<br>")[0]
            figure.add_trace(_marks(marked, 10.0**top if log else top, what), row=number, col=1)
        if log:
            figure.update_yaxes(row=number, col=1, **_panel_axis(title, log_range(seen)))
        else:
            figure.update_yaxes(row=number, col=1, title={"text": title, "standoff": 10}, automargin=True)
    axis = step_axis([row.step for row in rows])
    figure.update_xaxes(range=axis["range"])
    figure.update_xaxes(row=len(panels), col=1, **axis)
    add_finding_marks(figure, view.summary.findings)
    _add_events(figure, view.summary.events)
    return finish(
        figure, title=f"Course of the run: {view.summary.model_type or view.summary.name}", reading=read_course(view),
        template=template, height=60 + _PANEL * len(panels),
    )  # fmt: skip


def _panel_axis(title: str, ends: tuple[float, float]) -> dict[str, Any]:
    """A log axis with few enough ticks for a panel; loss scales in powers of two, as a scaler has them."""
    axis = log_axis(title, ends)
    span = ends[1] - ends[0]
    if title.startswith("loss scale"):
        low, high = math.ceil(ends[0] / LOG10_2), math.floor(ends[1] / LOG10_2)
        powers = range(low, high + 1, max(1, math.ceil((high - low) / _PANEL_TICKS)))
        return {
            **axis, "dtick": None, "tickmode": "array", "tickvals": [2.0**k for k in powers],
            "ticktext": [f"2<sup>{k}</sup>" for k in powers],
        }  # fmt: skip
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100) if span / s <= _PANEL_TICKS), 100)
    return {**axis, "dtick": step}


_BROKEN: dict[str, Callable[[RecordedStep], bool]] = {
    "loss<br>": lambda row: row.loss is not None and not math.isfinite(row.loss),
    "gradient norm": lambda row: is_nonfinite(row.gradient_norm_log10),
}
"""By the beginning of a panel's title: whether a step has no number to draw there."""


def _marks(rows: Sequence[RecordedStep], height: float, what: str) -> Any:
    """A cross at the top of a panel for every step at which its number is NaN or infinite."""
    kept = rows[:: max(1, len(rows) // _EVENT_MARKS)]
    return go.Scatter(
        x=[row.step for row in kept], y=[_three(height)] * len(kept), mode="markers", name=f"{what} NaN or infinite",
        marker={"symbol": "x", "size": 8, "color": PALETTE["vermillion"], "line": {"width": 1, "color": "#ffffff"}},
        hovertemplate=f"step %{{x}}<br>{what} NaN or infinite<extra></extra>",
    )  # fmt: skip


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _line(
    rows: Sequence[RecordedStep],
    value: Callable[[RecordedStep], float | None],
    name: str,
    color: str,
    dash: str,
    log: bool,
) -> Any:
    values = [value(row) for row in rows]
    if all(v is None for v in values):
        return None
    kept = thin([row.step for row in rows], values)
    drawn = [None if (v := values[i]) is None or not math.isfinite(v) else v for i in kept]
    return scatter(
        len(kept), x=[rows[i].step for i in kept], name=escape(name), connectgaps=False,
        y=[_three(10.0 ** clamp_log10(v)) if v is not None and log else v for v in drawn],
        mode="lines" if len(kept) > 80 else "lines+markers", marker={"size": 5, "color": PALETTE[color]},
        line={"color": PALETTE[color], "width": 1.6, "dash": dash},
        hovertemplate=f"step %{{x}}<br>{escape(name)} %{{y:.4g}}<extra></extra>",
    )  # fmt: skip


def _three(value: float) -> float:
    """Four significant digits: what a picture shows, at half the length in the page."""
    return float(f"{value:.4g}")


def _add_events(figure: Any, events: Sequence[RunEvent]) -> None:
    """A mark along the bottom for everything that happened and is no number."""
    told: dict[int, list[str]] = {}
    for event in events:
        if event.step is not None and event.kind not in _QUIET:
            text = f"{escape(event.kind.replace('_', ' '))}: {escape(event.message)}"
            told.setdefault(event.step, []).append(text)
    if not told:
        return
    steps = sorted(told)[:_EVENT_MARKS]
    figure.add_trace(
        go.Scatter(
            x=steps, y=[0.0] * len(steps), yaxis="y98", mode="markers", name="event", cliponaxis=False, hoverinfo="text",
            text=["<br>".join([f"<b>step {step}</b>", *told[step][:6]]) for step in steps],
            marker={"symbol": "triangle-up", "size": 9, "color": PALETTE["sky"], "line": {"width": 1, "color": "#fff"}},
        )
    )  # fmt: skip
    last = max(int(axis[5:] or 1) for axis in figure.layout if axis.startswith("xaxis"))
    figure.data[-1].xaxis = "x" if last == 1 else f"x{last}"
    overlaid = "y" if last == 1 else f"y{last}"
    figure.update_layout(yaxis98={"overlaying": overlaid, "range": [0, 1], "visible": False, "fixedrange": True})


def read_course(view: RunView) -> str:
    """One sentence that reads the course.

    Args:
        view: of the run.

    Returns:
        Prose.
    """
    group = view.recorded_steps[0].group if view.recorded_steps else ""
    rows = [row for row in view.recorded_steps if row.group == group]
    of = f"Of `{group.replace('`', chr(39))}`: " if group else ""
    parts = []
    losses = [row.loss for row in rows if row.loss is not None]
    if losses:
        parts.append(f"the loss goes from {_number(losses[0])} to {_number(losses[-1])}")
    norms = [row for row in rows if row.gradient_norm_log10 is not None and math.isfinite(row.gradient_norm_log10)]
    if norms:
        top = max(norms, key=lambda row: row.gradient_norm_log10 or 0.0)
        logs = [row.gradient_norm_log10 or 0.0 for row in norms]
        told = f"the gradient norm goes from {power(logs[0])} to {power(logs[-1])}"
        if max(logs) - max(logs[0], logs[-1]) >= _NOTABLE:
            told += f" and is largest at step {top.step:,} ({power(max(logs))})"
        parts.append(told)
    broken = [row for row in rows if is_nonfinite(row.gradient_norm_log10)]
    if broken:
        parts.append(
            f"the gradient norm is NaN or infinite at {counted(len(broken), 'recorded step')}, first at step "
            f"{broken[0].step:,}"
        )
    clipped = sum(row.clip_coefficient not in (None, 1.0) for row in rows)
    if clipped:
        parts.append(f"clipping or another change acted on {percent(clipped / len(rows))} of the recorded steps")
    if not parts:
        return "Neither a loss nor a gradient norm was recorded."
    text = "; ".join(parts)
    marks = " Dotted lines and marks at the top are findings, marks at the bottom events."
    return (
        of
        + f"{text if of else text[0].upper() + text[1:]}."
        + (marks if view.summary.findings or view.summary.events else "")
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else scientific(value)


# -------------------------------------------------------------------- updates


def update_figure(view: RunView, *, template: Template = "dark") -> Any:
    """Draw ‖Δw‖/‖w‖ over the steps: the median weight, eight of ten, the extremes, and the rule of thumb.

    Args:
        view: of the run.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: no update was recorded.
    """
    grid = view.grid("update")
    if grid is None or not grid.finite():
        raise InputError("no update was recorded in this run")
    columns = [
        sorted(v for row in grid.rows if (v := row.values[j]) is not None and math.isfinite(v))
        for j in range(len(grid.steps))
    ]
    kept = [(step, column) for step, column in zip(grid.steps, columns, strict=True) if column]
    x = [step for step, _ in kept]
    figure = go.Figure()

    def values(share: float) -> list[float]:
        return [_three(10.0 ** clamp_log10(quantile(column, share))) for _, column in kept]

    several = len(grid.rows) > 2
    if several:
        figure.add_trace(
            go.Scatter(
                x=[*x, *reversed(x)], y=[*values(0.9), *reversed(values(0.1))], fill="toself", mode="lines",
                fillcolor="rgba(0,114,178,0.18)", line={"width": 0}, hoverinfo="skip", name="eight of ten weights",
            )
        )  # fmt: skip
        for share, name, color in ((1.0, "largest", "vermillion"), (0.0, "smallest", "purple")):
            figure.add_trace(_thin_line(x, values(share), f"{name} of all weights", color, 1.0, "dot"))
    figure.add_trace(_thin_line(x, values(0.5), "median weight" if several else "weight", "blue", 2.2, "solid"))
    axis = step_axis(x)
    guide = _thin_line(axis["range"], [GUIDE, GUIDE], "1e-3, a rule of thumb", "gray", 1.5, "dash")
    figure.add_trace(guide)
    logs = [v for _, column in kept for v in (column[0], column[-1])]
    figure.update_yaxes(**log_axis("update ratio ‖Δw‖/‖w‖<br>per step (no unit, log scale)", log_range([*logs, -3.0])))
    figure.update_xaxes(**axis)
    return finish(
        figure, title="How far a step moves the weights", reading=read_updates(view), template=template, height=320
    )


def _thin_line(x: Sequence[float], y: Sequence[float], name: str, color: str, width: float, dash: str) -> Any:
    return go.Scatter(
        x=list(x), y=list(y), name=name, mode="lines" if len(x) > 1 else "markers",
        line={"color": PALETTE[color], "width": width, "dash": dash}, marker={"color": PALETTE[color]},
        hovertemplate=f"step %{{x}}<br>{name} %{{y:.3g}}<extra></extra>",
    )  # fmt: skip


def read_updates(view: RunView) -> str:
    """One sentence that reads the updates.

    Args:
        view: of the run.

    Returns:
        Prose.
    """
    known = [(w.update_ratio, w.name) for w in view.summary.weights if w.update_ratio is not None]
    if not known:
        return "No update was recorded."
    known.sort()
    low, middle, high = known[0], known[len(known) // 2], known[-1]
    text = f"The median weight moves by {scientific(middle[0])} of its own size per step"
    if len(known) > 1:
        text += (
            f"; the least is `{low[1].replace('`', chr(39))}` with {scientific(low[0])}, the most "
            f"`{high[1].replace('`', chr(39))}` with {scientific(high[0])}"
        )
    return f"{text}. About 1e-3 is a rule of thumb, not a law: it depends on optimizer, schedule and layer."


# -------------------------------------------------------------------- who made a spike


def contributors_figure(spike: Spike, *, template: Template = "dark") -> Any:
    """Draw the shares of the squared gradient norm at one step.

    Args:
        spike: of the summary.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.
    """
    told = [pair for i, pair in enumerate(spike.contributors) if i < 3 or pair[1] >= _SMALLEST_SHARE]
    pairs = list(reversed(told))
    figure = go.Figure(
        go.Bar(
            x=[100.0 * share for _, share in pairs], y=list(range(len(pairs))), orientation="h", showlegend=False,
            marker={"color": PALETTE["vermillion"]}, text=[percent(share) for _, share in pairs], textposition="auto",
            hovertext=[f"<b>{escape(name)}</b><br>{percent(share)} of the squared norm" for name, share in pairs],
            hoverinfo="text", cliponaxis=False,
        )
    )  # fmt: skip
    labels = [escape(label) for label in shorten_names([name for name, _ in pairs], 36)]
    figure.update_yaxes(
        tickmode="array", tickvals=list(range(len(pairs))), ticktext=labels, automargin=True, showgrid=False,
        title={"text": "parameter", "standoff": 8},
    )  # fmt: skip
    figure.update_xaxes(title={"text": "share of the squared gradient norm (%)"}, range=[0, 100], automargin=True)
    return finish(
        figure, title=f"Who made the gradient of step {spike.step:,}", reading=read_spike(spike), template=template,
        height=90 + 28 * len(pairs),
    )  # fmt: skip


def read_spike(spike: Spike) -> str:
    """One sentence that reads a spike.

    Args:
        spike: of the summary.

    Returns:
        Prose.
    """
    name, share = spike.contributors[0]
    rest = ""
    if share < 0.5 and len(spike.contributors) > 2:
        first = sum(s for _, s in spike.contributors[:3])
        rest = f"; the first three together {percent(min(1.0, first))}"
    return (
        f"At step {spike.step:,} `{name.replace('`', chr(39))}` holds {percent(min(1.0, share))} of the squared norm of the "
        f"whole gradient{rest}."
    )
