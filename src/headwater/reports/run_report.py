"""A recorded run as a document: whether it is healthy and what happened first, then where and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from headwater.records.finding import Finding
from headwater.records.run import RunSource
from headwater.records.run_matrix import is_nonfinite
from headwater.records.run_summary import RunSummary
from headwater.records.step import RunEvent
from headwater.reports.document import (
    Block,
    Bullets,
    Callout,
    Document,
    Figure,
    Heading,
    Paragraph,
    Section,
    Template,
)
from headwater.reports.finding_blocks import TONES, count_findings, evidence_text, places
from headwater.reports.marks import literal
from headwater.reports.notation import counted, percent, power
from headwater.reports.run_symptoms import explained_by, with_symptoms
from headwater.reports.run_tables import event_table, finding_table, spike_table, weight_table
from headwater.reports.run_trend import BROKEN, number_text, trend_line
from headwater.reports.run_view import ROWS, RunView

__all__ = ["build_run_document", "build_run_summary_document", "duration", "run_headline"]

_FINDINGS = 20  # findings that a terminal lists; chosen by us
_CARDS = 12  # findings that a page tells in full; all of them are in its table. Chosen by us.
_EVENTS = 12  # events that a terminal lists; a page lists them all
_SPARK = 60
_GROUPS = 4  # models whose gradient norm a terminal shows; chosen by us
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
    blocks += [finding_table(summary.findings, _FINDINGS)] if summary.findings else []
    blocks += _norm_lines(summary)
    blocks += [weight_table(summary.weights, full=False)] if summary.weights else []
    blocks += [spike_table(spike, 5) for spike in summary.spikes[:1]]
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
        blocks += _cards(summary.findings, cards)
        if len(cards) < len(summary.findings):
            blocks.append(finding_table(summary.findings, None, collapsed=bool(cards)))
    if view is not None and summary.recorded_steps:
        blocks += _pictures(view)
    spikes = summary.spikes if view is None else summary.spikes[1:]
    blocks += [spike_table(spike) for spike in spikes]
    if summary.weights:
        blocks.append(Heading("Weights"))
        blocks.append(weight_table(summary.weights, full=True))
    blocks += [Heading("Events"), event_table(summary)] if summary.events else []
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
    losses = [p.loss for p in summary.course if p.loss is not None and p.group == summary.course[0].group]
    loss = f" The loss went from {number_text(losses[0])} to {number_text(losses[-1])}." if losses else ""
    state = "" if summary.finished else " The run goes on, or was cut off: no end was recorded."
    word = "**healthy**" if summary.ok else "**unhealthy**"
    explained = sum(root is not None for root in explained_by(summary.findings))
    known = f" ({explained:,} explained by another)" if explained else ""
    return (
        f"Run {word}: {count_findings(summary.findings)}{known} in steps {summary.first_step:,} to {summary.last_step:,}."
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


def _cards(findings: Sequence[Finding], chosen: Sequence[Finding]) -> list[Block]:
    """One card for each of the chosen findings; those that another one explains folded up under it."""
    blocks: list[Block] = []
    symptoms: dict[int, list[Finding]] = {}
    roots: list[Finding] = []
    owner: dict[int, Finding] = {}
    for finding, root in with_symptoms(findings):
        top = owner.get(id(root), root)  # the symptom of a symptom belongs to the same root
        if top is not None:
            owner[id(finding)] = top
        if finding not in chosen:
            continue
        if top is None or top not in chosen:
            roots.append(finding)
        else:
            symptoms.setdefault(id(top), []).append(finding)
    for finding in roots:
        blocks.append(_card(finding))
        explained = symptoms.get(id(finding), [])
        if explained:
            names = ", ".join(dict.fromkeys(f"{one.code} {one.defect}" for one in explained))
            title = f"{counted(len(explained), 'finding')} explained by {finding.code}: {names}"
            blocks.append(Section(title, tuple(_card(one) for one in explained), collapsed=True))
    return blocks


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


# -------------------------------------------------------------------- numbers


def _norm_lines(summary: RunSummary) -> list[Block]:
    lines = [_norm_line(summary, group) for group in summary.groups[:_GROUPS]]
    return [Paragraph(line) for line in lines if line]


def _norm_line(summary: RunSummary, group: str) -> str:
    own = [p for p in summary.course if p.group == group]
    norms = [(p.step, p.gradient_norm_log10) for p in own if p.gradient_norm_log10 is not None]
    if not norms:
        return ""
    broken = [step for step, v in norms if is_nonfinite(v)]
    of = f" of `{literal(group)}`" if group else ""
    finite = [(step, v) for step, v in norms if math.isfinite(v)]
    if not finite:
        return f"The gradient norm{of} was zero or not finite at every recorded step."
    low, high = min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])
    line = trend_line([v for _, v in norms], _SPARK)
    text = f"**Gradient norm**{of} {line} from {power(finite[0][1])} to {power(finite[-1][1])}"
    if high[1] - low[1] >= _NOTABLE:
        text += f"; smallest {power(low[1])} at step {low[0]:,}, largest {power(high[1])} at step {high[0]:,}"
    if broken:
        text += f"; {BROKEN} NaN or infinite at {counted(len(broken), 'recorded step')}, first at step {broken[0]:,}"
    return f"{text}."


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
