"""The course of the gradient over depth: what the depth detectors share."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from headwater.records import BudgetStep, LayerProfile, Profile, gradient_budget

__all__ = ["DepthCourse", "Slope", "depth_course", "depth_steps", "shares", "theil_sen"]

# Only these carry a trend over depth. Pooling, selecting a position and the loss change the gradient once, by design.
_DEPTH_KINDS = frozenset(
    {
        "weights",
        "activation",
        "normalization",
        "residual",
        "attention",
        "recurrent",
        "dropout",
        "scale",
        "branches",
        "other",
    }
)
_LAYER_KINDS = frozenset({"weights", "residual", "attention", "recurrent", "branches"})
HANIN = 5.0
"""Var ln|δ|² ≈ 5 Σ 1/n over He-initialised ReLU layers of width n (Hanin 2018; Hanin & Rolnick 2018)."""


@dataclass(frozen=True)
class Slope:
    """A robust slope: the median of the slopes between all pairs of points, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class DepthCourse:
    """The gradient on its way from the head's input to the first parameters.

    Attributes:
        steps: the budget's steps that count, loss side first.
        layers: how many layers (weights, residual blocks, attention) the way crosses.
        total_decades: change of log10 ‖∂L/∂h‖ over the way; negative where it shrinks.
        slope: decades per layer, by Theil and Sen; None with fewer than three layers.
        noise_decades: one standard deviation that finite width alone gives ``total_decades``.
        names: the layers on the way, nearest the input first.
        cumulative: change up to each of ``names``, in the same order.
    """

    steps: tuple[BudgetStep, ...]
    layers: int
    total_decades: float
    slope: Slope | None
    noise_decades: float
    names: tuple[str, ...]
    cumulative: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Decades per layer, on average."""
        return self.total_decades / self.layers if self.layers else 0.0

    def beyond_chance(self, z: float = 2.58) -> bool:
        """Whether the change exceeds what finite width gives by chance, at about 99 %."""
        return abs(self.total_decades) > z * self.noise_decades


def theil_sen(xs: Sequence[float], ys: Sequence[float], z: float = 1.96) -> Slope | None:
    """The Theil-Sen slope and its interval from Kendall's statistic.

    Args:
        xs: positions.
        ys: values at them.
        z: half-width of the interval in standard deviations; 1.96 for 95 %.

    Returns:
        The slope, or None for fewer than three distinct positions.

    References:
        Sen, *Estimates of the regression coefficient based on Kendall's tau*, JASA 1968.
    """
    # 200 points give 19,900 pairs: enough for three digits, and no wait at 1,000 layers.
    stride = max(1, len(xs) // 200)
    points = list(zip(xs[::stride], ys[::stride], strict=True))
    slopes = sorted((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in itertools.combinations(points, 2) if x2 != x1)
    n = len(points)
    if n < 3 or not slopes:
        return None
    half = z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, round((len(slopes) - half) / 2) - 1)
    high = min(len(slopes) - 1, round((len(slopes) + half) / 2))
    return Slope(statistics.median(slopes), slopes[low], slopes[high])


def _width(layer: LayerProfile) -> int:
    if layer.kind == "convolution" and len(layer.shape) > 2:
        return layer.shape[1]
    return layer.shape[-1] if layer.shape else 1


def depth_steps(steps: Sequence[BudgetStep]) -> list[BudgetStep]:
    """The steps of a budget that carry a trend over depth: below the head, without pooling, selection and the loss.

    Args:
        steps: of a budget, measured or forecast, loss side first.

    Returns:
        Those that count, in the same order.
    """
    head = next((i for i, step in enumerate(steps) if step.kind == "weights"), None)
    below = steps[head + 1 :] if head is not None else [s for s in steps if s.kind != "loss"]
    return [s for s in below if s.kind in _DEPTH_KINDS]


def depth_course(profile: Profile) -> DepthCourse:
    """How the gradient changes between the head's input and the first parameters.

    The change of the norm is used, not that of the rms per element: a change of width or resolution alone moves the
    second and not the first (a fan-in initialised layer keeps the norm whatever its widths). The head's own weights
    are left out: a small head scales every layer below it alike, and is often small by design.

    Args:
        profile: the profile.

    Returns:
        The course; of no layer when no gradient travels.
    """
    counted = depth_steps(gradient_budget(profile).steps)
    totals = list(itertools.accumulate(s.norm_decades for s in counted))
    # Parallel branches inside one layer are one layer, however many tensors lie between.
    ends = [
        s.kind in _LAYER_KINDS and not (s.kind == "branches" and i > 0 and _same_place(counted[i - 1], s))
        for i, s in enumerate(counted)
    ]
    positions = list(itertools.accumulate(map(float, ends)))
    layers = {layer.name: layer for layer in profile.layers}
    widths = [_width(layers[s.name]) for s in counted if s.kind == "weights" and s.name in layers]
    # Var of ln|δ| is a quarter of Var ln|δ|², and a decade is ln 10.
    noise = math.sqrt(HANIN * math.fsum(1 / max(1, w) for w in widths)) / (2 * math.log(10))
    first = next((p.layer for p in profile.trunk if p.gradient is not None), None)
    names = [s.name for s in counted]
    # A step's change is complete at the tensor *below* it, which the next step's layer (or the first point) made.
    reached = [*names[1:], first or (names[-1] if names else "")]
    return DepthCourse(
        steps=tuple(counted),
        # The last layer on the way is entered through its activation: a fall across it counts as a layer too.
        layers=max(int(positions[-1]) if positions else 0, sum(s.kind == "activation" for s in counted)),
        total_decades=totals[-1] if totals else 0.0,
        slope=theil_sen(positions, totals) if totals else None,
        noise_decades=noise,
        names=tuple(reversed(reached)) if counted else (),
        cumulative=tuple(reversed(totals)),
    )


def _same_place(a: BudgetStep, b: BudgetStep) -> bool:
    return (a.name, a.kind) == (b.name, b.kind)


def shares(course: DepthCourse) -> dict[str, float]:
    """Decades per kind of operation, largest change first."""
    totals: dict[str, float] = {}
    for step in course.steps:
        totals[step.kind] = totals.get(step.kind, 0.0) + step.norm_decades
    return dict(sorted(totals.items(), key=lambda kv: -abs(kv[1])))
