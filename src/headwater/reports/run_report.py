"""A recorded run as a document: whether it is healthy and what happened first, then where and when."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from typing import Any

from headwater.records.finding import Finding
from headwater.records.run import RunSource
from headwater.records.run_summary import RunSummary, WatchedWeight
from headwater.records.step import RunEvent
from headwater.reports.document import (
    Block,
    Bullets,
    Callout,
    Cell,
    Column,
    Document,
    Figure,
    Heading,
    Paragraph,
    Section,
    Table,
    Template,
)
from headwater.reports.finding_blocks import TONES, count_findings, evidence_text, places
from headwater.reports.marks import literal
from headwater.reports.notation import counted, decades, percent, power, scientific, shape_text, sparkline
from headwater.reports.run_view import ROWS, RunView

__all__ = ["build_run_document", "build_run_summary_document", "duration", "run_headline"]

_FINDINGS = 20  # findings that a terminal lists; chosen by us
_CARDS = 12  # findings that a page tells in full; all of them are in its table. Chosen by us.
_EDGE = 4  # weights shown at the beginning, in the middle and at the end of a long model; chosen by us
_EVENTS = 12  # events that a terminal lists; a page lists them all
_SPARK = 60
_NOTABLE = 0.3  # decades, a factor of 2: a norm that stays within has no extremes worth a word. Chosen by us.


def build_run_document(run: RunSource | RunView, *, full: bool = False) -> Document:
    """Describe a run.

    Args:
        run: from ``headwater.open_run``.
        full: pictures, every weight and every event; otherwise what fits on a screen or two.

    Returns:
        The document.
    """
    view = run if isinstance(run, RunView) else RunView(run)
    if not full:
        return build_run_summary_document(view.summary)
    return _document(view.summary, view)


def build_run_summary_document(summary: RunSummary, *, full: bool = False) -> Document:
    """Describe a run from its summary alone, without pictures.

    Args:
        summary: the record.
        full: every weight and every event.

    Returns:
        The document.
    """
    if full:
        return _document(summary, None)
    blocks: list[Block] = []
    blocks += _finding_table(summary.findings, _FINDINGS)
    blocks += _norm_line(summary)
    blocks += [_weight_table(summary.weights, full=False)] if summary.weights else []
    blocks += [block for spike in summary.spikes[:1] for block in _spike_lines(spike.step, spike.contributors[:5])]
    blocks += _event_lines(summary)
    blocks.append(Paragraph(f"{_cost(summary)} {_coverage(summary)}", "muted"))
    return Document(
        title=f"Run {summary.name}", blocks=tuple(blocks), summary=_summary(summary), facts=_facts(summary),
        headline=run_headline(summary),
    )  # fmt: skip


def _document(summary: RunSummary, view: RunView | None) -> Document:
    blocks: list[Block] = []
    if summary.findings:
        blocks.append(Heading("What was found"))
        cards = sorted((f for f in summary.findings if f.severity.rank > 0), key=lambda f: -f.severity.rank)[:_CARDS]
        blocks += [_card(finding) for finding in summary.findings if finding in cards]
        if len(cards) < len(summary.findings):
            blocks += _finding_table(summary.findings, None, collapsed=bool(cards))
    if view is not None and summary.recorded_steps:
        blocks += _pictures(view)
    for spike in summary.spikes if view is None else summary.spikes[1:]:
        blocks += _spike_lines(spike.step, spike.contributors)
    if summary.weights:
        blocks.append(Heading("Weights"))
        blocks.append(_weight_table(summary.weights, full=True))
    blocks += _event_table(summary)
    blocks += [Heading("What watching cost, and what it saw"), Paragraph(_cost(summary)), Paragraph(_coverage(summary))]
    return Document(
        title=f"Run {summary.name}", blocks=tuple(blocks), summary=_summary(summary), facts=_facts(summary),
        headline=run_headline(summary),
    )  # fmt: skip


# -------------------------------------------------------------------- words


def run_headline(summary: RunSummary) -> Callout:
    """One sentence: whether the run is healthy, and what happened first.

    Args:
        summary: the record.

    Returns:
        The headline.
    """
    if not summary.recorded_steps:
        return Callout("No step has been recorded yet.", "warning", "nothing observed")
    first = summary.first_finding
    steps = f"{counted(summary.recorded_steps, 'step')} recorded"
    if first is None:
        remarks = f", {count_findings(summary.findings)}" if summary.findings else ", nothing found"
        return Callout(f"{steps}{remarks}.", "good", "healthy")
    when = "" if first.step is None else f" at step {first.step:,}"
    what = f"{literal(first.code)} {literal(first.defect)}{places(first, 3)}{when}"
    if summary.ok:
        return Callout(
            literal(first.cause), "warning", f"healthy, with {count_findings(summary.findings)}: first {what}"
        )
    return Callout(literal(first.cause), "critical", f"unhealthy: first {what}")


def _summary(summary: RunSummary) -> str:
    if not summary.recorded_steps:
        return "Nothing was observed."
    losses = [p.loss for p in summary.course if p.loss is not None]
    loss = f" The loss went from {losses[0]:.4g} to {losses[-1]:.4g}." if losses else ""
    state = "" if summary.finished else " The run goes on, or was cut off: no end was recorded."
    word = "**healthy**" if summary.ok else "**unhealthy**"
    return (
        f"Run {word}: {count_findings(summary.findings)} in steps {summary.first_step:,} to {summary.last_step:,}."
        f"{loss}{state}"
    )


def _facts(summary: RunSummary) -> tuple[tuple[str, str], ...]:
    found = [
        ("model", summary.model_type),
        ("steps", "" if summary.last_step is None else f"{summary.first_step:,} to {summary.last_step:,}"),
        ("recorded", f"{summary.recorded_steps:,}"),
        ("skipped", f"{summary.skipped_steps:,}" if summary.skipped_steps else ""),
        ("time", duration(summary.seconds) if summary.seconds else ""),
        ("device", summary.device),
        ("torch", summary.torch_version),
        ("headwater", summary.headwater_version),
        ("models", ", ".join(summary.groups) if len(summary.groups) > 1 else ""),
    ]
    return tuple((label, value) for label, value in found if value)


def duration(seconds: float) -> str:
    """A time span as people say it.

    Args:
        seconds: zero or more.

    Returns:
        Such as ``3 min 20 s``.

    Example:
        >>> duration(0.25), duration(75), duration(7260), duration(180_000)
        ('0.25 s', '1 min 15 s', '2 h 1 min', '2 d 2 h')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for size, unit, smaller, name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole} s"


def _cost(summary: RunSummary) -> str:
    cost = summary.overhead
    parts = []
    if cost.seconds is not None:
        parts.append(f"{duration(cost.seconds)} of the training thread")
    if cost.share is not None:
        parts.append(f"{percent(max(0.0, min(1.0, cost.share)))} of the training time")
    if cost.bytes is not None:
        parts.append(f"{_bytes(cost.bytes)} kept")
    return f"**Cost of watching:** {', '.join(parts)}." if parts else "**Cost of watching:** not recorded."


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _coverage(summary: RunSummary) -> str:
    text = f"**Coverage:** {summary.observed:,} of {counted(summary.trainable, 'trainable parameter')} observed."
    reasons: dict[str, list[str]] = {}
    for name, reason in summary.missing.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        shown = ", ".join(f"`{literal(name)}`" for name in names[:5])
        text += f" {literal(reason)}: {shown}{f' and {len(names) - 5:,} more' if len(names) > 5 else ''}."
    return text


# -------------------------------------------------------------------- findings and events


def _finding_table(findings: Sequence[Finding], limit: int | None, *, collapsed: bool = False) -> list[Block]:
    if not findings:
        return []
    shown = list(findings)
    if limit is not None and len(shown) > limit:  # the worst, in the order in which they came
        worst = sorted(range(len(shown)), key=lambda i: (-shown[i].severity.rank, i))[:limit]
        shown = [shown[i] for i in sorted(worst)]
    columns = (
        Column("step", "right", "the optimizer step at which it began", 9),
        Column("severity", priority=6),
        Column("finding", priority=9, wrap=True, min_width=16),
        Column("where", priority=5, shrink=True),
        Column("cause", wrap=True, priority=7, min_width=24),
    )
    rows = [
        (
            Cell("-" if f.step is None else f"{f.step:,}", sort=-1.0 if f.step is None else float(f.step)),
            Cell(f.severity.value, tone=TONES[f.severity], sort=float(-f.severity.rank)),
            Cell(f"{f.code} {f.defect}"),
            Cell(_plain_places(f)),
            Cell(f.cause),
        )
        for f in shown
    ]
    caption = ""
    if len(shown) < len(findings):
        caption = f"The {len(shown)} most serious of {len(findings):,} findings; --html lists all."
    return [Table(columns, tuple(rows), title=count_findings(findings), caption=caption, collapsed=collapsed)]


def _plain_places(finding: Finding) -> str:
    return places(finding, 3).removeprefix(" at ").replace("`", "")


def _card(finding: Finding) -> Callout:
    when = "" if finding.step is None else f"From step {finding.step:,}. "
    where = f"**Where:**{places(finding, 12).removeprefix(' at')}. " if finding.where else ""
    evidence = f"**Evidence:** {evidence_text(finding.evidence)}. " if finding.evidence else ""
    text = f"{when}{literal(finding.cause)} {where}{evidence}**Try:** {literal(finding.advice)}"
    return Callout(text, TONES[finding.severity], f"{finding.code} {finding.defect}, {finding.severity.value}.")


def _event_lines(summary: RunSummary) -> list[Block]:
    told = [e for e in summary.events if e.kind not in ("attached", "detached")]
    if not told:
        return []
    lines = tuple(_event_text(event) for event in told[-_EVENTS:])
    more = summary.event_count - len(summary.events) + len(told) - len(lines)
    title = "Events" + (f" (the last {len(lines)}, {more:,} before)" if more else "")
    return [Heading(title, 3), Bullets(lines)]


def _event_text(event: RunEvent) -> str:
    when = "" if event.step is None else f"step {event.step:,}: "
    return f"{when}{literal(event.kind.replace('_', ' '))}. {literal(event.message)}"


def _event_table(summary: RunSummary) -> list[Block]:
    if not summary.events:
        return []
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
    return [Heading("Events"), Table(columns, tuple(rows), title=title, caption=caption, collapsed=len(rows) > 12)]


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


# -------------------------------------------------------------------- numbers


def _norm_line(summary: RunSummary) -> list[Block]:
    norms = [(p.step, p.gradient_norm_log10) for p in summary.course if p.gradient_norm_log10 is not None]
    if not norms:
        return []
    finite = [(step, v) for step, v in norms if math.isfinite(v)]
    if not finite:
        return [Paragraph("The gradient norm was zero or not finite at every recorded step.")]
    low, high = min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])
    line = sparkline([v for _, v in norms], _SPARK)
    text = f"**Gradient norm** {line} from {power(finite[0][1])} to {power(finite[-1][1])}"
    if high[1] - low[1] >= _NOTABLE:
        text += f"; smallest {power(low[1])} at step {low[0]:,}, largest {power(high[1])} at step {high[0]:,}"
    text += "."
    return [Paragraph(text)]


def _weight_table(weights: Sequence[WatchedWeight], *, full: bool) -> Table:
    """First, middle and last weights, or all of them."""
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
        Column("over the run", priority=7, hint="log10 of the gradient's rms, from the first step to the last"),
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
    return Table(columns, tuple(rows), title=title, caption=caption, collapsed=full and count > 24)


def _weight_row(order: int, weight: WatchedWeight) -> tuple[Cell, ...]:
    first, last = weight.first_log10, weight.last_log10
    change = ""
    if first is not None and last is not None and math.isfinite(first) and math.isfinite(last):
        change = decades(last - first).removesuffix(" decades")
    trend = [math.nan if v is None else v for v in weight.trend_log10]
    ratio = weight.update_ratio
    return (
        Cell(weight.name, sort=float(order)),
        Cell(weight.type, tone="muted"),
        Cell(shape_text(weight.shape), tone="muted"),
        _log_cell(first),
        _log_cell(last),
        Cell(change, sort=None if not change else (last or 0.0) - (first or 0.0)),
        Cell(sparkline(trend, 24)),
        Cell("" if ratio is None else scientific(ratio), sort=ratio),
    )


def _log_cell(value: float | None) -> Cell:
    if value is None:
        return Cell("-", tone="muted")
    if math.isnan(value):
        return Cell("NaN", tone="critical", sort=1e9)
    if math.isinf(value):
        return Cell("0 (exact)", tone="warning", sort=-1e9)
    return Cell(power(value), sort=value)


def _spike_lines(step: int, contributors: Sequence[tuple[str, float]]) -> list[Block]:
    rows = [(Cell(name), Cell(percent(max(0.0, min(1.0, share))), sort=share)) for name, share in contributors]
    columns = (Column("parameter", priority=9, shrink=True), Column("share of the\nsquared norm", "right", priority=8))
    return [Table(columns, tuple(rows), title=f"Who made the gradient of step {step:,}")]


# -------------------------------------------------------------------- pictures


def _pictures(view: RunView) -> list[Block]:
    """Every picture for which something was recorded."""
    from headwater.reports.run_depth import read_depth
    from headwater.reports.run_figures import read_course, read_spike, read_updates
    from headwater.reports.run_heatmap import FOLDED_ROWS, read_heatmap

    summary = view.summary
    blocks: list[Block] = []
    grids = view.grids(FOLDED_ROWS)
    if grids:
        blocks.append(Heading("Where and when"))
        blocks.append(_figure(view, "heatmap", "Map: layers over steps", read_heatmap(view)))
        if any(grid.folded for grid in grids):
            every = _figure(view, "heatmap", "Map of every layer", read_heatmap(view, ROWS), full=True)
            count = max(grid.count for grid in grids)
            blocks.append(Section(f"Every layer: the map with all {count:,} rows", (every,), collapsed=True))
    if view.grid("gradient") is not None:
        blocks.append(_figure(view, "depth", "Profile along the depth, with a slider over the steps", read_depth(view)))
    rows = view.recorded_steps
    if any(row.loss is not None or row.gradient_norm_log10 is not None or row.learning_rate for row in rows):
        blocks.append(Heading("Over the steps"))
        blocks.append(_figure(view, "course", "Loss, gradient norm, learning rate and loss scale", read_course(view)))
    updates = view.grid("update")
    if updates is not None and updates.finite():
        blocks.append(_figure(view, "updates", "Update ratios over the steps", read_updates(view)))
    if summary.spikes:
        blocks.append(Heading("Who made the spike"))
        spike = summary.spikes[0]
        blocks.append(_figure(view, "contributors", f"Shares of the gradient of step {spike.step}", read_spike(spike)))
    return blocks


def _figure(view: RunView, what: str, title: str, reading: str, **options: Any) -> Figure:
    draw: Callable[[Template], Any] = _drawer(view, what, options)
    return Figure(draw, title, reading)


def _drawer(view: RunView, what: str, options: dict[str, Any]) -> Callable[[Template], Any]:
    def draw(template: Template) -> Any:
        from headwater.reports.run_figures import run_figure

        return run_figure(view, template=template, what=what, **options)

    return draw
