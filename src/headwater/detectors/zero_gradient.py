"""Weights whose gradient is exactly zero, or that are cut off from the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, ParameterProfile, Profile, Severity, Verdict

__all__ = ["ZeroGradient"]

_TRAINED_ROLES = ("weight", "attention", "recurrent", "embedding", "other")


@dataclass(frozen=True)
class ZeroGradient:
    """A trainable parameter gets no gradient.

    ## What it finds
    Weights whose gradient is exactly zero and stays so over a few steps on a copy; and parameters without any gradient
    whose value nevertheless moves the loss (a branch that is detached, rounded, or computed under ``no_grad``).

    ## Why it matters
    They never learn, and nothing says so: the loss still falls, because the rest learns around them.

    ## Evidence and threshold
    Exact zeros; after the steps also what lies ``rounding_decades`` = 6.9 (float32's rounding unit) below the largest
    gradient of the same role. Told apart are: transient (ReZero, a zero-initialised head or residual branch, LoRA's A:
    zero at step 0, not after a step; information only), unused (no gradient and the loss does not move when the value
    is changed; information only), cut off (no gradient although the loss moves) and dead by construction (zero now and
    after the steps).

    ## Known false alarms
    A weight that this batch does not use (a mask of zeros); pass a batch that does.

    ## What to try
    Remove the ``detach()`` or use a straight-through estimator where the function is a step; give one of two
    zero-initialised factors a random start.

    ## References
    Bengio, Léonard, Courville, *Estimating or propagating gradients through stochastic neurons*, 2013. Hu et al.,
    *LoRA*, 2021. Bachlechner et al., *ReZero*, 2020.
    """

    code: ClassVar[str] = "HW302"
    rounding_decades: float = 6.9

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield one finding for what is lost, and one for what is only zero or unused for now."""
        look = profile.second_look
        after = {} if look is None else {q.name: q for q in look.parameters}
        moves = {} if look is None else look.influences
        zero = [q for q in profile.parameters if q.state == "exact_zero"]
        none = [q for q in profile.parameters if q.state == "none"]
        stay = [q for q in zero if q.name not in after or self._is_nothing(after[q.name], after.values())]
        transient = [q for q in zero if q not in stay]
        cut = [q for q in none if moves.get(q.name, False)]
        unused = [q for q in none if q not in cut]
        # A bias can be without effect by design (before a normalisation, a softmax): only what is meant to learn counts.
        lost = [q for q in stay if q.role in _TRAINED_ROLES] + cut
        if lost:
            yield self._lost(profile, lost, cut, moves)
        if transient:
            yield Finding(
                code=self.code,
                defect="zero gradient for now",
                severity=Severity.INFO,
                where=tuple(q.name for q in transient),
                evidence=(Evidence("parameters", len(transient)),),
                cause=(
                    f"{len(transient)} parameters get exactly zero at first and a gradient within "
                    f"{0 if look is None else look.steps} steps on a copy: what multiplies them starts at zero."
                ),
                advice="Nothing to do: this is how ReZero, zero-initialised branches and LoRA start.",
            )
        ran = {row.name for row in profile.layers}
        unchecked = [q for q in unused if look is None and q.layer in ran]
        if unused:
            told = f"The loss of this batch does not depend on {len(unused)} parameters (no gradient at all)."
            if unchecked:
                told = (
                    f"{len(unused)} parameters get no gradient at all. Layers of {len(unchecked)} of them ran; whether the "
                    "loss depends on them was not checked."
                )
            yield Finding(
                code=self.code,
                defect="unused parameters",
                severity=Severity.WARNING if unchecked else Severity.INFO,
                where=tuple(q.name for q in unused),
                evidence=(Evidence("parameters", len(unused)),),
                cause=told,
                advice="Expected for heads of other tasks and experts without a sample; else check that they are called.",
            )

    def _is_nothing(self, row: ParameterProfile, rows: Iterable[ParameterProfile]) -> bool:
        """Whether what a gradient is after the steps is nothing but rounding beside the others'."""
        if row.gradient is None or row.state == "exact_zero":
            return True
        sizes = [q.gradient.rms_log10 for q in rows if q.role == row.role and q.gradient is not None]
        largest = max((s for s in sizes if math.isfinite(s)), default=-math.inf)
        return row.gradient.rms_log10 < largest - self.rounding_decades

    def _lost(self, profile: Profile, lost: list[ParameterProfile], cut: list[ParameterProfile], moves: Any) -> Finding:
        look = profile.second_look
        steps = f" now and after {look.steps} steps on a copy" if look is not None and look.steps else ""
        moving = [q for q in lost if moves.get(q.name, False)]
        if moving:
            cause = (
                f"{moving[0].name} moves the loss when its value is changed, and its gradient is "
                f"{'None' if moving[0] in cut else 'exactly zero'}{steps}: between the two the gradient is cut (a detach, a "
                "step function such as sign or round, a saturated clamp, or a computation under no_grad)."
            )
        else:
            cause = (
                f"{len(lost)} of {profile.coverage.trainable} trainable parameters get exactly zero gradient{steps}, and the "
                "loss does not move with them: what multiplies them is zero, or the output is constant."
            )
        return Finding(
            code=self.code,
            defect="zero gradient",
            severity=Severity.CRITICAL if look is not None else Severity.WARNING,
            verdict=Verdict.ZERO_GRADIENT,
            where=tuple(q.name for q in lost),
            evidence=(
                Evidence("parameters with zero gradient", len(lost), "", f"of {profile.coverage.trainable} trainable"),
                Evidence("of them moving the loss", len(moving)),
            ),
            cause=cause,
            advice=(
                "Let the gradient through where the function is flat (a straight-through estimator), remove the detach, or "
                "start one of two zero factors at random values."
            ),
        )
