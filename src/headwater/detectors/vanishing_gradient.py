"""The gradient shrinks layer by layer on its way to the first parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.detectors.depth import DepthCourse, depth_course, shares
from headwater.detectors.expectation import expectation
from headwater.records import Evidence, Finding, LayerProfile, Profile, Severity, Verdict

__all__ = ["VanishingGradient", "mechanism"]


@dataclass(frozen=True)
class VanishingGradient:
    """The gradient vanishes over depth.

    ## What it finds
    A fall of ‖∂L/∂h‖ between the head's input and the first parameters' output, along the trunk, that is large in all
    or fast per layer.

    ## Why it matters
    The first layers receive an update that is smaller by the same factor. Plain SGD leaves them where they were; Adam
    rescales them, and then follows what is left of the signal under rounding.

    ## Evidence and threshold
    ``total_decades``: 3 decades in all, or ``rate_decades``: 0.7 decades per layer (a factor of 5) over at least
    ``least_decades``: 1.75; a warning from ``warning_decades``: 2 on. The sum must also exceed 2.58 standard deviations
    of what finite width does by chance (Hanin's law). Chosen by us before the labelled cases were scored: 3 decades is
    what separates one learning rate that suits the last layer from one that suits the first by more than the range
    people search; 0.7 is between a sigmoid at its best (0.60) and with torch's default initialisation (0.85). Change
    of the norm, not of the rms per element; the loss, pooling and the head's own weights are left out. None of it
    depends on the scale of the loss.

    ## Known false alarms
    A trunk that is meant to be frozen below some layer; a narrow network in one unlucky draw (then it says
    "undecided").

    ## What to try
    An initialisation that keeps the gradient for the activation at hand, another activation, a shortcut, normalisation.

    ## References
    Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010.
    Hanin, *Which neural net architectures give rise to exploding and vanishing gradients?*, NeurIPS 2018.
    """

    code: ClassVar[str] = "HW101"
    total_decades: float = 3.0
    rate_decades: float = 0.7
    least_decades: float = 1.75
    warning_decades: float = 2.0

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        course = depth_course(profile)
        fall = -course.total_decades
        if not course.steps or fall < self.least_decades:
            return
        fast = -course.rate >= self.rate_decades and course.layers >= 2
        large = fall >= self.total_decades
        if not (fast or large or fall >= self.warning_decades):
            return
        certain = course.beyond_chance()
        severity = Severity.CRITICAL if certain and (fast or large) else Severity.WARNING
        undecided = (
            ""
            if certain
            else f" A network this narrow moves by {course.noise_decades:.1f} decades (one standard deviation) by chance, "
            "so one draw leaves it undecided: measure with draws=10."
        )
        expected, foreseen = expectation(course, forecast)
        yield Finding(
            code=self.code,
            defect="vanishing gradient",
            severity=severity,
            verdict=Verdict.VANISHING,
            where=_lost_layers(course, self.least_decades / 2),
            evidence=(
                Evidence("change along the trunk", course.total_decades, "decades", f"limit -{self.total_decades:g}"),
                Evidence("change per layer", course.rate, "decades", f"limit -{self.rate_decades:g}"),
                Evidence("layers", course.layers),
                Evidence("by chance at this width", course.noise_decades, "decades", "one standard deviation"),
                *expected,
            ),
            cause=_fall_sentence(course) + " " + mechanism(profile, course) + foreseen + undecided,
            advice=_advice(profile, course),
        )


def _fall_sentence(course: DepthCourse) -> str:
    per_layer = course.slope.value if course.slope is not None else course.rate
    interval = (
        f"; 95 % interval {abs(course.slope.high):.2f}–{abs(course.slope.low):.2f}" if course.slope is not None else ""
    )
    return (
        f"The gradient falls {abs(per_layer):.2f} decades per layer over {course.layers} layers "
        f"({-course.total_decades:.1f} in all{interval})."
    )


def _lost_layers(course: DepthCourse, beyond: float) -> tuple[str, ...]:
    """The layers to which less than 10^-beyond of the gradient arrives, the first parameters always among them."""
    lost = [name for name, total in zip(course.names, course.cumulative, strict=True) if total <= -beyond]
    return tuple(dict.fromkeys(lost))


def mechanism(profile: Profile, course: DepthCourse) -> str:
    """Which operations the change comes from, each with its own number.

    Args:
        profile: the profile.
        course: the gradient's course over depth.

    Returns:
        One sentence.
    """
    parts = shares(course)
    layers = max(1, course.layers)
    told = []
    activations = [
        row for row in profile.layers if row.name in {s.name for s in course.steps if s.kind == "activation"}
    ]
    for kind, decades in parts.items():
        if abs(decades) < 0.05 * abs(course.total_decades):
            continue
        per_layer = f"{decades / layers:+.2f} per layer"
        if kind == "activation" and activations:
            told.append(f"{_activation_name(activations)} {per_layer} (mean squared slope {_slope(activations)})")
        elif kind == "weights":
            told.append(f"the weights {per_layer} ({_weight_variance(profile, course)})")
        else:
            told.append(f"{_WORDS.get(kind, kind)} {per_layer}")
    return f"Of it {', '.join(told)}." if told else ""


_WORDS = {
    "normalization": "normalisation",
    "residual": "the residual sums",
    "attention": "attention",
    "recurrent": "recurrence",
    "dropout": "dropout",
    "scale": "scaling",
    "branches": "parallel branches",
    "other": "other operations",
    "activation": "the activations",
}


def _activation_name(rows: list[LayerProfile]) -> str:
    kinds = sorted({row.type for row in rows})
    return "/".join(kinds[:2]) + "'s slope"


def _slope(rows: list[LayerProfile]) -> str:
    known = [row.slope_mean_square for row in rows if row.slope_mean_square is not None]
    return f"{math.fsum(known) / len(known):.3g}" if known else "unknown"


def _weight_variance(profile: Profile, course: DepthCourse) -> str:
    owners = {s.name for s in course.steps if s.kind == "weights"}
    values = [
        row.fan_in * row.value.rms * row.value.rms  # a power of a float raises where a product is inf
        for row in profile.parameters
        if row.layer in owners and row.role == "weight" and row.fan_in and math.isfinite(row.value.rms)
    ]
    if not values:
        return "variance unknown"
    return f"fan_in·E[w²] = {math.fsum(values) / len(values):.3g}"


def _advice(profile: Profile, course: DepthCourse) -> str:
    parts = shares(course)
    worst = min(parts, key=lambda k: parts[k])
    if worst == "activation":
        return (
            "Replace the activation by one whose slope stays near 1 (ReLU, GELU, SiLU, or tanh near 0), or initialise "
            "with the gain that undoes its slope; a shortcut or normalisation lets the gradient pass whatever the slope."
        )
    if worst == "weights":
        return (
            "Raise the weights to the scale that keeps the gradient for this activation (He for ReLU: fan_in·E[w²] = 2; "
            "Xavier for tanh), or add normalisation or a shortcut."
        )
    return "Let the gradient pass beside it: a shortcut around these layers, or normalisation inside them."
