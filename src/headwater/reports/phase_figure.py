"""The phase diagram as a picture: depth scale as colour, the critical line, a network as a mark."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from headwater.records.phase import CriticalPoint, PhaseDiagram, PhasePoint
from headwater.reports.document import Template
from headwater.reports.figures import PALETTE, escape, finish
from headwater.reports.phase_words import count_layers, read_diagram

__all__ = ["phase_figure"]

_LONGEST_LOG10 = 3.0  # depth scales of 1,000 layers and more share a colour; chosen by us
# Blue and vermillion, the two ends of the palette that stay apart in every form of colour blindness, over near-white.
_COLORS = [[0.0, "#0072B2"], [0.25, "#5FA6D3"], [0.5, "#FAFAF7"], [0.75, "#EB9A63"], [1.0, "#D55E00"]]
_INK, _HALO, _PAPER = "#16191d", "#ffffff", "rgba(255,255,255,0.82)"  # on the map, whatever the page's colours


def phase_figure(diagram: PhaseDiagram, *, template: Template = "dark") -> Any:
    """Draw a phase diagram.

    Args:
        diagram: the record.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.
    """
    figure = go.Figure()
    figure.add_trace(_map(diagram))
    for trace in _line(diagram.critical):
        figure.add_trace(trace)
    if diagram.network is not None:
        for trace in _network(diagram):
            figure.add_trace(trace)
    for text, x, y in _labels(diagram):
        figure.add_annotation(
            text=text, x=x, y=y, showarrow=False, bgcolor=_PAPER, borderpad=4, font={"color": _INK, "size": 13}
        )
    columns, rows = diagram.weight_variances, diagram.bias_variances
    half = 0.5 * (columns[1] - columns[0])
    figure.update_xaxes(
        title={"text": "weight variance σ_w² = fan_in · Var(W)", "standoff": 10},
        range=[columns[0] - half, columns[-1] + half],
        showgrid=False,
        automargin=True,
    )
    figure.update_yaxes(
        title={"text": "bias variance σ_b² = Var(b)", "standoff": 10},
        range=[rows[0] - 0.015 * rows[-1], rows[-1] * 1.005],
        showgrid=False,
        automargin=True,
    )
    return finish(
        figure,
        title=f"Phase diagram of deep {diagram.activation} networks",
        reading=read_diagram(diagram),
        template=template,
    )


def _shade(chi: float) -> float:
    """-1 (vanishes within a layer) over 0 (depth scale of 1,000 layers and more) to 1 (explodes within a layer)."""
    if chi <= 0.0:
        return -1.0
    rate = math.log(chi)
    if rate == 0.0:
        return 0.0
    near = min(max(-math.log10(abs(rate)), 0.0), _LONGEST_LOG10) / _LONGEST_LOG10
    return math.copysign(1.0 - near, rate)


def _map(diagram: PhaseDiagram) -> Any:
    told = [
        [
            _told(
                PhasePoint(weight_variance=w, bias_variance=b, preactivation_variance=q, multiplier=chi),
            )
            for w, q, chi in zip(diagram.weight_variances, qs, chis, strict=True)
        ]
        for b, qs, chis in zip(
            diagram.bias_variances, diagram.preactivation_variances, diagram.multipliers, strict=True
        )
    ]
    # Between neighbours on the two sides of a jump a smoothed map would show a critical point that is not there.
    smooth = False if any(point.jumps for point in diagram.critical) else "best"
    return go.Heatmap(
        x=diagram.weight_variances, y=diagram.bias_variances,
        z=[[_shade(chi) for chi in row] for row in diagram.multipliers],
        zmin=-1, zmax=1, colorscale=_COLORS, zsmooth=smooth, text=told, hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        colorbar={
            "title": {"text": "depth scale ξ<br>in layers<br> ", "side": "top"}, "thickness": 16, "outlinewidth": 0,
            "tickmode": "array", "tickvals": [-0.98, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 0.96],
            "ticktext": ["≤1 vanishes", "10", "100", "≥1,000", "100", "10", "≤1 explodes"],
        },
    )  # fmt: skip


def _told(point: PhasePoint) -> str:
    q = point.preactivation_variance
    settles = (
        "the signal dies out" if q == 0.0 else "the signal grows without end" if math.isinf(q) else f"q* = {q:.3g}"
    )
    return (
        f"σ_w² = {point.weight_variance:.3g}, σ_b² = {point.bias_variance:.3g}<br>{settles}<br>χ = {point.multiplier:.3g}, "
        f"ξ = {count_layers(point.depth_scale)}<br>{point.phase}: {point.decades_per_layer:+.2g} decades of gradient per layer"
    )


def _line(critical: tuple[CriticalPoint, ...]) -> list[Any]:
    """The border: solid where χ passes 1, dotted where it jumps over it; a pale line under it keeps it visible."""
    traces: list[Any] = []
    for jumps, name, dash in ((False, "critical line, χ = 1", "solid"), (True, "χ jumps over 1", "dot")):
        kept = [p if p.jumps is jumps else None for p in critical]
        if not any(kept):
            continue
        x = [None if p is None else p.weight_variance for p in kept]
        y = [None if p is None else p.bias_variance for p in kept]
        hover = [
            "" if p is None else f"{name}<br>σ_w² = {p.weight_variance:.4g}, σ_b² = {p.bias_variance:.3g}" for p in kept
        ]
        traces += [
            go.Scatter(x=x, y=y, mode="lines", line={"color": _HALO, "width": 6}, hoverinfo="skip", showlegend=False),
            go.Scatter(
                x=x, y=y, mode="lines", line={"color": _INK, "width": 2.5, "dash": dash}, text=hover,
                hovertemplate="%{text}<extra></extra>", showlegend=False,
            ),
            # In the legend a grey that shows on both backgrounds.
            go.Scatter(
                x=[None], y=[None], mode="lines", name=name,
                line={"color": PALETTE["gray"], "width": 2.5, "dash": dash},
            ),
        ]  # fmt: skip
    return traces


def _network(diagram: PhaseDiagram) -> list[Any]:
    network = diagram.network
    if network is None:
        return []
    traces: list[Any] = []
    right, top = diagram.weight_variances[-1], diagram.bias_variances[-1]
    if len(network.layers) > 1:
        inside = {n: p for n, p in network.layers.items() if p.weight_variance <= right and p.bias_variance <= top}
        traces.append(
            go.Scatter(
                x=[p.weight_variance for p in inside.values()], y=[p.bias_variance for p in inside.values()],
                mode="markers", name="its layers", text=[f"{escape(n)}<br>{_told(p)}" for n, p in inside.items()],
                hovertemplate="%{text}<extra></extra>", cliponaxis=False,
                marker={"color": PALETTE["purple"], "size": 8, "line": {"color": _HALO, "width": 1}},
            )
        )  # fmt: skip
    mean = network.mean
    traces.append(
        go.Scatter(
            x=[mean.weight_variance], y=[mean.bias_variance], mode="markers", name=escape(network.name),
            text=[f"{escape(network.name)}, mean of {len(network.layers)} layer(s)<br>{_told(mean)}"],
            hovertemplate="%{text}<extra></extra>", cliponaxis=False,
            marker={
                "symbol": "diamond", "color": "#F0E442", "size": 16, "line": {"color": _INK, "width": 2},
            },
        )
    )  # fmt: skip
    return traces


def _labels(diagram: PhaseDiagram) -> list[tuple[str, float, float]]:
    """Names of the regions, each in the middle of the longest run of its columns at three quarters of the height."""
    row = round(0.75 * (len(diagram.bias_variances) - 1))
    y = diagram.bias_variances[row]
    width = diagram.weight_variances[-1] - diagram.weight_variances[0]
    labels = []
    for ordered, text in ((True, "ordered<br>gradients vanish"), (False, "chaotic<br>gradients explode")):
        columns = [
            w
            for w, chi in zip(diagram.weight_variances, diagram.multipliers[row], strict=True)
            if (chi < 1.0) is ordered
        ]
        if columns and columns[-1] - columns[0] > 0.12 * width:
            labels.append((text, 0.5 * (columns[0] + columns[-1]), y))
    return labels
