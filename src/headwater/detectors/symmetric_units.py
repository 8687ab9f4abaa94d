"""Units of one layer that are copies of one another, and stay so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, ParameterProfile, Profile, Severity, Verdict

__all__ = ["SymmetricUnits"]


@dataclass(frozen=True)
class SymmetricUnits:
    """Units are copies of one another.

    ## What it finds
    Weights whose output units (rows) equal an earlier row bit for bit and receive the same gradient.

    ## Why it matters
    Equal weights with equal gradients stay equal for ever: the layer has as many units as it has different ones.

    ## Evidence and threshold
    ``fraction``: at least half of the rows are copies, and still are after a few steps on a copy of the model. Bitwise
    equality is no threshold; one half leaves room for a few deliberate copies. A layer whose gradient is exactly zero
    is not counted: equal rows of zeros say nothing.

    ## Known false alarms
    Weights repeated on purpose (averaging kernels, up-sampling filters); freeze them and they are not counted.

    ## What to try
    Draw the weights at random; a constant is right for biases and normalisation only.

    ## References
    Goodfellow, Bengio, Courville, *Deep Learning*, MIT Press 2016, on breaking symmetry by initialisation.
    """

    code: ClassVar[str] = "HW203"
    fraction: float = 0.5

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        later = {} if profile.second_look is None else {q.name: q for q in profile.second_look.parameters}
        rows = [q for q in profile.parameters if self._copies(q) and self._still(later.get(q.name, q))]
        # Zeros that got a gradient only later (the layer above was zero as well) show their twins then.
        rows += [
            q
            for q in profile.parameters
            if q.state == "exact_zero" and q.name in later and self._copies(later[q.name]) and q not in rows
        ]
        if not rows:
            return
        now = [later.get(q.name, q) for q in rows]
        worst = max(now, key=lambda q: q.duplicate_units or 0)
        count = worst.duplicate_units or 0
        units = _units(worst)
        steps = (
            "" if profile.second_look is None else f" After {profile.second_look.steps} steps on a copy they still are."
        )
        yield Finding(
            code=self.code,
            defect="symmetric units",
            severity=Severity.CRITICAL,
            verdict=Verdict.SYMMETRIC,
            where=tuple(q.name for q in rows),
            evidence=(Evidence("copies", count, "units", f"of {units}; limit {self.fraction:g} of them"),),
            cause=f"{count} of the {units} units of {worst.name} equal another one bit for bit, and so do their gradients.{steps}",
            advice="Draw the weights at random (He or Xavier); constants are for biases and normalisation.",
        )

    def _copies(self, row: ParameterProfile) -> bool:
        return (
            row.state not in ("frozen", "none", "exact_zero", "nonfinite")
            and row.role in ("weight", "recurrent")
            and self._still(row)
        )

    def _still(self, row: ParameterProfile) -> bool:
        """Whether the rows are copies, also where nothing moves them any more: twins that died are twins."""
        units = _units(row)
        return units >= 2 and (row.duplicate_units or 0) >= self.fraction * units


def _units(row: ParameterProfile) -> int:
    return row.shape[0] if row.shape else 0
