"""What every headwater figure shares: palette, light and dark templates, log axes, tick labels that never overlap."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from headwater.reports.document import Template
from headwater.reports.folding import block_name
from headwater.reports.marks import split_marks
from headwater.reports.notation import shorten_names

__all__ = [
    "PALETTE",
    "Series",
    "clamp_log10",
    "escape",
    "finish",
    "line_figure",
    "log_axis",
    "log_range",
    "name_axis",
    "sampled_ticks",
    "scatter",
    "template_of",
    "wrap_title",
]

PALETTE: Mapping[str, str] = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "gray": "#8A8A8A",
}
"""Colours that stay apart in every common form of colour blindness, on white and on near-black.

Okabe and Ito, *Color Universal Design*, 2008, without its black and its yellow (each vanishes on one background); the
gray is ours.
"""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
MAX_TICKS = 20
"""Names on an axis: that many fit upright on a plot 320 pixels wide (16 pixels each). Chosen by us."""
_LONGEST_TICK = 24  # characters; the whole name is in the hover text. Chosen by us.
WEBGL_POINTS = 3000
"""Points above which a series is drawn with WebGL, which stays fluid where SVG does not. Chosen by us."""
_LARGEST_LOG10 = 250.0  # what a browser's double can place on an axis, with room for the axis to go on

_THEMES: Mapping[Template, Mapping[str, str]] = {
    "light": {"text": "#1f2328", "muted": "#59636e", "grid": "#e4e8ec", "line": "#b8c0c8", "paper": "#ffffff"},
    "dark": {"text": "#e6edf3", "muted": "#9aa5b1", "grid": "#2a313a", "line": "#4a5460", "paper": "#12161c"},
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', Arial, sans-serif"


def template_of(name: Template) -> go.layout.Template:
    """The light or the dark template.

    Args:
        name: which.

    Returns:
        Colours, fonts and grid; the colours of the series are the same in both.
    """
    theme = _THEMES[name]
    axis = {
        "gridcolor": theme["grid"], "linecolor": theme["line"], "zeroline": False, "showline": True, "ticks": "outside",
        "tickcolor": theme["line"], "ticklen": 4, "title": {"font": {"size": 13, "color": theme["muted"]}},
        "tickfont": {"size": 11, "color": theme["muted"]},
    }  # fmt: skip
    return go.layout.Template(
        layout={
            "font": {"family": _FONT, "size": 13, "color": theme["text"]},
            "paper_bgcolor": theme["paper"],
            "plot_bgcolor": theme["paper"],
            "colorway": list(PALETTE.values()),
            "xaxis": axis,
            "yaxis": axis,
            "title": {"font": {"size": 17}, "subtitle": {"font": {"size": 13, "color": theme["muted"]}}},
            "legend": {"bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}},
            "hoverlabel": {
                "bgcolor": theme["paper"],
                "bordercolor": theme["line"],
                "font": {"family": _FONT, "size": 12, "color": theme["text"]},
                "align": "left",
            },
        }
    )


def escape(text: str) -> str:
    """Make a text safe inside plotly's own markup, where ``<b>`` and ``<a>`` mean something.

    Args:
        text: any text, such as a layer's name.

    Returns:
        The text with ``&``, ``<`` and ``>`` as entities and control characters made visible.
    """
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return html.escape(visible, quote=False)


def wrap_title(text: str, width: int = 105) -> tuple[str, int]:
    """Prose as the subtitle of a figure.

    Args:
        text: prose, whose marks are taken off.
        width: characters per line.

    Returns:
        The escaped lines joined by ``<br>``, and how many there are.
    """
    import textwrap

    lines = textwrap.wrap("".join(piece for _, piece in split_marks(text)), width)
    return "<br>".join(escape(line) for line in lines), len(lines)


def clamp_log10(value: float) -> float:
    """The nearest log10 value that a browser can place on an axis; hover texts keep the true one.

    Args:
        value: finite.

    Returns:
        A value from -250 to 250.
    """
    return max(-_LARGEST_LOG10, min(_LARGEST_LOG10, value))


def log_range(values_log10: Iterable[float], *, room_below: bool = False) -> tuple[float, float]:
    """The range of a log axis, at least two decades so that a flat series looks flat.

    Args:
        values_log10: log10 of what is drawn; non-finite entries are left out.
        room_below: leave a strip under the smallest value for marks of what has no value.

    Returns:
        log10 of both ends.
    """
    finite = [clamp_log10(v) for v in values_log10 if math.isfinite(v)]
    low, high = min(finite, default=-1.0), max(finite, default=0.0)
    if high - low < 2.0:
        middle = (low + high) / 2
        low, high = middle - 1.0, middle + 1.0
    pad = 0.06 * (high - low)
    return low - (3.0 * pad if room_below else pad), high + pad


def log_axis(title: str, ends: tuple[float, float]) -> dict[str, Any]:
    """A log axis with at most ten decade ticks.

    Args:
        title: what is drawn, with its unit.
        ends: from :func:`log_range`.

    Returns:
        Settings for ``update_yaxes``.
    """
    span = ends[1] - ends[0]
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100) if span / s <= 9), 100)
    return {
        "type": "log", "range": list(ends), "title": {"text": title, "standoff": 10}, "dtick": step,
        "exponentformat": "power", "showexponent": "all", "automargin": True,
    }  # fmt: skip


def sampled_ticks(names: Sequence[str], maximum: int = MAX_TICKS) -> tuple[list[int], list[str]]:
    """Which positions of an axis carry a name, so that labels never overlap.

    Up to ``maximum`` names are all shown. Above, the first row of every numbered block is (``blocks.3``) where there
    are few enough blocks, evenly spaced names elsewhere; labels keep a distance of a ``maximum``-th of the axis.

    Args:
        names: of positions 0, 1, 2 ….
        maximum: the largest number of labels.

    Returns:
        Positions and labels; long names are shortened from the left.
    """
    count = len(names)
    if count <= maximum:
        return list(range(count)), shorten_names(names, _LONGEST_TICK)
    gap = math.ceil(count / maximum)
    blocks = [block_name(name) for name in names]
    starts = [i for i in range(count) if i == 0 or blocks[i] != blocks[i - 1]]
    if len(starts) < count / 3:  # real blocks, not just numbered single layers
        stride = math.ceil(len(starts) / maximum)
        candidates = starts[::stride]
        labels = dict(zip(candidates, (blocks[i] for i in candidates), strict=True))
    else:
        candidates = list(range(0, count, gap))
        labels = {i: names[i] for i in candidates}
    chosen: list[int] = []
    for i in candidates:
        if not chosen or i - chosen[-1] >= gap:
            chosen.append(i)
    return chosen, shorten_names([labels[i] for i in chosen], _LONGEST_TICK)


def name_axis(names: Sequence[str], title: str) -> dict[str, Any]:
    """A horizontal axis of names in order.

    Args:
        names: of positions 0, 1, 2 ….
        title: what the names are.

    Returns:
        Settings for ``update_xaxes``.
    """
    positions, labels = sampled_ticks(names)
    return {
        "tickmode": "array", "tickvals": positions, "ticktext": [escape(label) for label in labels],
        "autotickangles": [0, -90], "title": {"text": title, "standoff": 12}, "automargin": True,
        "range": [-0.5 - 0.01 * len(names), len(names) - 0.5 + 0.01 * len(names)],
    }  # fmt: skip


def scatter(points: int, **settings: Any) -> Any:
    """A scatter trace: SVG while it is small, WebGL above :data:`WEBGL_POINTS` points.

    Args:
        points: how many points it has.
        **settings: of the trace.

    Returns:
        A ``Scatter`` or a ``Scattergl``.
    """
    return (go.Scattergl if points > WEBGL_POINTS else go.Scatter)(**settings)


def finish(figure: Any, *, title: str, reading: str, template: Template, height: int = 480) -> Any:
    """Give a figure its title, its one-sentence reading, its legend and its template.

    Args:
        figure: with its traces and axes.
        title: what it shows.
        reading: one sentence that reads it.
        template: ``light`` or ``dark``.
        height: pixels of the plot; the subtitle comes on top.

    Returns:
        The same figure.
    """
    subtitle, lines = wrap_title(reading)
    top = 52 + 19 * lines + 19 * _legend_lines(figure) + 14
    figure.update_layout(
        template=template_of(template),
        title={
            "text": escape(title), "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container",
            "yanchor": "top", "pad": {"t": 16, "l": 16}, "subtitle": {"text": subtitle},
        },
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        margin={"t": top, "l": 16, "r": 24, "b": 16},
        height=height + top,
        hovermode="closest",
    )  # fmt: skip
    return figure


def _legend_lines(figure: Any, width: int = 860) -> int:
    """Lines that the legend on top needs on a plot ``width`` pixels wide; plotly lays entries out in equal columns."""
    names = [
        str(trace.name)
        for trace in figure.data
        if trace.name and trace.showlegend is not False and trace.legend is None
    ]
    entry = max((len(name) for name in names), default=0) * 7 + 48
    return math.ceil(len(names) / max(1, width // entry))


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a :func:`line_figure`.

    Attributes:
        name: in the legend.
        y: one value per position; NaN and None leave a gap.
        low: lower edge of a band, or empty.
        high: upper edge of a band, or empty.
        hover: what a pointer is told at each position, or empty.
        color: a name from :data:`PALETTE`; empty takes the next one.
        dash: ``solid``, ``dash`` or ``dot`` (for theory beside measurement).
    """

    name: str
    y: Sequence[float | None]
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())
    hover: Sequence[str] = field(default=())
    color: str = ""
    dash: str = "solid"


def line_figure(
    series: Sequence[Series],
    *,
    title: str,
    x_title: str,
    y_title: str,
    reading: str = "",
    names: Sequence[str] = (),
    x: Sequence[float] = (),
    log: bool = True,
    template: Template = "dark",
) -> Any:
    """Lines with markers over layers, steps or a swept quantity.

    Args:
        series: the lines.
        title: what the figure shows.
        x_title: what is on the horizontal axis, with its unit.
        y_title: what is on the vertical axis, with its unit.
        reading: one sentence that reads it.
        names: of the positions, for an axis of layers.
        x: positions, for an axis of numbers; 0, 1, 2 … when both are empty.
        log: whether the vertical axis is logarithmic; values that are not positive then leave a gap.
        template: ``light`` or ``dark``.

    Returns:
        A ``plotly.graph_objects.Figure``.
    """
    figure = go.Figure()
    colors = list(PALETTE)
    shown: list[float] = []
    for number, line in enumerate(series):
        color = PALETTE[line.color or colors[number % (len(colors) - 1)]]
        positions = list(x) or list(range(len(line.y)))
        values = [None if v is None or not math.isfinite(v) or (log and v <= 0.0) else v for v in line.y]
        shown += [math.log10(abs(v)) for v in (*values, *line.low, *line.high) if v]
        if line.low and line.high:
            figure.add_trace(_band(positions, line.low, line.high, color, line.name))
        symbol = SYMBOLS[number % len(SYMBOLS)]
        hover = [escape(text) for text in line.hover] or [
            f"{escape(names[i]) if names else escape(f'{p:g}')}<br>{escape(line.name)}: {0.0 if v is None else v:.3g}"
            for i, (p, v) in enumerate(zip(positions, values, strict=True))
        ]
        figure.add_trace(
            scatter(
                len(values), x=positions, y=values, name=escape(line.name), mode="lines+markers", connectgaps=False,
                line={"color": color, "width": 2, "dash": line.dash}, legendgroup=escape(line.name),
                marker={"color": color, "symbol": symbol, "size": 7 if len(values) <= 100 else 3},
                text=hover, hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(**(name_axis(names, x_title) if names else {"title": {"text": x_title}, "automargin": True}))
    y_axis = log_axis(y_title, log_range(shown)) if log else {"title": {"text": y_title}, "automargin": True}
    figure.update_yaxes(**y_axis)
    return finish(figure, title=title, reading=reading, template=template)


def _band(x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str, group: str) -> Any:
    """The area between two lines, as one closed outline."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=[*x, *reversed(x)], y=[*high, *reversed(low)], fill="toself", fillcolor=f"rgba({red},{green},{blue},0.18)",
        line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=escape(group), mode="lines",
    )  # fmt: skip
