"""The charts of a study: what it prints beside what was published, and the ensemble along depth."""

from __future__ import annotations

import itertools
import math

from headwater._studies.run import StudyRun, VariantRun
from headwater._studies.shortcut_grid import ARMS
from headwater._studies.words import hides_its_signal, moves, rate, signed
from headwater.records.study import Chart, Curve, PrintedFigure, Series

__all__ = ["charts_of", "compensation_chart", "ensemble_chart", "figure_charts", "grid_chart"]

_STATISTICS = {"mean_abs": "mean |gradient|", "l2_norm": "L2 norm of the gradient"}
# A gradient is loss per unit of what it belongs to, and losses here have no unit; the style of the other reports.
_UNIT = "<br>(no unit, log scale)"
_MOST_BANDS = 3  # more of them on top of each other cannot be told apart; chosen by us
_ARM_TITLES = {"plain": "plain", "shortcut": "x + f(x)", "scaled": "x + f(x)/√L"}


def charts_of(run: StudyRun) -> tuple[Chart, ...]:
    """Every chart of a study.

    Args:
        run: the study, run.

    Returns:
        The printed figures, the ensembles, and what else its data can show.
    """
    charts = [*figure_charts(run), ensemble_chart(run)]
    charts += [c for one in run if (c := compensation_chart(one)) is not None]
    if run.grid:
        charts.append(grid_chart(run))
    return tuple(charts)


def figure_charts(run: StudyRun) -> list[Chart]:
    """What the study prints, in its order of layers; weights and biases are separate charts, not one zigzag."""
    kinds = ("weight", "bias") if run.study.printed == "all" else ("weight",)
    charts = []
    for kind in kinds:
        series: list[Series] = []
        for one in run:
            figures = [f for f in one.result.figures if kind == "weight" or f.parameter.endswith(".bias")]
            if run.study.printed == "all":
                figures = [f for f in figures if f.parameter.endswith(f".{kind}")]
            if not figures:
                continue
            x = tuple(float(i + 1) for i in range(len(figures)))
            series.append(
                Series(
                    name=one.variant.title, x=x, y=tuple(f.value or None for f in figures),
                    hover=tuple(_hover(f) for f in figures),
                )
            )  # fmt: skip
            if any(f.published for f in figures):
                series.append(
                    Series(
                        name=f"{one.variant.title}, published", x=x, y=tuple(f.published or None for f in figures),
                        hover=tuple(f"{f.parameter}: published {f.published_text}" for f in figures), dashed=True,
                    )
                )  # fmt: skip
        name = {"weight": "weights", "bias": "biases"}[kind]
        charts.append(
            Chart(
                title=f"{_STATISTICS[run.study.statistic]} of the {name}, layer by layer",
                x_title="layer, from the input (number)",
                y_title=_STATISTICS[run.study.statistic] + _UNIT,
                series=tuple(series),
                reading=_figure_reading(run, kind),
            )
        )
    return charts


def _figure_reading(run: StudyRun, kind: str) -> str:
    parts = []
    for one in run:
        suffix = f".{kind}" if run.study.printed == "all" else ""
        values = [f.value for f in one.result.figures if f.parameter.endswith(suffix)]
        if len(values) > 1 and values[0] > 0 and values[-1] > 0:
            parts.append(f"{one.variant.title} {signed(math.log10(values[0] / values[-1]))}")
    return "First layer over last, decades: " + "; ".join(parts) + "." if parts else ""


def _hover(figure: PrintedFigure) -> str:
    text = f"{figure.parameter}: {figure.value:.4e}"
    if figure.published_text is not None:
        text += f"<br>published {figure.published_text}"
    if figure.relative_error is not None:
        text += f"<br>relative difference {figure.relative_error:.1e}"
    elif figure.percentile is not None:
        text += f"<br>published figure above {100 * figure.percentile:.0f} % of the draws"
    return text


def _line(curve: Curve, name: str, count: int, *, shift: float = 0.0, band: bool = True) -> Series:
    def values(logs: tuple[float | None, ...]) -> tuple[float | None, ...]:
        return tuple(None if v is None or v + shift < -300 else 10.0 ** (v + shift) for v in logs[:count])

    return Series(
        name=name,
        x=tuple(float(i + 1) for i in range(count)),
        y=values(curve.median),
        hover=tuple(f"{label}: {curve.quantity}" for label in curve.labels[:count]),
        low=values(curve.low) if band else (),
        high=values(curve.high) if band else (),
    )


def ensemble_chart(run: StudyRun) -> Chart:
    """The gradient ∂L/∂h layer by layer, median and central 95 % over the draws."""
    series, parts = [], []
    banded = len(run.variants) <= _MOST_BANDS
    for one in run:
        curve = next(c for c in one.result.curves if c.quantity == "∂L/∂h")
        series.append(_line(curve, one.variant.title, len(curve.labels), band=banded))
        trend = one.result.trend("∂L/∂h")
        if trend is not None:
            parts.append(f"{one.variant.title} {signed(trend.decades_per_layer)}")
    return Chart(
        title=f"∂L/∂h layer by layer over {run.draws:,} networks",
        x_title="layer, from the input (number)",
        y_title=("rms ∂L/∂h, median and central 95 %" if banded else "rms ∂L/∂h, median") + _UNIT,
        series=tuple(series),
        reading="Decades per layer towards the input: " + "; ".join(parts) + "." if parts else "",
    )


def compensation_chart(one: VariantRun) -> Chart | None:
    """Activation, ∂L/∂h and ∂L/∂W of a network whose weight gradients look flat although ∂L/∂h is not.

    Args:
        one: a network, run.

    Returns:
        The chart; None where nothing is hidden.
    """
    weight, hidden, forward = (one.result.trend(q) for q in ("∂L/∂W", "∂L/∂h", "activation"))
    if weight is None or hidden is None or forward is None or not hides_its_signal(weight, hidden):
        return None
    count = one.variant.network.hidden
    series = tuple(
        _line(curve, {"activation": "what the layer reads"}.get(curve.quantity, curve.quantity), count)
        for curve in one.result.curves
    )
    return Chart(
        title=f"{one.variant.title}: level weight gradients, and ∂L/∂h that {moves(hidden)}",
        x_title="layer, from the input (number)",
        y_title=f"rms, median and central 95 %{_UNIT}",
        series=series,
        reading=f"∂L/∂h {rate(hidden)}, what the layers read moves by {signed(forward.decades_per_layer)} per layer on "
        f"its way forward, and ∂L/∂W, their product, by {signed(weight.decades_per_layer)}.",
    )


def grid_chart(run: StudyRun) -> Chart:
    """Decades that the gradient gains on its way to the first layer, against depth, at the largest width."""
    width = max(cell.width for cell in run.grid)
    names = list(dict.fromkeys(cell.initialization for cell in run.grid))
    series = []
    for name, arm in itertools.product(names, ARMS):
        cells = [c for c in run.grid if c.width == width and c.initialization == name]
        series.append(
            Series(
                name=f"{_ARM_TITLES[arm]}, {name}",
                x=tuple(float(c.depth) for c in cells),
                y=tuple(c.decades[arm] for c in cells),
                hover=tuple(f"width {c.width}, depth {c.depth}: {signed(c.decades[arm])} decades" for c in cells),
            )
        )
    deepest = max(cell.depth for cell in run.grid)
    parts = [
        f"{_ARM_TITLES[arm]} {signed(c.decades[arm])} ({c.initialization})"
        for c in run.grid
        if c.width == width and c.depth == deepest
        for arm in ARMS
    ]
    return Chart(
        title=f"What reaches the first layer, width {width}",
        x_title="depth (layers, log scale)",
        y_title="log10 of rms ∂L/∂x₁ / rms ∂L/∂x_L<br>(decades)",
        series=tuple(series),
        log_y=False,
        log_x=True,
        reading=f"At depth {deepest}: " + "; ".join(parts) + ".",
    )
