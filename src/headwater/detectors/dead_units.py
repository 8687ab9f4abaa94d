"""Units whose activation is off for every sample."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.detectors.neighbours import feeding_row
from headwater.records import Evidence, Finding, LayerProfile, Profile, Severity, Verdict

__all__ = ["DeadUnits"]


@dataclass(frozen=True)
class DeadUnits:
    """Units are dead: off for every sample of the batch.

    ## What it finds
    Activation layers, not bounded ones, in which more units than chance allows have |φ'| < 1e-3 of its largest value
    for every sample.

    ## Why it matters
    A unit that is off for every sample receives no gradient and, unless its inputs change, never will again.

    ## Evidence and threshold
    The fraction of dead units. With symmetric weights and zero bias a unit is off for one sample with probability 1/2;
    if all samples look alike that deep, for all of them. So up to one half is what healthy initialisation gives;
    reported is a fraction that exceeds 1/2 by ``z`` = 3 standard deviations of a fair coin, √(1/4N), or a layer dead
    altogether with at least ``coins`` = 10 coins (2⁻¹⁰: units, times the samples where at least ``apart`` = 0.1 of the
    signal tells them apart), and stays so after a few steps on a copy. A warning from ``warning_fraction`` = 0.5 on.

    ## Known false alarms
    A batch that covers a small part of the data: pass a larger one.

    ## What to try
    A lower learning rate, zero or slightly positive biases, standardised inputs, LeakyReLU or GELU.

    ## References
    Lu et al., *Dying ReLU and initialization*, 2019.
    """

    code: ClassVar[str] = "HW201"
    z: float = 3.0
    warning_fraction: float = 0.5
    coins: int = 10
    apart: float = 0.1

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        # Where no gradient passes (an activation on the input itself) none can be lost.
        found = [
            (r, r.dead_fraction)
            for r in profile.layers
            if r.saturated_fraction is None and r.dead_fraction is not None and r.gradient is not None
        ]
        # Where exactly zero enters, the weights before it are zero: nothing is off, nothing was ever on.
        suspicious = [(r, f) for r, f in found if f > self.warning_fraction and not _enters_zero(profile, r)]
        if not suspicious:
            return
        certain = [(r, f) for r, f in suspicious if self._beyond_chance(profile, r, f)]
        later = profile.second_look
        note = ""
        if certain and later is not None:
            still = {r.name: r.dead_fraction for r in later.layers if r.dead_fraction is not None}
            certain = [(r, f) for r, f in certain if still.get(r.name, f) > self.warning_fraction]
            note = f" After {later.steps} steps on a copy they still are."
        # What stands behind a dead layer sees a constant: it is off as well, whatever chance would say of it alone.
        rows = [rf for rf in suspicious if rf in certain or (certain and rf[1] == 1.0)] or suspicious
        worst, fraction = max(rows, key=lambda rf: rf[1])
        dead = round(fraction * (worst.unit_count or 0))
        yield Finding(
            code=self.code,
            defect="dead units",
            severity=Severity.CRITICAL if certain else Severity.WARNING,
            verdict=Verdict.DEAD_UNITS,
            where=tuple(r.name for r, _ in rows),
            evidence=(
                Evidence("dead fraction", fraction, "", "chance gives at most 0.5"),
                Evidence("units", worst.unit_count or 0),
            ),
            cause=(
                f"In {worst.name} {dead} of {worst.unit_count} units are off for all {_samples(profile, worst)} "
                f"samples{_why(profile, worst)}.{note}"
            ),
            advice=(
                "Lower the learning rate that brought them there, or restart these units with zero bias on standardised "
                "inputs; LeakyReLU or GELU keep a slope on the other side."
            ),
        )

    def _beyond_chance(self, profile: Profile, row: LayerProfile, fraction: float) -> bool:
        """Whether fair coins, one per unit, would hardly ever give this fraction of dead units.

        A layer that is dead altogether is beyond chance too when units times different samples make at least
        ``coins`` coins: few units, but samples that differ enough to have tried them often.
        """
        units = max(1, row.unit_count or 1)
        if fraction - 0.5 > self.z * math.sqrt(0.25 / units):
            return True
        before = feeding_row(profile, row)
        apart = before is not None and (before.between_sample_fraction or 0.0) > self.apart
        return fraction == 1.0 and units * (_samples(profile, row) if apart else 1) >= self.coins


def _enters_zero(profile: Profile, row: LayerProfile) -> bool:
    before = feeding_row(profile, row)
    return before is not None and before.activation.count == before.activation.zero_count


def _samples(profile: Profile, row: LayerProfile) -> int:
    return row.shape[0] if row.shape else profile.batch_size or 0


def _why(profile: Profile, row: LayerProfile) -> str:
    """What the layer before it sends: a negative mean far from its spread is a bias, not chance."""
    before = feeding_row(profile, row)
    if before is None or not before.activation.finite_count:
        return ""
    return f": what enters has mean {before.activation.mean:.3g} and standard deviation {before.activation.std:.3g}"
