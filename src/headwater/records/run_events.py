"""Events of a run in the order of the steps, rows of the same kind folded."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

from headwater.records.step import RunEvent

__all__ = ["fold_events", "loss_scale_text"]

_SCALES = re.compile(r"from (\S+) to (\S+)$")
_POWERS = {f"{2.0**k:g}": k for k in range(7, 128)}  # as a message of an event writes a loss scale


def loss_scale_text(value: float) -> str:
    """A loss scale: scalers use powers of two, which are easier to read as such.

    Args:
        value: above zero.

    Returns:
        Such as ``2^16``; a power of two below 128, and what is none, as a decimal number.

    Example:
        >>> loss_scale_text(16777216.0), loss_scale_text(64.0), loss_scale_text(1000.0)
        ('2^24', '64', '1000')
    """
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if mantissa == 0.5 and exponent > 7 else f"{value:.4g}"


def fold_events(events: Iterable[RunEvent]) -> tuple[RunEvent, ...]:
    """Put events in the order of the steps and fold what a loss scaler says step after step.

    A run writes an event when it learns of it: that of a step on which numbers still have to come from the device may
    stand after that of a later one.

    Args:
        events: as they were written.

    Returns:
        Between one beginning of watching and the next ascending by step, events without a step after the one they
        followed. Steps that were skipped one after the other for the same reason are one event, and so is a loss scale
        that falls again and again meanwhile; the folded event has the first step.
    """
    parts: list[list[RunEvent]] = [[]]
    for event in events:
        if event.kind in ("attached", "resumed"):
            parts.append([])
        parts[-1].append(event)
    return tuple(event for part in parts for event in _folded(_by_step(part)))


def _by_step(events: Sequence[RunEvent]) -> list[RunEvent]:
    keys: list[float] = []
    for event in events:
        keys.append(float(event.step) if event.step is not None else (keys[-1] if keys else -math.inf))
    return [events[i] for i in sorted(range(len(events)), key=lambda i: keys[i])]


def _folded(events: Sequence[RunEvent]) -> list[RunEvent]:
    told: list[list[RunEvent]] = []
    open_by_kind: dict[tuple[str, str], list[RunEvent]] = {}
    for event in events:
        key = event.kind, event.group
        known = open_by_kind.get(key)
        continues = {"skipped": _follows, "loss_scale": _falls_on}.get(event.kind)
        if continues is not None and known and continues(known[-1], event):
            known.append(event)
        else:
            told.append([event])
            open_by_kind[key] = told[-1]
        if event.kind not in ("skipped", "loss_scale"):
            open_by_kind.clear()
    return [_one(run) for run in told]


def _follows(before: RunEvent, event: RunEvent) -> bool:
    return (
        before.step is not None
        and event.step == before.step + 1
        and _reason(before) == _reason(event)
        and before.names == event.names
    )


def _reason(event: RunEvent) -> str:
    """What a message says of any step: without its number."""
    return event.message.removeprefix(f"step {event.step} was skipped").lstrip(": ")


def _falls_on(before: RunEvent, event: RunEvent) -> bool:
    first, second = _SCALES.search(before.message), _SCALES.search(event.message)
    return (
        first is not None
        and second is not None
        and first[2] == second[1]
        and _number(first[1]) > _number(first[2]) > _number(second[2])
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _one(run: Sequence[RunEvent]) -> RunEvent:
    first, last = run[0], run[-1]
    if first.kind == "loss_scale":
        ends = _SCALES.search(first.message), _SCALES.search(last.message)
        if ends[0] is None or ends[1] is None:
            return first
        beginning = first.message[: ends[0].start()]
        steps = "" if last.step == first.step else f", in {len(run)} falls up to step {last.step}"
        scales = f"from {_scale(ends[0][1])} to {_scale(ends[1][2])}"
        return dataclasses.replace(first, message=f"{beginning}{scales}{steps}")
    if len(run) == 1:
        return first
    return dataclasses.replace(first, message=f"steps {first.step}–{last.step} were skipped: {_reason(first)}")


def _scale(text: str) -> str:
    return f"2^{_POWERS[text]}" if text in _POWERS else text
