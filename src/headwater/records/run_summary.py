"""A recorded run in short: what a report says first, a page's numbers without its pictures, JSON for programs."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from headwater.records.finding import Finding, Severity
from headwater.records.run import RecordedStep, RunSource
from headwater.records.run_events import fold_events
from headwater.records.run_matrix import is_nonfinite, rms_matrix
from headwater.records.saved import Saved
from headwater.records.step import RunEvent

__all__ = [
    "CoursePoint",
    "RunOverhead",
    "RunSummary",
    "Spike",
    "WatchedWeight",
    "is_finished",
    "overhead_of",
    "summarize_run",
]

# Chosen by us: what stays readable as JSON, and enough for a line of blocks in a terminal.
_COURSE_POINTS = 200
_TREND_POINTS = 24
_EVENTS = 200
_CONTRIBUTORS = 10
_SPIKES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOverhead:
    """What watching cost.

    Attributes:
        seconds: spent on it in the training thread; None when the run does not say.
        share: of the training time, 0 to 1; None when the run does not say.
        bytes: written or held; None when the run does not say.
    """

    seconds: float | None = None
    share: float | None = None
    bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoursePoint:
    """One moment of a run, of about 200.

    Attributes:
        group: name of the model/optimizer pair; empty when there is only one.
        step: the optimizer step.
        loss: when given.
        gradient_norm_log10: log10 of the l2 norm of the whole gradient before clipping; NaN and inf when an element is.
        learning_rate: of the optimizer's first group.
    """

    group: str = ""
    step: int
    loss: float | None = None
    gradient_norm_log10: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedWeight:
    """One parameter over the whole run.

    Attributes:
        name: of the parameter.
        type: class of the module that owns it.
        shape: of the parameter.
        first_log10: log10 rms of its gradient when it was first observed at a step that the optimizer took; -inf for
            exactly zero, NaN when an element was NaN, inf when one was infinite, None for never.
        last_log10: likewise, when it was last observed.
        trend_log10: likewise, at most 24 values evenly over the run, those of skipped steps among them; NaN or inf for a
            stretch in which an element was.
        update_ratio: median of ‖Δw‖/‖w‖ over the run; None when it was not recorded.
    """

    name: str
    type: str = ""
    shape: tuple[int, ...] = ()
    first_log10: float | None = None
    last_log10: float | None = None
    trend_log10: tuple[float | None, ...] = ()
    update_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """Who made a step's gradient large.

    Attributes:
        group: name of the model/optimizer pair; empty when there is only one.
        step: at which a spike was found.
        contributors: parameter and its share of the squared norm of the gradient of the group, largest first, at most 10.
    """

    group: str = ""
    step: int
    contributors: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary(Saved):
    """A recorded run in short.

    Attributes:
        name: what the run is called.
        model_type: class of the model.
        groups: names of the model/optimizer pairs.
        first_step: that was recorded; None for a run without one.
        last_step: likewise.
        recorded_steps: how many.
        skipped_steps: how many of them the optimizer did not take.
        finished: whether watching ended; False while the run goes on, or when it was killed.
        seconds: from the beginning of watching to the last recorded step.
        findings: by step, the earliest first.
        events: at most 200, by step; steps skipped one after the other are one event.
        event_count: how many there are, so folded.
        weights: parameters in execution order (weights alone, unless there are none).
        course: loss and gradient norm, about 200 moments, one group after the other.
        spikes: top contributors at the steps at which a spike was found, at most 8.
        overhead: what watching cost.
        observed: trainable parameters whose gradient was recorded at the last step.
        trainable: trainable parameters.
        missing: name to reason, for parameters without a gradient at the last step.
        torch_version: of the run.
        headwater_version: of the run.
        device: of the run.
    """

    SCHEMA: ClassVar[str] = "headwater.run_summary"

    name: str
    model_type: str = ""
    groups: tuple[str, ...] = ("",)
    first_step: int | None = None
    last_step: int | None = None
    recorded_steps: int = 0
    skipped_steps: int = 0
    finished: bool = False
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()
    events: tuple[RunEvent, ...] = ()
    event_count: int = 0
    weights: tuple[WatchedWeight, ...] = ()
    course: tuple[CoursePoint, ...] = ()
    spikes: tuple[Spike, ...] = ()
    overhead: RunOverhead = RunOverhead()
    observed: int = 0
    trainable: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)
    torch_version: str = ""
    headwater_version: str = ""
    device: str = ""

    @property
    def ok(self) -> bool:
        """Whether no finding is critical."""
        return all(finding.severity is not Severity.CRITICAL for finding in self.findings)

    @property
    def first_finding(self) -> Finding | None:
        """The earliest critical finding, else the earliest warning; None for a run without either."""
        for severity in (Severity.CRITICAL, Severity.WARNING):
            for finding in self.findings:
                if finding.severity is severity:
                    return finding
        return None


def summarize_run(run: RunSource) -> RunSummary:
    """Read the summary of a run.

    Args:
        run: from ``headwater.open_run``.

    Returns:
        The summary; its size does not grow with the length of the run.
    """
    steps = run.recorded_steps()
    metadata = run.metadata
    taken = [row for row in steps if row.skipped is None] or list(steps)
    taken = [row for row in taken if row.gradient_norm_log10 is not None] or taken  # the last row may be a loss alone
    coverage = [run.profile(row.step, row.group).coverage for row in _last_of_each_group(taken)]
    missing: dict[str, str] = {}
    for one in coverage:
        missing.update(one.missing)
    events = fold_events(run.events)
    findings = tuple(sorted(run.findings, key=lambda f: (f.step is None, f.step or 0, -f.severity.rank)))
    return RunSummary(
        name=run.name,
        model_type=str(metadata.get("model_type", "")),
        groups=run.groups,
        first_step=steps[0].step if steps else None,
        last_step=max((row.step for row in steps), default=None),
        recorded_steps=len(run.steps),
        skipped_steps=len({row.step for row in steps if row.skipped is not None}),
        finished=is_finished(run.events),
        seconds=max((row.elapsed_seconds for row in steps), default=0.0),
        findings=findings,
        events=events[:_EVENTS],
        event_count=len(events),
        weights=_weights(run, steps) if steps else (),
        course=_course(steps),
        spikes=_spikes(run, findings),
        overhead=overhead_of(metadata),
        observed=sum(one.observed for one in coverage),
        trainable=sum(one.trainable for one in coverage),
        missing=missing,
        torch_version=str(metadata.get("torch_version", "")),
        headwater_version=str(metadata.get("headwater_version", "")),
        device=str(metadata.get("device", "")),
    )


def is_finished(events: Iterable[RunEvent]) -> bool:
    """Whether watching has ended.

    Args:
        events: of the run.

    Returns:
        True when the last word on it is ``detached``, and no ``attached`` or ``resumed`` came after.
    """
    kinds = [event.kind for event in events if event.kind in ("attached", "resumed", "detached")]
    return bool(kinds) and kinds[-1] == "detached"


def _last_of_each_group(steps: Sequence[RecordedStep]) -> list[RecordedStep]:
    return list({row.group: row for row in steps}.values())


def overhead_of(metadata: Mapping[str, Any]) -> RunOverhead:
    """What watching cost, as far as the run says.

    Args:
        metadata: of the run.

    Returns:
        The entry ``overhead``, None for what it does not hold.
    """
    found = metadata.get("overhead")
    if not isinstance(found, Mapping):
        return RunOverhead()
    known = {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return RunOverhead(seconds=known.get("seconds"), share=known.get("share"), bytes=known.get("bytes"))


def _course(steps: Sequence[RecordedStep]) -> tuple[CoursePoint, ...]:
    """Evenly chosen rows of every group, the first and the last of each among them."""
    groups = list(dict.fromkeys(row.group for row in steps))
    points = []
    for group in groups:
        rows = [row for row in steps if row.group == group]
        count = min(len(rows), max(2, _COURSE_POINTS // len(groups)))
        for i in sorted({round(k * (len(rows) - 1) / max(1, count - 1)) for k in range(count)}):
            row = rows[i]
            points.append(
                CoursePoint(
                    group=group,
                    step=row.step,
                    loss=row.loss,
                    gradient_norm_log10=row.gradient_norm_log10,
                    learning_rate=row.learning_rate,
                )
            )
    return tuple(points)


def _weights(run: RunSource, steps: Sequence[RecordedStep]) -> tuple[WatchedWeight, ...]:
    gradients = rms_matrix(run, "gradient", _COURSE_POINTS)
    skipped: dict[str, set[int]] = {}
    for step in steps:
        if step.skipped is not None:
            skipped.setdefault(step.group, set()).add(step.step)
    # What a loss scaler dropped is no gradient that the model ever saw.
    taken = rms_matrix(run, "gradient", _COURSE_POINTS, unmarked=skipped) if skipped else gradients
    taken_columns = {group: _taken_columns(steps, group, taken.steps) for group in skipped}
    names = [tensor.name for tensor in gradients.tensors]
    updates = run.matrix("update", "update_ratio", tensors=names, max_columns=_COURSE_POINTS)
    ratios = {t.name: row for t, row in zip(updates.tensors, updates.values, strict=True)}
    weights = []
    for tensor, every, row in zip(gradients.tensors, gradients.values, taken.values, strict=True):
        chosen = taken_columns.get(tensor.group, range(len(row)))
        seen = [value for j in chosen if (value := row[j]) is not None]
        known = [v for v in ratios.get(tensor.name, ()) if v is not None and math.isfinite(v)]
        weights.append(
            WatchedWeight(
                name=tensor.name,
                type=tensor.type,
                shape=tensor.shape,
                first_log10=seen[0] if seen else None,
                last_log10=seen[-1] if seen else None,
                trend_log10=_evenly(every, _TREND_POINTS),
                update_ratio=statistics.median(known) if known else None,
            )
        )
    return tuple(weights)


def _taken_columns(steps: Sequence[RecordedStep], group: str, columns: Sequence[int]) -> Sequence[int]:
    """Columns with a step that the optimizer took; all of them when it took none."""
    taken = sorted(row.step for row in steps if row.group == group and row.skipped is None)
    ends = [*columns[1:], math.inf]
    found = [
        j for j in range(len(columns)) if (i := bisect_left(taken, columns[j])) < len(taken) and taken[i] < ends[j]
    ]
    return found or range(len(columns))


def _evenly(values: Sequence[float | None], count: int) -> tuple[float | None, ...]:
    if len(values) <= count:
        return tuple(values)
    chosen: list[float | None] = []
    for i in range(count):
        stretch = values[i * len(values) // count : (i + 1) * len(values) // count]
        broken = [v for v in stretch if is_nonfinite(v)]
        chosen.append(broken[0] if broken else values[round(i * (len(values) - 1) / (count - 1))])
    return tuple(chosen)


def _spikes(run: RunSource, findings: Iterable[Finding]) -> tuple[Spike, ...]:
    """Top contributors at the steps of findings whose defect is a spike, for the models that the finding is about."""
    recorded = set(run.steps)
    groups = {tensor.name: tensor.group for tensor in run.tensors}
    wanted: dict[tuple[int, str], None] = {}
    for finding in findings:
        if "spike" in finding.defect.lower() and finding.step is not None and finding.step in recorded:
            named = {groups[name] for name in finding.where if name in groups}
            wanted.update({(finding.step, group): None for group in run.groups if group in (named or run.groups)})
    spikes = []
    for step, group in list(wanted)[:_SPIKES]:
        if any(row.step == step for row in run.recorded_steps(group)):
            shares = sorted(run.top_contributors(step, group), key=lambda pair: -pair[1])[:_CONTRIBUTORS]
            spikes += [Spike(group=group, step=step, contributors=tuple(shares))] if shares else []
    return tuple(spikes)
