"""Gradients below the range of the dtype they are kept in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, Profile, Severity, Verdict

__all__ = ["Underflow"]

_SMALLEST_NORMAL_LOG10 = {"float16": -4.2147, "bfloat16": -37.93, "float32": -37.93, "float64": -307.65}


@dataclass(frozen=True)
class Underflow:
    """Gradients underflow in their own dtype.

    ## What it finds
    Weights whose gradient lies below the smallest normal number of its dtype, or became exactly zero on the way there;
    and half-precision gradients of which a large part was flushed to zero while the rest is near that limit.

    ## Why it matters
    Below 6.1e-5 float16 loses precision with every halving, and below 6e-8 everything is zero: the weight stops.

    ## Evidence and threshold
    State ``underflow`` (arithmetic), or ``zero_fraction`` = 0.5 of the elements zero with the largest below 100 times the
    smallest normal number (chosen by us). This one does depend on the scale of the loss: that is the cure.

    ## Known false alarms
    Embedding rows that the batch does not use (not counted).

    ## What to try
    A loss scale (``torch.amp.GradScaler``), bfloat16, or float32 for these layers.

    ## References
    Micikevicius et al., *Mixed precision training*, ICLR 2018.
    """

    code: ClassVar[str] = "HW303"
    zero_fraction: float = 0.5

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        rows = []
        for q in profile.parameters:
            if q.role == "embedding" or q.gradient is None:
                continue
            limit = _SMALLEST_NORMAL_LOG10.get(q.dtype, -37.93)
            largest = q.gradient.max_abs
            if not math.isfinite(largest):
                continue
            flushed = (
                q.dtype in ("float16", "bfloat16")
                and q.gradient.zero_fraction > self.zero_fraction
                and largest > 0
                and math.log10(largest) < limit + 2
            )
            if q.state == "underflow" or flushed:
                rows.append((q, limit))
        if not rows:
            return
        first, limit = rows[0]
        assert first.gradient is not None
        yield Finding(
            code=self.code,
            defect="gradient underflow",
            severity=Severity.CRITICAL,
            verdict=Verdict.VANISHING,
            where=tuple(q.name for q, _ in rows),
            evidence=(
                Evidence(
                    "largest gradient", first.gradient.max_abs, "", f"smallest normal {first.dtype} 1e{limit:.1f}"
                ),
                Evidence("exactly zero", first.gradient.zero_fraction, "fraction"),
            ),
            cause=(
                f"The gradient of {first.name} ({first.dtype}) reaches at most {first.gradient.max_abs:.2g}, where {first.dtype} "
                f"has no normal numbers below 1e{limit:.1f}; {first.gradient.zero_fraction:.0%} of it is exactly zero."
            ),
            advice="Scale the loss (GradScaler), or keep these layers in bfloat16 or float32.",
        )
