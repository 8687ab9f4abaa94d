"""A run at this moment, on one screen: for ``headwater top``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headwater.records.finding import Finding, Severity
from headwater.records.profile import ParameterProfile
from headwater.records.run import RecordedStep, RunSource
from headwater.records.run_events import loss_scale_text
from headwater.records.run_matrix import WEIGHT_ROLES
from headwater.records.run_summary import is_finished, overhead_of
from headwater.reports.document import Block, Bullets, Callout, Cell, Column, Document, Paragraph, Table, Tone
from headwater.reports.finding_blocks import count_findings, places
from headwater.reports.marks import literal
from headwater.reports.notation import counted, percent, power, rms_text, sparkline
from headwater.reports.run_report import duration
from headwater.reports.run_trend import bad_text, number_text, trend_line

__all__ = ["build_live_document", "steps_per_second"]

# Chosen by us: what fits on a terminal of 32 lines, and with fewer rows on one of 24.
_TALL = 32
_SPARK = 30
_BESIDE = 27  # columns of the name and the number beside a line of blocks
_WORST = 3
_FINDINGS = 4
_RATE_ROWS = 20  # recorded steps that the speed is worked out from
_QUIET_SECONDS = 30.0  # without a new step before the frame says so, at least
_QUIET_STEPS = 10  # and as many times the usual distance between two recorded steps


def build_live_document(run: RunSource, *, now: float, width: int = 100, height: int = 40) -> Document:
    """Describe a run at this moment.

    Args:
        run: from ``headwater.open_run``.
        now: wall clock, seconds since the epoch.
        width: columns that the lines of blocks have to fit into.
        height: lines of the terminal; below 32 fewer weights and findings are listed.

    Returns:
        A document of 20 to 30 lines.
    """
    rows = run.recorded_steps()
    if not rows:
        waiting = Callout("It appears as soon as the first step has been recorded.", "warning", "no step yet")
        return Document(f"Run {run.name}", headline=waiting)
    last = rows[-1]
    finished = is_finished(run.events)
    own = [row for row in rows if row.group == last.group]
    blocks: list[Block] = [_numbers(own, max(6, min(_SPARK, width - _BESIDE)), height >= _TALL)]
    tall = height >= _TALL
    findings = sorted(run.findings, key=lambda f: -1 if f.step is None else f.step)
    if findings:
        listed = _FINDINGS if tall else 1
        blocks.append(Bullets(tuple(_finding(f) for f in findings[: -listed - 1 : -1])))
    blocks += _worst_layers(run, own, _WORST if tall else 1)
    blocks.append(Paragraph(_cost(run), "muted"))
    return Document(
        title=f"Run {run.name}", blocks=tuple(blocks), facts=_facts(own, finished, now, len(run.groups)),
        headline=_headline(findings, own, finished, now),
    )  # fmt: skip


def steps_per_second(rows: Sequence[RecordedStep]) -> float | None:
    """How fast a run goes, from its last recorded steps.

    Args:
        rows: of one group, in order.

    Returns:
        Optimizer steps per second; None when that cannot be told.
    """
    recent = rows[-_RATE_ROWS:]
    # After a resumed run the clock or the step may have gone back: only what follows counts.
    start = 0
    for i in range(1, len(recent)):
        if recent[i].step <= recent[i - 1].step or recent[i].time <= recent[i - 1].time:
            start = i
    recent = recent[start:]
    if len(recent) < 2:
        return None
    return (recent[-1].step - recent[0].step) / (recent[-1].time - recent[0].time)


def _facts(rows: Sequence[RecordedStep], finished: bool, now: float, groups: int) -> tuple[tuple[str, str], ...]:
    last, rate = rows[-1], steps_per_second(rows)
    found = [
        ("step", f"{last.step:,}"),
        ("model", f"{last.group or '(only)'} of {groups}" if groups > 1 else ""),
        ("", "" if rate is None else f"{rate:.3g} steps/s"),
        ("", f"{len(rows):,} recorded"),
        ("time", duration(last.elapsed_seconds)),
        ("", "ended" if finished else f"last step {duration(max(0.0, now - last.time))} ago"),
    ]
    return tuple((label, value) for label, value in found if value)


def _headline(findings: Sequence[Finding], rows: Sequence[RecordedStep], finished: bool, now: float) -> Callout:
    quiet = now - rows[-1].time
    gaps = sorted(b.time - a.time for a, b in zip(rows[-_RATE_ROWS:], rows[-_RATE_ROWS + 1 :], strict=False))
    usual = gaps[len(gaps) // 2] if gaps else 0.0
    worst = next((f for s in (Severity.CRITICAL, Severity.WARNING) for f in findings if f.severity is s), None)
    text = ""
    if not finished and quiet > max(_QUIET_SECONDS, _QUIET_STEPS * usual):
        text = f"No new step for {duration(quiet)}: it is paused, or it was killed."
    if worst is None:
        return Callout(text, "warning" if text else "good", "no finding that matters")
    when = "" if worst.step is None else f" from step {worst.step:,}"
    tone: Tone = "critical" if worst.severity is Severity.CRITICAL else "warning"
    title = f"{literal(worst.code)} {literal(worst.defect)}{places(worst, 3)}{when}"
    return Callout(text, tone, f"{count_findings(findings)}: {title}")


def _numbers(rows: Sequence[RecordedStep], spark: int, tall: bool) -> Table:
    last = rows[-1]
    columns = (
        Column("what", priority=9), Column("now", "right", priority=9), Column("so far", priority=6),
        Column("smallest", "right", priority=3), Column("largest", "right", priority=4),
    )  # fmt: skip
    lines = []
    losses = [math.nan if row.loss is None else row.loss for row in rows]
    if any(not math.isnan(v) for v in losses) or last.loss is not None:
        positive = all(v > 0 for v in losses if math.isfinite(v))
        drawn = [math.log10(v) if positive and v > 0 and math.isfinite(v) else math.nan for v in losses]
        lines.append(_line("loss", last.loss, losses, sparkline(drawn if positive else losses, spark)))
    norms = [row.gradient_norm_log10 for row in rows]
    if any(v is not None for v in norms):
        finite = [v for v in norms if v is not None and math.isfinite(v)]
        now = last.gradient_norm_log10
        lines.append(
            (
                Cell("gradient norm"),
                _bad(
                    "-"
                    if now is None
                    else "0"
                    if now == -math.inf
                    else power(now)
                    if math.isfinite(now)
                    else bad_text(now)
                ),
                Cell(trend_line(norms, spark)),
                Cell(power(min(finite)) if finite else "-"),
                Cell(power(max(finite)) if finite else "-"),
            )
        )
    for name, value, usual in (
        ("learning rate", last.learning_rate, None),
        ("clip coefficient", last.clip_coefficient, 1.0),
        ("loss scale", last.loss_scale, 1.0),
    ):
        if value is not None and value != usual:
            shown = loss_scale_text(value) if name == "loss scale" and value > 0.0 else number_text(value)
            lines.append((Cell(name), Cell(shown), Cell(""), Cell(""), Cell("")))
    skipped = sum(row.skipped is not None for row in rows)
    if skipped:
        lines.append((Cell("skipped"), Cell(f"{skipped:,}"), Cell(""), Cell(""), Cell("")))
    kept = len(columns) if tall else 3  # a line that says what is left out would cost a line
    return Table(columns[:kept], tuple(line[:kept] for line in lines))


def _line(name: str, now: float | None, values: Sequence[float], drawn: str) -> tuple[Cell, ...]:
    finite = [v for v in values if math.isfinite(v)]
    shown = "-" if now is None else number_text(now)
    ends = (f"{min(finite):.4g}", f"{max(finite):.4g}") if finite else ("-", "-")
    return Cell(name), _bad(shown), Cell(drawn), Cell(ends[0]), Cell(ends[1])


def _bad(text: str) -> Cell:
    return Cell(text, tone="critical" if text in ("NaN", "inf", "-inf") else "plain")


def _worst_layers(run: RunSource, rows: Sequence[RecordedStep], most: int) -> list[Block]:
    """The weights with the smallest and the largest gradient at the last step that was taken."""
    seen = [row for row in rows if row.gradient_norm_log10 is not None] or rows
    row = next((row for row in reversed(seen) if row.skipped is None), seen[-1])
    profile = run.profile(row.step, row.group)
    everything = [p for p in profile.parameters if p.gradient is not None and p.gradient.count]
    weights = [p for p in everything if p.role in WEIGHT_ROLES] or everything
    if not weights:
        return []
    ordered = sorted(weights, key=_size)
    edge = min(most, (len(ordered) + 1) // 2)
    low = ordered[:edge]
    chosen = [*low, *[p for p in ordered[-edge:] if p not in low]]
    lines = tuple(
        (
            Cell(p.name),
            _bad(_rms_text(p)),
            Cell("smallest" if p in low else "largest", tone="muted"),
        )
        for p in chosen
    )
    columns = (
        Column("weight", priority=7, shrink=True), Column("gradient rms", "right", priority=9), Column("which", priority=2),
    )  # fmt: skip
    return [Table(columns, lines, title=f"Step {row.step:,}: {counted(len(weights), 'weight')}")]


def _size(parameter: ParameterProfile) -> float:
    """log10 rms; what is not finite is the largest of all."""
    found = parameter.gradient
    if found is None or found.nonfinite_count or math.isnan(found.rms_log10):
        return math.inf
    return found.rms_log10


def _rms_text(parameter: ParameterProfile) -> str:
    found = parameter.gradient
    if found is None or not found.nonfinite_count:
        return rms_text(found)
    return "NaN" if found.nan_count else "inf"


def _finding(finding: Finding) -> str:
    when = "" if finding.step is None else f"step {finding.step:,} "
    return f"{when}{finding.severity.value}: **{literal(finding.code)} {literal(finding.defect)}**{places(finding, 2)}"


def _cost(run: RunSource) -> str:
    cost = overhead_of(run.metadata)
    parts = []
    if cost.share is not None:
        parts.append(f"watching: {percent(max(0.0, min(1.0, cost.share)))} of the time")
    if cost.seconds is not None:
        parts.append(duration(cost.seconds))
    return (", ".join(parts) or "cost of watching not recorded yet") + ". Ctrl-C leaves."
