"""Where the gradient goes: its change along the trunk, split exactly among what it passes through."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headwater.records.displayed_kinds import KIND_WORDS
from headwater.records.profile import Profile, TrunkKind, TrunkPoint

__all__ = ["Budget", "BudgetStep", "WeightShare", "gradient_budget"]


@dataclass(frozen=True, slots=True)
class BudgetStep:
    """One step of the gradient from the loss towards the input.

    Attributes:
        name: the layer whose operation the gradient passed through.
        kind: what that operation is.
        decades: change of log10 rms(∂L/∂h) in the direction of the backward pass: negative where it shrinks.
        norm_decades: change of log10 ‖∂L/∂h‖, which a change of width or resolution alone does not move.
    """

    name: str
    kind: TrunkKind
    decades: float
    norm_decades: float

    def __iter__(self) -> Iterator[Any]:
        """Name, kind and decades, so that ``for name, kind, decades in budget.steps`` reads well."""
        return iter((self.name, self.kind, self.decades))


@dataclass(frozen=True, slots=True)
class WeightShare:
    """What makes up the gradient of one weight: log10 rms(∂L/∂W) = activation + gradient + alignment.

    Attributes:
        name: of the parameter.
        weight_gradient_log10: log10 rms(∂L/∂W).
        activation_log10: log10 rms of what enters the layer.
        gradient_log10: log10 rms(∂L/∂output).
        alignment_log10: the rest: how the samples and positions add up. About log10 √N for N independent ones, log10 N
            when they agree.
    """

    name: str
    weight_gradient_log10: float
    activation_log10: float
    gradient_log10: float
    alignment_log10: float


@dataclass(frozen=True, slots=True)
class Budget:
    """The gradient budget along the trunk.

    Attributes:
        steps: from the loss (first) to the first parameters' output (last).
        weights: what makes up each weight's gradient, in execution order.
        cut_at: the layer at which the gradient is exactly zero or not finite, so that the account ends there; None
            when it reaches the first parameters.
    """

    steps: tuple[BudgetStep, ...]
    weights: tuple[WeightShare, ...] = ()
    cut_at: str | None = None

    @property
    def total_decades(self) -> float:
        """The sum of all steps: log10 of rms(∂L/∂first) / rms at the loss."""
        return math.fsum(step.decades for step in self.steps)

    def by_kind(self) -> dict[str, float]:
        """Decades per kind, largest change first; they sum to ``total_decades``."""
        totals: dict[str, list[float]] = {}
        for step in self.steps:
            totals.setdefault(step.kind, []).append(step.decades)
        return dict(sorted(((k, math.fsum(v)) for k, v in totals.items()), key=lambda kv: -abs(kv[1])))

    def sentence(self) -> str:
        """The budget in one sentence."""
        if not self.steps:
            return "No gradient travels along the trunk."
        parts = ", ".join(f"{KIND_WORDS.get(k, k)} {v:+.2f}" for k, v in self.by_kind().items() if abs(v) >= 0.005)
        return f"From the loss to the first layer the gradient changes by {self.total_decades:+.2f} decades: {parts}."


def _usable(point: TrunkPoint) -> bool:
    g = point.gradient
    return g is not None and g.nonfinite_count == 0 and math.isfinite(g.rms_log10)


def gradient_budget(profile: Profile) -> Budget:
    """Account for the gradient of a profile.

    The trunk's points are the only tensors through which the gradient can pass, so the change between neighbours is
    what lies between them, and the changes telescope: their sum is the whole, exactly.

    Args:
        profile: the profile.

    Returns:
        The budget; without steps where no gradient travels.
    """
    seen = [p for p in profile.trunk if p.gradient is not None]
    usable: list[TrunkPoint] = []
    cut: str | None = None
    for point in reversed(seen):  # from the loss, until the gradient is lost
        if not _usable(point):
            cut = point.layer or point.operation
            break
        usable.append(point)
    steps = []
    for upper, lower in itertools.pairwise(usable):
        assert upper.gradient is not None
        assert lower.gradient is not None
        width = 0.5 * (math.log10(lower.gradient.count) - math.log10(upper.gradient.count))
        change = lower.gradient.rms_log10 - upper.gradient.rms_log10
        steps.append(BudgetStep(lower.next_layer or "loss", lower.kind, change, change + width))
    return Budget(tuple(steps), tuple(_weight_shares(profile)), cut)


def _weight_shares(profile: Profile) -> list[WeightShare]:
    layers = {layer.name: layer for layer in profile.layers}
    shares = []
    for row in profile.parameters:
        layer = layers.get(row.layer or "")
        if row.role not in ("weight", "attention") or row.gradient is None or layer is None or layer.gradient is None:
            continue
        logs = (row.gradient.rms_log10, layer.input_rms_log10, layer.gradient.rms_log10)
        if any(v is None or not math.isfinite(v) for v in logs):
            continue
        weight, activation, gradient = (float(v) for v in logs if v is not None)
        shares.append(WeightShare(row.name, weight, activation, gradient, weight - activation - gradient))
    return shares
