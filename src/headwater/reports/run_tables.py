"""The tables of a run: findings, events, weights, and who made a spike."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

from headwater.records.finding import Finding, fold_names
from headwater.records.run_matrix import is_nonfinite
from headwater.records.run_summary import RunSummary, Spike, WatchedWeight
from headwater.reports.document import Cell, Column, Table
from headwater.reports.finding_blocks import TONES, count_findings
from headwater.reports.notation import counted, decades, percent, power, scientific, shape_text, shorten_names
from headwater.reports.run_symptoms import with_symptoms
from headwater.reports.run_trend import BROKEN, bad_text, trend_line

__all__ = ["event_table", "finding_table", "spike_table", "weight_table"]

_PLACE = 26  # columns of a name in a table of findings; chosen by us
_PLACES = 2  # names, or ranges of them, that the table lists of a finding; chosen by us
_EDGE = 4  # weights shown at the beginning, in the middle and at the end of a long model; chosen by us


def finding_table(findings: Sequence[Finding], limit: int | None, *, collapsed: bool = False) -> Table:
    """Findings by step, each with those that it explains under it.

    Args:
        findings: by step.
        limit: how many of the most serious are listed; None for all.
        collapsed: whether a page shows it folded up.

    Returns:
        The table.
    """
    shown = list(findings)
    if limit is not None and len(shown) > limit:  # the worst, in the order in which they came
        worst = sorted(range(len(shown)), key=lambda i: (-shown[i].severity.rank, i))[:limit]
        shown = [shown[i] for i in sorted(worst)]
    columns = (
        Column("step", "right", "the optimizer step at which it began", 9),
        Column("severity", priority=6),
        Column("finding", priority=9, wrap=True, min_width=16),
        Column("where", priority=5, wrap=True, min_width=_PLACE),
        Column("cause", wrap=True, priority=7, min_width=24),
    )
    rows = [
        (
            Cell("-" if f.step is None else f"{f.step:,}", sort=-1.0 if f.step is None else float(f.step)),
            Cell(f.severity.value, tone=TONES[f.severity], sort=float(-f.severity.rank)),
            Cell(f"· {f.code} {f.defect}, explained by {root.code}" if root else f"{f.code} {f.defect}"),
            Cell(_plain_places(f)),
            Cell(f.cause),
        )
        for f, root in with_symptoms(shown)
    ]
    caption = ""
    if len(shown) < len(findings):
        caption = f"The {len(shown)} most serious of {len(findings):,} findings; --html lists all."
    return Table(columns, tuple(rows), title=count_findings(findings), caption=caption, collapsed=collapsed)


def _plain_places(finding: Finding) -> str:
    """Names that fit into a narrow column whole: what is shortened are the leading words, each to its first letter."""
    names = fold_names(finding.where, _PLACES)
    more = [names.pop()] if len(names) > _PLACES else []
    return " ".join([", ".join(shorten_names([name], _PLACE)[0] for name in names), *more])


def event_table(summary: RunSummary) -> Table:
    """What happened, in order.

    Args:
        summary: of the run.

    Returns:
        The table.
    """
    columns = (
        Column("step", "right", priority=9),
        Column("time (UTC)", priority=3),
        Column("event", priority=8),
        Column("what happened", wrap=True, priority=9),
    )
    rows = [
        (
            Cell("-" if e.step is None else f"{e.step:,}", sort=-1.0 if e.step is None else float(e.step)),
            Cell(_clock(e.time), sort=e.time),
            Cell(e.kind.replace("_", " ")),
            Cell(e.message + (f" ({', '.join(e.names[:5])}{' …' if len(e.names) > 5 else ''})" if e.names else "")),
        )
        for e in summary.events
    ]
    left = summary.event_count - len(summary.events)
    caption = f"The first {len(rows)} of {summary.event_count:,} events." if left else ""
    title = counted(summary.event_count, "event")
    return Table(columns, tuple(rows), title=title, caption=caption, collapsed=len(rows) > 12)


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def weight_table(weights: Sequence[WatchedWeight], *, full: bool) -> Table:
    """Weights over the run.

    Args:
        weights: in execution order.
        full: all of them; otherwise the first, the middle and the last.

    Returns:
        The table.
    """
    count = len(weights)
    chosen = list(range(count))
    if not full and count > 3 * _EDGE:
        middle = range(count // 2 - _EDGE // 2, count // 2 - _EDGE // 2 + _EDGE)
        chosen = [*range(_EDGE), *middle, *range(count - _EDGE, count)]
    columns = (
        Column("weight", priority=9, shrink=True, hint="name in named_parameters(); the input's at the top"),
        Column("type", priority=2, shrink=True),
        Column("shape", priority=1, shrink=True),
        Column("first\ngradient rms", "right", "√mean(gradient²) when it was first recorded", 6),
        Column("last\ngradient rms", "right", "√mean(gradient²) when it was last recorded", 8),
        Column("change", "right", "decades between the two", 4),
        Column(
            "over the run",
            priority=7,
            hint=f"log10 of the gradient's rms, from the first step to the last; {BROKEN} NaN or infinite elements",
        ),
        Column("update\nratio", "right", "median of ‖Δw‖/‖w‖ per step; about 1e-3 is a rule of thumb", 5),
    )
    rows: list[tuple[Cell, ...]] = []
    for position, i in enumerate(chosen):
        if position and i != chosen[position - 1] + 1:
            gap = i - chosen[position - 1] - 1
            rows.append((Cell(f"… {counted(gap, 'weight')} …", tone="muted"), *(Cell("") for _ in columns[1:])))
        rows.append(_weight_row(i, weights[i]))
    title = counted(count, "weight")
    shown = "" if len(chosen) == count else f" {len(chosen)} of {count:,}: the first, the middle and the last."
    caption = f"In execution order.{shown}"
    if any(is_nonfinite(v) for i in chosen for v in weights[i].trend_log10):
        caption += f" {BROKEN} marks steps at which an element was NaN or infinite, skipped steps among them."
    return Table(columns, tuple(rows), title=title, caption=caption, collapsed=full and count > 24)


def _weight_row(order: int, weight: WatchedWeight) -> tuple[Cell, ...]:
    first, last = weight.first_log10, weight.last_log10
    change = ""
    if first is not None and last is not None and math.isfinite(first) and math.isfinite(last):
        change = decades(last - first).removesuffix(" decades")
    ratio = weight.update_ratio
    return (
        Cell(weight.name, sort=float(order)),
        Cell(weight.type, tone="muted"),
        Cell(shape_text(weight.shape), tone="muted"),
        _log_cell(first),
        _log_cell(last),
        Cell(change, sort=None if not change else (last or 0.0) - (first or 0.0)),
        Cell(trend_line(weight.trend_log10, 24)),
        Cell("" if ratio is None else scientific(ratio), sort=ratio),
    )


def _log_cell(value: float | None) -> Cell:
    if value is None:
        return Cell("-", tone="muted")
    if is_nonfinite(value):
        return Cell(bad_text(value), tone="critical", sort=1e9)
    if math.isinf(value):
        return Cell("0 (exact)", tone="warning", sort=-1e9)
    return Cell(power(value), sort=value)


def spike_table(spike: Spike, limit: int | None = None) -> Table:
    """Who made the gradient of a step.

    Args:
        spike: of the summary.
        limit: how many parameters are listed; None for all that are known.

    Returns:
        The table.
    """
    rows = [
        (Cell(name), Cell(percent(max(0.0, min(1.0, share))), sort=share)) for name, share in spike.contributors[:limit]
    ]
    columns = (Column("parameter", priority=9, shrink=True), Column("share of the\nsquared norm", "right", priority=8))
    return Table(columns, tuple(rows), title=f"Who made the gradient of step {spike.step:,}")
