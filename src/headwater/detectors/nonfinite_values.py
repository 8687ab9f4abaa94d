"""NaN or infinity, and where it was made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, Profile, Severity, Verdict

__all__ = ["NonFiniteValues"]

GROWTH_DECADES = 3.0


@dataclass(frozen=True)
class NonFiniteValues:
    """A value is NaN or infinite.

    ## What it finds
    The first tensor with a NaN or an infinity, in the order it was computed: parameters, then activations forward, the
    loss, then gradients backward. What merely passes it on is listed as such.

    ## Why it matters
    One NaN in one gradient becomes NaN in every parameter after the next clipping or optimizer step.

    ## Evidence and threshold
    A count above zero.

    ## Known false alarms
    A masked loss whose unused entries are infinite on purpose: mask before the arithmetic, not after it.

    ## What to try
    At the place named: no division by zero, no logarithm or root of a number that can be 0 or negative (in the branch of
    a ``where`` that is not selected either), the fused loss (``cross_entropy``, ``binary_cross_entropy_with_logits``).

    ## References
    PyTorch issues 2421 and 68425 (the gradient of sqrt at 0; where and the branch not taken).
    """

    code: ClassVar[str] = "HW301"

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        values = [q.name for q in profile.parameters if q.value.nonfinite_count]
        forward = [r for r in profile.layers if r.activation.nonfinite_count]
        backward = [r for r in reversed(profile.layers) if r.gradient is not None and r.gradient.nonfinite_count]
        parameters = [q for q in profile.parameters if q.state == "nonfinite"]
        # A training run whose loop did not give the loss holds NaN in its place, which says nothing.
        loss_bad = profile.loss_source != "unrecorded" and not math.isfinite(profile.loss)
        if not (values or forward or backward or parameters or loss_bad):
            return
        masks = not (values or backward or parameters or loss_bad) and not any(r.activation.nan_count for r in forward)
        if profile.nonfinite_inputs:
            (place, bad), *_ = profile.nonfinite_inputs.items()
            producer = (forward or backward or profile.layers)[0].name if profile.layers else place
            cause = f"The data: {place} holds {bad} NaN or infinite elements, and {producer} takes them in."
        elif values:
            producer, cause = values[0], f"The parameter {values[0]} itself holds NaN or infinity."
        elif forward:
            producer = forward[0].name
            cause = (
                f"The output of {producer} ({forward[0].type}) is the first that is not finite: "
                f"{forward[0].activation.nan_count} NaN, {forward[0].activation.inf_count} infinite of "
                f"{forward[0].activation.count} elements, from finite inputs."
            )
        elif loss_bad:
            producer = profile.trunk[-1].operation if profile.trunk else "the loss"
            last = profile.layers[-1].name if profile.layers else "the model"
            cause = (
                f"Every activation is finite and the loss is {profile.loss}: it is made between {last} and the loss."
            )
        else:
            producer, cause = _backward_producer(profile)
        spread = [r.name for r in forward[1:]] + [r.name for r in backward if r.name != producer]
        where = [producer, *(r.name for r in backward), *(q.name for q in parameters)]
        if loss_bad and not (forward or values):
            where = [profile.layers[-1].name] if profile.layers else []
            where += [q.name for q in parameters] or [r.name for r in profile.layers if r.parameters]
        yield Finding(
            code=self.code,
            defect="NaN or infinity",
            # Infinities that neither the loss nor any gradient feels are a mask.
            severity=Severity.INFO if masks else Severity.CRITICAL,
            verdict=None if masks else Verdict.EXPLODING if _overflows(profile) else Verdict.NAN,
            where=tuple(dict.fromkeys(where)),
            evidence=(
                Evidence("activations not finite", len(forward), "layers"),
                Evidence("gradients not finite", len(backward), "layers"),
                Evidence("parameter gradients not finite", len(parameters)),
            ),
            cause=cause + (f" {len(set(spread))} layers pass it on." if spread else ""),
            advice=(
                "Look at the operation named: a division, logarithm, root or power at its edge, or a number too large for "
                "the dtype; use the fused loss functions, add a small constant inside the root or logarithm, clamp before it."
            ),
        )


def _overflows(profile: Profile) -> bool:
    """Whether the first value that is not finite ends a growth of the forward signal along the trunk.

    Three decades of growth, the limit used for the gradient, say that the network multiplies what it is given; where
    that meets the range of the dtype, in the forward or in the backward of a saturated operation, is by the way.
    """
    if any(q.value.nonfinite_count for q in profile.parameters):
        return False
    finite = list(itertools.takewhile(lambda r: not r.activation.nonfinite_count, profile.trunk_layers))
    sizes = [r.activation.rms_log10 for r in finite if math.isfinite(r.activation.rms_log10)]
    return len(sizes) >= 2 and max(sizes) - sizes[0] >= GROWTH_DECADES


def _backward_producer(profile: Profile) -> tuple[str, str]:
    """The first gradient, from the loss, that is not finite; it was made by what consumed that tensor."""
    bad = next((p for p in reversed(profile.trunk) if p.gradient is not None and p.gradient.nonfinite_count), None)
    finite = next(
        (
            p
            for p in profile.trunk
            if p.gradient is not None and not p.gradient.nonfinite_count and bad and p.order > bad.order
        ),
        None,
    )
    row = next((r for r in reversed(profile.layers) if r.gradient is not None and r.gradient.nonfinite_count), None)
    if bad is not None:
        name = bad.layer or (row.name if row is not None else bad.operation)
        maker = f" by the backward of {finite.operation}" if finite is not None else ""
        return name, f"The forward is finite; ∂L/∂(output of {name}) is the first gradient that is not{maker}."
    if row is not None:
        return row.name, f"The forward is finite; ∂L/∂(output of {row.name}) is the first gradient that is not."
    name = next(q.name for q in profile.parameters if q.state == "nonfinite")
    return (
        name,
        f"Every activation and its gradient is finite; the gradient of {name} is not: it overflows in its own layer.",
    )
