"""What the numbers of a profile say, in figures and in one sentence each. No verdict: that is for detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headwater.records.profile import Profile, TimeProfile, TrunkPoint
from headwater.records.statistics import Statistics
from headwater.reports.notation import decades, factor, power, rms_text

__all__ = [
    "TimeSummary",
    "TrunkSummary",
    "most_telling",
    "read_profile",
    "read_time",
    "summarize_time",
    "summarize_trunk",
]

_FLAT_DECADES = 1.0  # below one decade over the whole trunk the sentence says "about as strong"; chosen by us


@dataclass(frozen=True, slots=True)
class _Point:
    label: str
    arrives_through: str
    gradient: Statistics
    weighted: bool


@dataclass(frozen=True, slots=True)
class TrunkSummary:
    """How the gradient's rms changes along the trunk, from the loss back to the first parameters.

    Attributes:
        first: the tensor nearest to the input.
        last: the network's output, the last tensor before the loss.
        first_log10: log10 of the gradient's rms there; -inf when it is exactly zero.
        last_log10: log10 of the gradient's rms there.
        decades: ``first_log10 - last_log10``: negative when the gradient shrinks on its way to the input.
        weight_layers: layers with weights between the two.
        steepest: the operation over which it changes most in the direction of the total, or an empty string.
        steepest_decades: by how much it changes there.
        lost_at: the first tensor on the way back whose gradient is exactly zero, or None.
        nonfinite_at: the first tensor on the way back whose gradient holds NaN or infinity, or None.
    """

    first: str
    last: str
    first_log10: float
    last_log10: float
    decades: float
    weight_layers: int
    steepest: str
    steepest_decades: float
    lost_at: str | None
    nonfinite_at: str | None

    @property
    def decades_per_layer(self) -> float | None:
        """``decades`` over the number of weight layers; None where that is not a finite number."""
        return self.decades / self.weight_layers if self.weight_layers and math.isfinite(self.decades) else None


def _points(profile: Profile) -> list[_Point]:
    """The trunk from the input side; the layer rows where no trunk was recorded."""
    seen = [p for p in profile.trunk if p.gradient is not None and p.gradient.count]
    # Past the network's own output come the loss and what it is made of: their gradients say nothing about depth.
    ends = [i for i, p in enumerate(seen) if p.layer not in (None, "(model)")]
    seen = seen[: ends[-1] + 1] if ends else [p for p in seen if not _is_loss(p)]
    points = [
        _Point(_label(p.layer, p), _label(p.next_layer, after), p.gradient, p.kind in ("weights", "recurrent"))
        for p, after in zip(seen, [*seen[1:], *seen[-1:]], strict=True)
        if p.gradient is not None
    ]
    if len(points) >= 2:
        return points
    rows = [row for row in profile.trunk_layers or profile.layers if row.gradient is not None]
    # The gradient reaches a row through the next row: it is the next one's weights that carry it.
    return [
        _Point(row.name, after.name, row.gradient, bool(after.parameters) and after is not row)
        for row, after in zip(rows, [*rows[1:], *rows[-1:]], strict=True)
        if row.gradient is not None
    ]


def _label(layer: str | None, point: TrunkPoint) -> str:
    if layer not in (None, "(model)"):
        return str(layer)
    return f"trunk {point.order}: {point.operation.removesuffix('0').removesuffix('Backward')}"


def _is_loss(point: TrunkPoint) -> bool:
    """Whether this tensor is the loss itself: a scalar with gradient 1."""
    return point.kind == "loss" and point.gradient is not None and point.gradient.count == 1


def summarize_trunk(profile: Profile) -> TrunkSummary | None:
    """Measure the trunk end to end.

    Args:
        profile: the record.

    Returns:
        The summary; None when fewer than two tensors of the trunk have a gradient.
    """
    points = _points(profile)
    if len(points) < 2:
        return None
    logs = [p.gradient.rms_log10 for p in points]
    total = logs[0] - logs[-1]
    # A step leads from points[i + 1] back to points[i].
    steps = [(logs[i] - logs[i + 1], points[i].arrives_through) for i in range(len(points) - 1)]
    steps = [(change, label) for change, label in steps if math.isfinite(change)]
    wanted = [s for s in steps if s[0] * total > 0] if math.isfinite(total) else [s for s in steps if s[0] < 0]
    change, label = max(wanted, key=lambda s: abs(s[0]), default=(0.0, ""))
    backwards = list(reversed(points))
    return TrunkSummary(
        first=points[0].label,
        last=points[-1].label,
        first_log10=logs[0],
        last_log10=logs[-1],
        decades=total,
        weight_layers=sum(p.weighted for p in points[:-1]),
        steepest=label,
        steepest_decades=change,
        lost_at=next((p.label for p in backwards if p.gradient.rms_log10 == -math.inf), None),
        nonfinite_at=next((p.label for p in backwards if p.gradient.nonfinite_count), None),
    )


def read_profile(profile: Profile) -> str:
    """Say in a sentence or two where the gradient goes.

    Args:
        profile: the record.

    Returns:
        Prose with layer names as code.
    """
    if not any(row.gradient is not None for row in profile.layers) and not profile.trunk:
        return "No gradient came back to any layer; the coverage says why."
    trunk = summarize_trunk(profile)
    if trunk is None:
        row = next((r for r in profile.layers if r.gradient is not None), None)
        if row is None:
            return "No gradient came back to any layer; the coverage says why."
        return f"One tensor has a gradient: `{row.name}`, rms {rms_text(row.gradient)}."
    if trunk.nonfinite_at is not None:
        return (
            f"On its way back the gradient first holds NaN or infinity at `{trunk.nonfinite_at}`; "
            "statistics are over the finite elements."
        )
    if trunk.last_log10 == -math.inf:
        return f"The gradient is exactly zero where it leaves the loss, at `{trunk.last}`: nothing learns."
    ends = f"from {power(trunk.last_log10)} at `{trunk.last}`"
    if trunk.lost_at is not None and trunk.first_log10 == -math.inf:
        return (
            f"No gradient reaches the first layer: going back {ends}, it is exactly zero from "
            f"`{trunk.lost_at}` down to `{trunk.first}`."
        )
    ends += f" to {power(trunk.first_log10)} at `{trunk.first}`"
    if abs(trunk.decades) < _FLAT_DECADES:
        change = decades(trunk.decades)
        return f"The gradient reaches the first layer about as strong as it started: rms {ends} ({change})."
    verb = "shrinks" if trunk.decades < 0 else "grows"
    rate = trunk.decades_per_layer
    per_layer = f", {factor(rate)} per weight layer" if rate is not None and trunk.weight_layers > 1 else ""
    steep = ""
    if trunk.steepest and trunk.weight_layers > 1:
        types = {row.name: f" ({row.type})" for row in profile.layers}
        where = f"`{trunk.steepest}`{types.get(trunk.steepest, '')}"
        steep = f" The largest single step is at {where}: {decades(trunk.steepest_decades)}."
    change = decades(abs(trunk.decades)).lstrip("+")
    return f"Towards the input the gradient {verb} by {change}, {ends}{per_layer}.{steep}"


def most_telling(times: Sequence[TimeProfile]) -> TimeProfile:
    """The gradient over time that changes most: of the hidden states where there are any.

    Args:
        times: at least one.

    Returns:
        One of them.
    """

    def change(time: TimeProfile) -> float:
        summary = summarize_time(time)
        return abs(summary.decades) if summary is not None and math.isfinite(summary.decades) else -1.0

    return max([t for t in times if t.state == "hidden"] or list(times), key=change)


@dataclass(frozen=True, slots=True)
class TimeSummary:
    """How the gradient's rms changes over time inside a recurrent layer.

    Attributes:
        first_step: the earliest step with a gradient.
        last_step: the latest step with a gradient.
        first_log10: log10 of the rms at the earliest step; -inf when it is exactly zero.
        last_log10: log10 of the rms at the latest step.
        values_log10: one value per step; NaN where there is none.
    """

    first_step: int
    last_step: int
    first_log10: float
    last_log10: float
    values_log10: tuple[float, ...]

    @property
    def decades(self) -> float:
        """``first_log10 - last_log10``: negative when early steps get less."""
        return self.first_log10 - self.last_log10


def summarize_time(time: TimeProfile) -> TimeSummary | None:
    """Measure one gradient over time end to end.

    Args:
        time: the record.

    Returns:
        The summary; None when no step has a gradient.
    """
    values = tuple(math.nan if s is None or not s.finite_count else s.rms_log10 for s in time.steps)
    seen = [t for t, v in enumerate(values) if not math.isnan(v)]
    if not seen:
        return None
    return TimeSummary(seen[0], seen[-1], values[seen[0]], values[seen[-1]], values)


def read_time(time: TimeProfile, *, labelled: bool = False) -> str:
    """Say in one sentence how the gradient changes over time.

    Args:
        time: the record.
        labelled: also say which of several stacked layers and directions it is.

    Returns:
        Prose with the layer's name as code.
    """
    summary = summarize_time(time)
    if summary is None:
        return f"No time step of `{time.layer}` has a gradient."
    where = f"`{time.layer}`" + (f" (layer {time.stack}{', reverse' if time.reverse else ''})" if labelled else "")
    at_last = f"{power(summary.last_log10)} at t = {summary.last_step}"
    if summary.first_log10 == -math.inf:
        return f"In {where} the gradient at the first step is exactly zero."
    if summary.last_log10 == -math.inf:
        return f"In {where} the gradient at the last step is exactly zero."
    return (
        f"In {where} the gradient goes from {at_last} to {power(summary.first_log10)} "
        f"at t = {summary.first_step} ({decades(summary.decades)} back through time)."
    )
