"""The detectors of a single diagnosis, on the steps of a run at which layers were looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from headwater.detectors import DEFAULT_DETECTORS, Detector
from headwater.detectors.over_time.moment import Moment
from headwater.detectors.over_time.protocol import Action, Memory
from headwater.detectors.root_cause import diagnosis_of
from headwater.records import Finding, LayerProfile, Profile, Severity, Verdict
from headwater.records.json_codec import decode, encode

__all__ = ["OnProfile"]

_GROWTH = (Verdict.EXPLODING, Verdict.EXPLODING_IN_TIME)

_HALF_OPEN = ("ReLU6", "Hardtanh", "Hardsigmoid", "Hardswish", "Threshold")
"""Activations that a standard normal input already puts on a flat part; a run does not record by how much."""


@dataclass(frozen=True)
class OnProfile:
    """A single diagnosis would not call this step healthy.

    ## What it finds
    What the detectors of ``headwater.diagnose`` find on the profile of a recorded step: the root cause only, under the code
    of the detector that found it (HW101 for a vanishing gradient), when it is critical; and an explosion that is only a
    warning, when it lasts.

    ## Why it matters
    A network that was sound at the start can lose its gradient later; and a network that never was is named within the first
    steps.

    ## Evidence and threshold
    Those of the detectors. ``patience`` = 3 looked-at steps in a row (chosen by us: a diagnosis takes three steps on a copy
    before it calls something permanent; here the run's own steps do that; with the default schedule steps 0, 1 and 2).
    A warning of a gradient that grows is passed on, as a warning, from ``lasting`` = 5 looked-at steps in a row on (chosen
    by us: with the default schedule step 8, so that the first steps had the chance to undo it), because no other alert
    measures growth over depth. One of a gradient that shrinks is not: sound deep networks start with it and learn it away
    within a few steps, and HW604 watches what stays behind.
    What a run does not record is not guessed: copies of units, positions of tokens, the course over time inside a
    recurrent layer, the loss' shapes, whether a zero gradient moves the loss (HW604 tells zeros that stay), whether an
    output's saturation is made up for by its loss, and how much a standard normal input saturates ReLU6 and its like.
    NaN is HW601's matter; what was found at the look before it still counts, so that a network that overflows within three
    steps is called exploding too.

    ## Known false alarms
    Those of the detectors.

    ## What to try
    What the finding says; ``headwater.diagnose`` and ``headwater.prescribe`` on one batch say more.

    ## References
    See each detector.
    """

    code: ClassVar[str] = "HW608"
    needs_profile: ClassVar[bool] = True
    names_root_cause: ClassVar[bool] = True
    detectors: Sequence[Detector] = DEFAULT_DETECTORS
    lasting: int = 5
    patience: int = 3
    action: Action = "warn"

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding] | None:
        """Return at most one finding; None where layers were not looked at."""
        profile = moment.profile
        if profile is None or not profile.layers or moment.record.skipped is not None:
            return None
        overflowed = any(q.value.nonfinite_count or q.state == "nonfinite" for q in profile.parameters) or any(
            row.activation.nonfinite_count or (row.gradient is not None and row.gradient.nonfinite_count)
            for row in profile.layers
        )
        silent = set() if overflowed else {"HW301"}
        if moment.record.loss_scale not in (1.0, None):
            silent.add("HW303")  # the gradient was kept in its dtype with the scale, and is recorded without it
        kept = [detector for detector in self.detectors if detector.code not in silent]
        diagnosis = diagnosis_of(_without_guesses(profile), kept)
        if diagnosis.verdict is Verdict.HEALTHY:
            memory.pop("last", None)
            return self._lasting(diagnosis.findings, moment.record.step, memory)
        memory.pop("growing", None)
        first = diagnosis.findings[0]
        if diagnosis.verdict is Verdict.NAN or first.code == "HW301":
            if "last" in memory:  # what was wrong at the look before did not get better by overflowing
                return [decode(Finding, memory["last"])]
            return None if diagnosis.verdict is Verdict.NAN else [first]
        memory["last"] = encode(first)
        return [first]

    def _lasting(self, findings: Sequence[Finding], step: int, memory: Memory) -> list[Finding]:
        """The first warning of an explosion, once it has lasted; the desk's patience is the last part of that."""
        growing = next((f for f in findings if f.severity is Severity.WARNING and f.verdict in _GROWTH), None)
        if growing is None:
            memory.pop("growing", None)
            return []
        looks = memory.setdefault("growing", [0, step])  # in a row, and the first of them
        looks[0] += 1
        return [replace(growing, step=looks[1])] if looks[0] > self.lasting - self.patience else []


def _without_guesses(profile: Profile) -> Profile:
    """The profile without saturated fractions that cannot be judged from a run."""
    last = max((row.order for row in profile.layers if row.parameters), default=-1)
    layers = tuple(replace(row, saturated_fraction=None) if _open(row, last) else row for row in profile.layers)
    return profile.replace(layers=layers, loss=profile.loss if math.isfinite(profile.loss) else math.nan)


def _open(row: LayerProfile, last_with_parameters: int) -> bool:
    """Whether a row's saturated fraction says nothing: an output (its loss may make up for it), or half open by nature."""
    if row.saturated_fraction is None:
        return False
    unknown = row.saturated_at_unit_normal is None and row.type in _HALF_OPEN
    return unknown or (row.on_trunk and row.order > last_with_parameters)
