"""The gradient grows layer by layer on its way to the first parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.detectors.depth import depth_course
from headwater.detectors.expectation import expectation
from headwater.detectors.vanishing_gradient import mechanism
from headwater.records import Evidence, Finding, Profile, Severity, Verdict, gradient_budget

__all__ = ["ExplodingGradient"]


@dataclass(frozen=True)
class ExplodingGradient:
    """The gradient explodes over depth.

    ## What it finds
    A growth of ‖∂L/∂h‖ between the head's input and the first parameters' output, along the trunk, that is large in
    all or fast per layer; or a gradient that overflows on the way while the loss and the activations are finite.

    ## Why it matters
    A learning rate that suits the last layers throws the first ones off; one step can end in NaN.

    ## Evidence and threshold
    As for the vanishing gradient, mirrored: ``total_decades``: 3 in all, or ``rate_decades``: 0.7 per layer over at
    least ``least_decades``: 1.75, beyond what finite width does by chance (else a warning); a warning from
    ``warning_decades``: 2 on. Chosen by us, before the labelled cases were scored. Pre-LN transformers and BatchNorm
    ResNets have moderately larger early gradients (measured: up to 1.5 decades over 9 blocks) and stay below.

    ## Known false alarms
    A very deep plain network with BatchNorm does explode (RMS × 1.21 per layer) and is reported although it may train
    with warm-up.

    ## What to try
    Scale the residual branches by 1/√L, normalise, lower the weights to the critical scale; clipping hides it.

    ## References
    Yang et al., *A mean field theory of batch normalization*, ICLR 2019.
    Zhang, Dauphin, Ma, *Fixup initialization*, ICLR 2019.
    Hanin, *Which neural net architectures give rise to exploding and vanishing gradients?*, NeurIPS 2018.
    """

    code: ClassVar[str] = "HW102"
    total_decades: float = 3.0
    rate_decades: float = 0.7
    least_decades: float = 1.75
    warning_decades: float = 2.0

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        course = depth_course(profile)
        growth = course.total_decades
        large = growth >= self.total_decades
        fast = growth >= self.least_decades and course.rate >= self.rate_decades and course.layers >= 2
        if not (large or fast or growth >= self.warning_decades):
            return
        certain = course.beyond_chance()
        cut = gradient_budget(profile).cut_at
        overflow = f" It overflows at {cut}." if cut is not None and growth > 0 else ""
        undecided = "" if certain else " One draw of a network this narrow leaves it undecided: measure with draws=10."
        slope = course.slope
        interval = f"; 95 % interval {slope.low:.2f}–{slope.high:.2f}" if slope is not None else ""
        grown = [name for name, total in zip(course.names, course.cumulative, strict=True) if total >= growth / 2]
        kinds = {step.kind for step in course.steps}
        expected, foreseen = expectation(course, forecast)
        yield Finding(
            code=self.code,
            defect="exploding gradient",
            severity=Severity.CRITICAL if certain and (large or fast) else Severity.WARNING,
            verdict=Verdict.EXPLODING,
            where=tuple(dict.fromkeys(grown)),
            evidence=(
                Evidence("change along the trunk", growth, "decades", f"limit +{self.total_decades:g}"),
                Evidence("change per layer", course.rate, "decades", f"limit +{self.rate_decades:g}"),
                Evidence("layers", course.layers),
                Evidence("by chance at this width", course.noise_decades, "decades", "one standard deviation"),
                *expected,
            ),
            cause=(
                f"The gradient grows {slope.value if slope is not None else course.rate:.2f} decades per layer over "
                f"{course.layers} layers ({growth:.1f} in all{interval}).{overflow} {mechanism(profile, course)}"
                f"{foreseen}{undecided}"
            ),
            advice=(
                "Scale every residual branch by 1/√(number of blocks), or start its last layer at zero, or put "
                "normalisation inside the blocks."
                if "residual" in kinds
                else "Lower the weights to the scale that keeps the gradient (He for ReLU: fan_in·E[w²] = 2), or normalise."
            ),
        )
