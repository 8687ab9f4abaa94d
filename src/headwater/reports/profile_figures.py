"""The pictures of a profile: along the layers, over the parameters, over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from headwater.errors import InputError
from headwater.records.profile import LayerProfile, ParameterProfile, Profile
from headwater.records.statistics import Statistics
from headwater.reports.document import Template
from headwater.reports.figures import (
    PALETTE,
    SYMBOLS,
    clamp_log10,
    escape,
    finish,
    log_axis,
    log_range,
    name_axis,
    scatter,
)
from headwater.reports.notation import percent, power, rms_text, scientific, shape_text
from headwater.reports.readings import most_telling, read_profile, read_time

__all__ = ["profile_figure"]

_STATISTICS = ("rms", "mean_abs", "l2_norm", "std", "max_abs")
_LABELS = {"rms": "rms", "mean_abs": "mean |·|", "l2_norm": "L2 norm", "std": "std", "max_abs": "max |·|"}
_WHAT = ("profile", "parameters", "time")
_UNIT = "(no unit, log scale)"
_ROLES = (
    ("weight", "weights", "green"), ("bias", "biases", "purple"), ("normalization", "normalization", "orange"),
    ("embedding", "embeddings", "sky"), ("recurrent", "recurrent weights", "blue"),
    ("attention", "attention weights", "vermillion"), ("other", "other parameters", "gray"),
)  # fmt: skip
_LINED = 250  # points above which a line that zigzags between kinds of layers would only fill an area. Chosen by us.
_EDGE = 0.4  # where, within the strip under the smallest value, a mark without a value stands


def profile_figure(
    profile: Profile,
    *,
    template: Template = "dark",
    what: str = "profile",
    statistic: str = "rms",
    band: bool = False,
    height: int | None = None,
) -> Any:
    """Draw a profile.

    Args:
        profile: the record.
        template: ``dark`` or ``light``.
        what: ``profile`` (activations, gradients and parameter gradients along the layers), ``parameters`` (every
            parameter's gradient in order of first use, one series per role) or ``time`` (the gradient over time of
            recurrent layers).
        statistic: ``rms``, ``mean_abs``, ``l2_norm``, ``std`` or ``max_abs``.
        band: add the range from the smallest nonzero to the largest element of the gradient along the trunk.
        height: of the plot, in pixels.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: an option is unknown, or there is nothing to draw.
    """
    if what not in _WHAT:
        raise InputError(f"what is {what!r}; it can be {', '.join(map(repr, _WHAT))}")
    if statistic not in _STATISTICS:
        raise InputError(f"statistic is {statistic!r}; it can be {', '.join(map(repr, _STATISTICS))}")
    if what == "time":
        return _time_figure(profile, template, statistic, height or 380)
    if what == "parameters":
        return _parameter_figure(profile, template, statistic, height or 420)
    return _layer_figure(profile, template, statistic, band, height or 620)


# -------------------------------------------------------------------- values


def _log10(statistics: Statistics | None, statistic: str) -> float:
    """log10 of a statistic: -inf for an exact zero, NaN where there is nothing finite."""
    if statistics is None or not statistics.finite_count:
        return math.nan
    if statistic == "rms":
        return statistics.rms_log10
    value = getattr(statistics, statistic)
    if value > 0.0 and math.isfinite(value):
        return math.log10(value)
    # The value itself left the range of a double: its scale has not.
    return statistics.rms_log10 if statistic != "std" else -math.inf


@dataclass(frozen=True, slots=True)
class _Mark:
    x: float
    log10: float
    hover: str
    missing: str


def _mark(x: float, s: Statistics | None, statistic: str, hover: str, reason: str) -> _Mark:
    value = _log10(s, statistic)
    missing = ""
    if s is None or not s.count:
        missing = "not observed"
        hover += f"<br>{escape(reason)}"
    elif s.nonfinite_count:
        missing = "NaN or infinity"
        hover += f"<br>{s.nan_count:,} NaN, {s.inf_count:,} inf of {s.count:,}"
    elif value == -math.inf:
        missing = "exactly zero"
        hover += "<br>every element is exactly zero"
    return _Mark(x, value, hover, missing)


def _describe(s: Statistics | None, label: str) -> str:
    if s is None:
        return f"{label}: not observed"
    return (
        f"{label}: rms {rms_text(s)}, mean |·| {scientific(s.mean_abs)}, max |·| {scientific(s.max_abs)}, "
        f"{percent(s.zero_fraction) if s.count else 'no'} zeros"
    )


def _layer_hover(row: LayerProfile) -> str:
    lines = [
        f"<b>{escape(row.name)}</b> {escape(row.type)} {shape_text(row.shape)}",
        f"position {row.order}, {'trunk' if row.on_trunk else 'branch'}",
        _describe(row.activation, "output"),
        _describe(row.gradient, "∂L/∂output"),
    ]
    if row.dead_fraction:
        lines.append(f"dead units {percent(row.dead_fraction)}")
    if row.saturated_fraction:
        lines.append(f"saturated {percent(row.saturated_fraction)}")
    return "<br>".join(lines)


def _parameter_hover(p: ParameterProfile) -> str:
    names = escape(p.name) + "".join(f" = {escape(a)}" for a in p.aliases)
    return f"<b>{names}</b> {p.role} {shape_text(p.shape)}<br>{_describe(p.gradient, 'gradient')}<br>state: {p.state}"


# -------------------------------------------------------------------- traces


def _line(marks: Sequence[_Mark], name: str, color: str, symbol: str, *, line: bool, faint: bool = False) -> Any:
    size = 4 if len(marks) > 150 else 7
    return scatter(
        len(marks),
        x=[m.x for m in marks],
        y=[10.0 ** clamp_log10(m.log10) if math.isfinite(m.log10) else None for m in marks],
        text=[m.hover for m in marks],
        hovertemplate="%{text}<extra></extra>",
        name=name,
        mode="lines+markers" if line and len(marks) <= _LINED else "markers",
        line={"color": PALETTE[color], "width": 2},
        marker={"color": PALETTE[color], "symbol": symbol, "size": size - 2 * faint, "opacity": 0.45 if faint else 1},
        connectgaps=False,
    )


def _edge_marks(marks: Sequence[_Mark], low: float, span: float) -> list[Any]:
    """What has no place on a log axis stands at its lower edge, one series per reason."""
    traces = []
    for missing, symbol, color in (
        ("exactly zero", "triangle-down", "orange"),
        ("NaN or infinity", "x", "vermillion"),
        ("not observed", "circle-open", "gray"),
    ):
        found = [m for m in marks if m.missing == missing]
        outline = {"width": 1.5, "color": PALETTE[color]}
        if found:
            traces.append(
                go.Scatter(
                    x=[m.x for m in found], y=[10.0 ** (low + _EDGE * 0.15 * span)] * len(found), mode="markers",
                    text=[m.hover for m in found], hovertemplate="%{text}<extra></extra>", name=missing,
                    marker={"symbol": symbol, "color": PALETTE[color], "size": 9, "line": outline},
                )
            )  # fmt: skip
    return traces


def _axis(figure: Any, row: int, title: str, marks: Sequence[_Mark], extra: Sequence[float] = ()) -> None:
    faulty = [m for m in marks if m.missing]
    ends = log_range([*(m.log10 for m in marks), *extra], room_below=bool(faulty))
    for trace in _edge_marks(faulty, ends[0], ends[1] - ends[0]):
        trace.legend = "legend2" if row == 2 else None
        figure.add_trace(trace, row=row, col=1)
    figure.update_yaxes(row=row, col=1, **log_axis(title, ends))


def _layer_figure(profile: Profile, template: Template, statistic: str, band: bool, height: int) -> Any:
    if not profile.layers:
        raise InputError("this profile has no layers to draw; use what='parameters'")
    label = _LABELS[statistic]
    position = {row.name: i for i, row in reversed(list(enumerate(profile.layers)))}
    owned = [p for p in profile.parameters if p.layer in position]
    panels = 2 if owned else 1
    figure = make_subplots(panels, 1, shared_xaxes=True, vertical_spacing=0.12, row_heights=[0.6, 0.4][:panels])
    any_trunk = any(row.on_trunk for row in profile.layers)
    everything: list[_Mark] = []
    extra: list[float] = []
    for name, color, symbol, tensors in (
        ("output", "blue", "circle", [row.activation for row in profile.layers]),
        ("∂L/∂output", "vermillion", "square", [row.gradient for row in profile.layers]),
    ):
        marks = [
            _mark(i, s, statistic, _layer_hover(row), row.gradient_missing or "no gradient came back")
            for i, (row, s) in enumerate(zip(profile.layers, tensors, strict=True))
        ]
        everything += marks
        trunk = [m for m, row in zip(marks, profile.layers, strict=True) if row.on_trunk or not any_trunk]
        branch = [m for m, row in zip(marks, profile.layers, strict=True) if not row.on_trunk and any_trunk]
        if band and color == "vermillion":
            extra += _add_band(figure, profile, any_trunk)
        figure.add_trace(
            _line(trunk, f"{name}" + (", trunk" if branch else ""), color, symbol, line=True), row=1, col=1
        )
        if branch:
            figure.add_trace(_line(branch, f"{name}, branches", color, symbol, line=False, faint=True), row=1, col=1)
    per = "" if statistic in ("l2_norm", "max_abs") else " per element"
    _axis(figure, 1, f"{label}{per}<br>{_UNIT}", everything, extra)
    if owned:
        marks = _add_roles(figure, 2, owned, statistic, lambda p, _: position[p.layer or ""])
        _axis(figure, 2, f"parameter gradient {label}<br>{_UNIT}", marks)
    figure.update_xaxes(**name_axis([row.name for row in profile.layers], "layer, in execution order"))
    if panels == 2:
        figure.update_xaxes(row=1, col=1, title=None, showticklabels=False)
        top = figure.layout.yaxis2.domain[1]
        figure.update_layout(
            legend2={"orientation": "h", "x": 0, "xanchor": "left", "y": top + 0.005, "yanchor": "bottom"}
        )
    title = f"Gradient profile of {profile.model_type}"
    return finish(figure, title=title, reading=read_profile(profile), template=template, height=height)


def _add_band(figure: Any, profile: Profile, any_trunk: bool) -> list[float]:
    rows = [
        (i, row.gradient)
        for i, row in enumerate(profile.layers)
        if row.gradient is not None and row.gradient.scaled_max_abs > 0.0 and (row.on_trunk or not any_trunk)
    ]
    rows = [(i, s) for i, s in rows if s.min_abs_nonzero > 1e-300 and s.max_abs < 1e300]
    if not rows:
        return []
    xs = [i for i, _ in rows]
    low, high = [s.min_abs_nonzero for _, s in rows], [s.max_abs for _, s in rows]
    figure.add_trace(
        go.Scatter(
            x=[*xs, *reversed(xs)], y=[*high, *reversed(low)], fill="toself", fillcolor="rgba(213,94,0,0.15)",
            line={"width": 0}, hoverinfo="skip", mode="lines", name="∂L/∂output, smallest nonzero to largest",
        ),
        row=1, col=1,
    )  # fmt: skip
    return [math.log10(v) for v in (*low, *high)]


def _add_roles(
    figure: Any,
    row: int,
    parameters: Sequence[ParameterProfile],
    statistic: str,
    place: Callable[[ParameterProfile, int], float],
) -> list[_Mark]:
    """One series per role: roles are different populations."""
    everything: list[_Mark] = []
    for number, (role, name, color) in enumerate(_ROLES):
        marks = [
            _mark(place(p, i), p.gradient, statistic, _parameter_hover(p), p.state)
            for i, p in enumerate(parameters)
            if p.role == role
        ]
        if marks:
            everything += marks
            trace = _line(marks, name, color, SYMBOLS[number % len(SYMBOLS)], line=role in ("weight", "bias"))
            trace.line.width = 1.2
            trace.legend = "legend2" if row == 2 else None
            figure.add_trace(trace, row=row, col=1)
    return everything


def _parameter_figure(profile: Profile, template: Template, statistic: str, height: int) -> Any:
    if not profile.parameters:
        raise InputError("this profile has no parameters to draw")
    figure = make_subplots(1, 1)
    marks = _add_roles(figure, 1, profile.parameters, statistic, lambda _, i: i)
    _axis(figure, 1, f"{_LABELS[statistic]} of parameter gradient<br>{_UNIT}", marks)
    names = [p.name for p in profile.parameters]
    figure.update_xaxes(**name_axis(names, "parameter, in the execution order of its first use"))
    seen = [(m.log10, m.hover) for m in marks if math.isfinite(m.log10)]
    reading = ""
    if seen:
        low, high = min(v for v, _ in seen), max(v for v, _ in seen)
        reading = f"Parameter gradients span {high - low:.1f} decades, from {power(low)} to {power(high)}."
    title = f"Parameter gradients of {profile.model_type}"
    return finish(figure, title=title, reading=reading, template=template, height=height)


def _time_figure(profile: Profile, template: Template, statistic: str, height: int) -> Any:
    if not profile.times:
        raise InputError("this profile has no gradient over time: the model has no recurrent layer that was unrolled")
    figure = make_subplots(1, 1)
    everything: list[_Mark] = []
    colors = [name for name in PALETTE if name != "gray"]
    runs = list(dict.fromkeys((time.layer, time.stack, time.reverse) for time in profile.times))
    for time in profile.times:
        number = runs.index((time.layer, time.stack, time.reverse))
        symbol = {"hidden": "h", "cell": "c", "input": "x"}[time.state]
        name = f"{time.layer}: ∂L/∂{symbol}_t" + (f", layer {time.stack}" if time.stack else "")
        name += ", reverse" if time.reverse else ""
        marks = [
            _mark(
                t,
                s,
                statistic,
                f"<b>{escape(name)}</b><br>t = {t}<br>{_describe(s, 'gradient')}",
                "no sequence reaches it",
            )
            for t, s in enumerate(time.steps)
        ]
        everything += marks
        line = _line(marks, escape(name), colors[number % len(colors)], SYMBOLS[number % len(SYMBOLS)], line=True)
        line.line.dash = {"hidden": "solid", "cell": "dash", "input": "dot"}[time.state]
        figure.add_trace(line, row=1, col=1)
    _axis(figure, 1, f"{_LABELS[statistic]} of the gradient<br>{_UNIT}", everything)
    longest = max(len(time.steps) for time in profile.times)
    figure.update_xaxes(title={"text": "time step t"}, range=[-0.5, longest - 0.5], automargin=True, nticks=12)
    reading = read_time(most_telling(profile.times), labelled=len(profile.times) > 2)
    title = f"Gradient over time in {profile.model_type}"
    return finish(figure, title=title, reading=reading, template=template, height=height)
