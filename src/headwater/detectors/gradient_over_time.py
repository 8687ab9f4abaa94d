"""The gradient inside a recurrent layer, from its last step back to its first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, Profile, Severity, TimeProfile, Verdict

__all__ = ["ExplodingInTime", "VanishingInTime"]


@dataclass(frozen=True)
class _Course:
    layer: str
    decades: float
    steps: int
    reverse: bool


def _courses(profile: Profile) -> list[_Course]:
    """Per recurrent layer and direction: log10 of what arrives at the step processed first, over the largest there is."""
    groups: dict[tuple[str, bool], list[TimeProfile]] = {}
    for time in profile.times:
        if time.state != "input":
            groups.setdefault((time.layer, time.reverse), []).append(time)
    courses = []
    for (layer, reverse), times in groups.items():
        # The stacked layer and the state (hidden, cell) through which most arrives decides.
        found = [c for t in times if (c := _decades(t)) is not None]
        if found:
            courses.append(_Course(layer, max(found), max(len(t.steps) for t in times), reverse))
    return courses


def _decades(time: TimeProfile) -> float | None:
    series = [None if s is None or s.nonfinite_count else s.rms_log10 for s in time.steps]
    ordered: Sequence[float | None] = series[::-1] if time.reverse else series
    known = [v for v in ordered if v is not None]
    if len(known) < 3:
        return None
    last = next((v for v in reversed(known) if math.isfinite(v)), None)
    if last is None:
        return None
    first, peak = known[0], max(v for v in known if math.isfinite(v))
    if first >= peak - 0.5:  # what arrives first is (nearly) the largest: growth is counted from the last step
        return first - last
    return (first if math.isfinite(first) else -math.inf) - peak


@dataclass(frozen=True)
class VanishingInTime:
    """The gradient vanishes over time.

    ## What it finds
    Recurrent layers in which ∂L/∂h at the step that is processed first is many decades below its largest value over
    the steps, in every state (hidden and cell) and every stacked layer.

    ## Why it matters
    The recurrent weights get the sum over all steps. What the early steps add below the rounding unit of that sum is
    lost exactly: the layer cannot learn what depends on them.

    ## Evidence and threshold
    ``decades``: 6.9, the rounding unit of float32 (arithmetic); a warning from ``warning_decades`` = 4 (chosen by us). With a
    loss at every step the course is flat and nothing is found.

    ## Known false alarms
    A task in which the early steps do not matter.

    ## What to try
    A larger forget-gate bias, orthogonal recurrent weights, gating (LSTM, GRU), a loss at more steps, attention; not
    shortcuts over depth.

    ## References
    Bengio, Simard, Frasconi, *Learning long-term dependencies with gradient descent is difficult*, 1994. Pascanu,
    Mikolov, Bengio, ICML 2013. Jozefowicz, Zaremba, Sutskever, ICML 2015 (forget bias).
    """

    code: ClassVar[str] = "HW401"
    decades: float = 6.9
    warning_decades: float = 4.0

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        found = [c for c in _courses(profile) if c.decades <= -self.warning_decades]
        if not found:
            return
        worst = min(found, key=lambda c: c.decades)
        per_step = worst.decades / max(1, worst.steps - 1)
        amount = f"{-worst.decades:.1f} decades" if math.isfinite(worst.decades) else "to exactly zero"
        factor = f" ({10**per_step:.2f} per step)" if math.isfinite(per_step) else ""
        yield Finding(
            code=self.code,
            defect="gradient vanishing over time",
            severity=Severity.CRITICAL if worst.decades <= -self.decades else Severity.WARNING,
            verdict=Verdict.VANISHING_IN_TIME,
            where=tuple(dict.fromkeys(c.layer for c in found)),
            evidence=(
                Evidence(
                    "first step over the largest", max(worst.decades, -400.0), "decades", f"limit -{self.decades:g}"
                ),
                Evidence("time steps", worst.steps),
            ),
            cause=f"In {worst.layer} ∂L/∂h falls {amount} over {worst.steps} steps{factor}.",
            advice=(
                "Raise the forget-gate bias (LSTM: 1 to 5), start the recurrent weights orthogonal, use a gated layer, or give "
                "the loss earlier steps; a shortcut over depth does not help here."
            ),
        )


@dataclass(frozen=True)
class ExplodingInTime:
    """The gradient explodes over time.

    ## What it finds
    Recurrent layers in which ∂L/∂h grows by many decades from the last step back to the first.

    ## Why it matters
    One long sequence dominates the update, and the next step can be NaN.

    ## Evidence and threshold
    ``decades``: 3 (chosen by us, the same as over depth).

    ## Known false alarms
    A loss that weighs the first steps more by design.

    ## What to try
    Clip the gradient's norm, start the recurrent weights orthogonal (spectral radius 1), shorten the sequences.

    ## References
    Pascanu, Mikolov, Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013.
    """

    code: ClassVar[str] = "HW402"
    decades: float = 3.0

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        found = [c for c in _courses(profile) if c.decades >= self.decades]
        if not found:
            return
        worst = max(found, key=lambda c: c.decades)
        yield Finding(
            code=self.code,
            defect="gradient exploding over time",
            severity=Severity.CRITICAL,
            verdict=Verdict.EXPLODING_IN_TIME,
            where=tuple(dict.fromkeys(c.layer for c in found)),
            evidence=(
                Evidence("first step over the last", worst.decades, "decades", f"limit +{self.decades:g}"),
                Evidence("time steps", worst.steps),
            ),
            cause=(
                f"In {worst.layer} ∂L/∂h grows {worst.decades:.1f} decades over {worst.steps} steps "
                f"({10 ** min(300.0, worst.decades / max(1, worst.steps - 1)):.3g} per step)."
            ),
            advice="Start the recurrent weights orthogonal, clip the gradient's norm, or shorten the sequences.",
        )
