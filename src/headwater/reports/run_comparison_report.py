"""Two runs held against each other, as a document and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from headwater.errors import InputError
from headwater.records.run_comparison import COMPARED, Parting, RunComparison
from headwater.reports.document import Block, Callout, Cell, Column, Document, Figure, Paragraph, Table, Template
from headwater.reports.figures import PALETTE, finish, log_axis, log_range, scatter
from headwater.reports.marks import literal
from headwater.reports.notation import counted, percent, scientific, sparkline
from headwater.reports.run_heatmap import step_axis

__all__ = ["build_run_comparison_document", "run_comparison_figure"]

_ROWS = 12  # differences that a terminal lists; chosen by us
_NAMES = 6
_SPARK = 40
_WORDS: dict[str, str] = {quantity: words for quantity, _, words in COMPARED}
_COLORS = {
    "value": "gray", "activation": "blue", "output_gradient": "vermillion", "gradient": "green",
    "second_moment": "purple", "update": "orange",
}  # fmt: skip
_DASHES = {"value": "dash", "activation": "solid", "output_gradient": "solid", "gradient": "solid",
           "second_moment": "dash", "update": "dot"}  # fmt: skip


def build_run_comparison_document(comparison: RunComparison, *, full: bool = False) -> Document:
    """Describe where two runs part.

    Args:
        comparison: the record.
        full: every difference and the picture; otherwise what fits on a screen.

    Returns:
        The document.
    """
    blocks: list[Block] = []
    if comparison.settings:
        blocks.append(Paragraph(_settings(comparison)))
    if comparison.partings:
        blocks.append(_table(comparison, None if full else _ROWS))
    if comparison.results:
        told = "; ".join(_told(parting) for parting in comparison.results)
        blocks.append(Paragraph(f"**What came of it:** {told}."))
    if any(v > 0 for drift in comparison.drift for v in drift.largest):
        blocks.append(
            Figure(
                lambda template: run_comparison_figure(comparison, template=template),
                "How the runs drift apart",
                _read_drift(comparison) if full else "",
                () if full else _drift_lines(comparison),
            )
        )
    blocks += _left_out(comparison)
    return Document(
        title=f"Run {comparison.name_a} beside run {comparison.name_b}",
        blocks=tuple(blocks),
        summary=_summary(comparison),
        facts=_facts(comparison),
        headline=_headline(comparison),
    )


def _facts(comparison: RunComparison) -> tuple[tuple[str, str], ...]:
    found = [
        ("common steps", f"{comparison.common_steps:,}, {comparison.first_common:,} to {comparison.last_common:,}"),
        ("common tensors", f"{comparison.tensors:,}"),
        ("tolerance", f"{comparison.rtol:g} relative"),
        ("renamed", ", ".join(f"{old or '(all)'} to {new or '(none)'}" for old, new in comparison.renames.items())),
    ]
    return tuple((label, value) for label, value in found if value)


def _headline(comparison: RunComparison) -> Callout:
    if comparison.same:
        return Callout(
            f"Nothing that both recorded differs by more than {comparison.rtol:g}.", "good", "the runs are the same"
        )
    first = min(
        (*comparison.partings[:1], *comparison.settings[:1], *comparison.results[:1]),
        key=lambda parting: (parting.step, not parting.name),
    )
    return Callout(_numbers(first), "critical", f"the runs part at step {first.step:,}: {_what(first)}")


def _what(parting: Parting) -> str:
    words = _WORDS.get(parting.quantity, parting.quantity.replace("_", " "))
    return f"{words} of `{literal(parting.name)}`" if parting.name else words


def _numbers(parting: Parting) -> str:
    apart = parting.relative_difference
    size = f"{scientific(apart)} relative" if math.isfinite(apart) else "one of them is not finite"
    return f"{_value(parting.value_a)} in the first run, {_value(parting.value_b)} in the second ({size})."


def _value(value: float) -> str:
    return f"{value:.7g}" if math.isfinite(value) else scientific(value)


def _told(parting: Parting) -> str:
    return f"{_what(parting)} from step {parting.step:,}: {_numbers(parting).removesuffix('.')}"


def _settings(comparison: RunComparison) -> str:
    told = "; ".join(_told(parting) for parting in comparison.settings)
    first = comparison.settings[0].step
    cause = ""
    if comparison.partings and first <= comparison.partings[0].step:
        cause = " No tensor differs before: this may be the cause."
    return f"**Settings that differ:** {told}.{cause}"


def _summary(comparison: RunComparison) -> str:
    if comparison.same:
        return f"The runs are **the same** at {counted(comparison.common_steps, 'common step')} within {comparison.rtol:g}."
    if not comparison.partings:
        first = (*comparison.settings, *comparison.results)[0]
        return f"The tensors agree; **{_what(first)}** differs from step {first.step:,}."
    first = comparison.partings[0]
    order = list(dict.fromkeys((p.quantity, p.step) for p in _firsts(comparison.partings)))
    told = ", ".join(f"{quantity.replace('_', ' ')} at step {step:,}" for quantity, step in order)
    return f"The runs **part at step {first.step:,}**, first {_what(first)}. First differences: {told}."


def _firsts(partings: Sequence[Parting]) -> list[Parting]:
    """The earliest of each quantity."""
    return list({p.quantity: p for p in reversed(partings)}.values())[::-1]


def _table(comparison: RunComparison, limit: int | None) -> Table:
    shown = comparison.partings[:limit]
    columns = (
        Column("step", "right", "at which it first differs", 9),
        Column("tensor", priority=9, shrink=True),
        Column("what", priority=8),
        Column("first run", "right", priority=6),
        Column("second run", "right", priority=6),
        Column("relative\ndifference", "right", "|a - b| / max(|a|, |b|)", 7),
    )
    rows = tuple(
        (
            Cell(f"{p.step:,}", sort=float(p.step)),
            Cell(p.name),
            Cell(_WORDS.get(p.quantity, p.quantity)),
            Cell(_value(p.value_a), sort=p.value_a if math.isfinite(p.value_a) else None),
            Cell(_value(p.value_b), sort=p.value_b if math.isfinite(p.value_b) else None),
            Cell(
                scientific(p.relative_difference),
                sort=p.relative_difference if math.isfinite(p.relative_difference) else None,
            ),
        )
        for p in shown
    )
    more = comparison.parting_count - len(shown)
    return Table(
        columns, rows, title="First differences, in order",
        caption=f"One row per tensor and quantity{f'; {more:,} later ones are left out' if more else ''}.",
    )  # fmt: skip


def _left_out(comparison: RunComparison) -> list[Block]:
    blocks: list[Block] = []
    for names, run in (
        (comparison.missing_in_b, comparison.name_a),
        (comparison.missing_in_a, comparison.name_b),
    ):
        if names:
            shown = ", ".join(f"`{literal(name)}`" for name in names[:_NAMES])
            more = f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else ""
            blocks.append(Paragraph(f"**Only in {literal(run)}:** {shown}{more}.", "muted"))
    if comparison.only_a or comparison.only_b:
        blocks.append(
            Paragraph(
                f"Steps recorded only in the first run: {comparison.only_a:,}; only in the second: {comparison.only_b:,}.",
                "muted",
            )
        )
    return blocks


def _drift_lines(comparison: RunComparison) -> tuple[str, ...]:
    lines = []
    for drift in comparison.drift:
        logs = [math.log10(v) if 0 < v < math.inf else (-math.inf if v == 0 else math.nan) for v in drift.largest]
        last = drift.largest[-1]
        name = drift.quantity.replace("_", " ")
        lines.append(f"{name:<16} {sparkline(logs, _SPARK)} {scientific(last)} at step {drift.steps[-1]:,}")
    return tuple(lines)


def _read_drift(comparison: RunComparison) -> str:
    worst = max(comparison.drift, key=lambda drift: drift.largest[-1])
    last = worst.largest[-1]
    size = percent(last) if last <= 1 else scientific(last)
    return (
        f"The largest relative difference over all tensors, per quantity: at step {worst.steps[-1]:,} it is {size} for the "
        f"{_WORDS.get(worst.quantity, worst.quantity)}. The dashed line is the tolerance; what has no line does not differ."
    )


def run_comparison_figure(comparison: RunComparison, *, template: Template = "dark") -> Any:
    """Draw how far apart two runs are over the steps.

    Args:
        comparison: the record.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: no quantity was recorded in both.
    """
    if not comparison.drift:
        raise InputError("no quantity was recorded in both runs, so there is no drift to draw")
    figure = go.Figure()
    logs: list[float] = []
    for drift in comparison.drift:
        words = _WORDS.get(drift.quantity, drift.quantity)
        values = [float(f"{v:.4g}") if 0 < v < math.inf else None for v in drift.largest]
        if not any(values):
            continue
        logs += [math.log10(v) for v in values if v]
        color = PALETTE[_COLORS.get(drift.quantity, "sky")]
        figure.add_trace(
            scatter(
                len(values), x=list(drift.steps), y=values, name=words, connectgaps=False,
                mode="lines+markers" if len(values) <= 80 else "lines", marker={"size": 5, "color": color},
                line={"color": color, "width": 1.8, "dash": _DASHES.get(drift.quantity, "solid")},
                hovertemplate=f"step %{{x}}<br>{words}: %{{y:.3g}} relative<extra></extra>",
            )
        )  # fmt: skip
    axis = step_axis([comparison.first_common, comparison.last_common])
    if comparison.rtol > 0:
        logs.append(math.log10(comparison.rtol))
        figure.add_trace(
            go.Scatter(
                x=axis["range"], y=[comparison.rtol] * 2, mode="lines", name="tolerance", hoverinfo="skip",
                line={"color": PALETTE["gray"], "width": 1.5, "dash": "dash"},
            )
        )  # fmt: skip
    figure.update_xaxes(**axis)
    figure.update_yaxes(**log_axis("largest relative difference<br>(no unit, log scale)", log_range(logs)))
    return finish(
        figure, title="How the two runs drift apart", reading=_read_drift(comparison), template=template, height=380
    )
