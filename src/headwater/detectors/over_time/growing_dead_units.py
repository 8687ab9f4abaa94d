"""Units that die, or sit on a flat part, more and more as training goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from headwater.detectors.over_time.moment import Moment
from headwater.detectors.over_time.protocol import Action, Memory
from headwater.records import Evidence, Finding, Severity, Verdict

__all__ = ["GrowingDeadUnits"]


@dataclass(frozen=True)
class GrowingDeadUnits:
    """Units die or saturate as training goes on.

    ## What it finds
    Activation layers in which the share of dead units (flat slope for every sample of every looked-at step of a window), or
    of saturated elements of a bounded activation, has risen far above what it was.

    ## Why it matters
    A unit that is off for every sample gets no gradient and seldom comes back; a learning rate that kills a quarter of a
    layer goes on to kill the rest.

    ## Evidence and threshold
    Dead units: a rise of ``rise`` = 0.3 above the smallest share of an earlier window of as many looks or fewer (one of more
    looks can only find fewer; a window holds three looks, or fewer after the early ones have left it), that exceeds ``z`` =
    3 standard deviations of a binomial share. Saturated elements: the same rise, to more than ``saturated`` = 0.5 (HW202's
    limit); the last activation is left out, as an output that fits saturates. Critical, as dead units, from ``dead`` = 0.9
    on. All but z and HW202's limit chosen by us, see benchmarks/alerts.py. None depends on the scale of the loss.

    ## Known false alarms
    Gates that learn to be open or shut; a network far larger than its task, which can spare units.

    ## What to try
    A lower learning rate or a warm-up, a smaller bias step, LeakyReLU or GELU, normalisation before the activation.

    ## References
    Lu et al., *Dying ReLU and initialization*, 2019. Glorot and Bengio, AISTATS 2010 (saturation during training).
    """

    code: ClassVar[str] = "HW605"
    per_place: ClassVar[bool] = True
    rise: float = 0.3
    z: float = 3.0
    saturated: float = 0.5
    dead: float = 0.9
    patience: int = 2
    action: Action = "warn"

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding] | None:
        """Return at most one finding for dead units and one for saturated ones."""
        block = moment.record.block("units")
        if block is None or moment.record.skipped is not None or moment.gradient_is_nonfinite:
            return None  # the slope at NaN is no flat one
        last = max((t.order for t in block.tensors), default=0)
        dying: list[tuple[str, float, float, int]] = []
        filling: list[tuple[str, float, float, int]] = []
        known: dict[str, dict[str, float]] = memory.setdefault("least", {})  # name -> looks in the window -> share
        for tensor, row in zip(block.tensors, block.rows, strict=True):
            entry = dict(zip(block.columns, row, strict=True))
            units, window = entry.get("unit_count", math.nan), entry.get("window_steps", 1.0)
            if units > 0 and entry.get("dead_count", math.nan) >= 0:
                share = min(1.0, entry["dead_count"] / units)
                least = self._risen(known, f"dead {tensor.name}", share, window)
                noise = self.z * math.sqrt(max(least * (1 - least), share * (1 - share)) / units)
                if share - least >= max(self.rise, noise):
                    dying.append((tensor.name, share, least, int(units)))
            share = entry.get("saturated_fraction", math.nan)
            if share >= 0 and tensor.layer_kind == "activation" and tensor.order < last:
                least = self._risen(known, f"saturated {tensor.name}", share, 1.0)
                if share - least >= self.rise and share > self.saturated:
                    filling.append((tensor.name, share, least, 0))
        found = []
        if dying:
            name, share, least, units = max(dying, key=lambda row: row[1])
            found.append(
                Finding(
                    code=self.code,
                    defect="units die",
                    severity=Severity.CRITICAL if share >= self.dead else Severity.WARNING,
                    verdict=Verdict.DEAD_UNITS,
                    where=tuple(row[0] for row in dying),
                    evidence=(
                        Evidence("dead fraction", share, "", f"of {units} units in {name}"),
                        Evidence("rise", share - least, "", f"limit {self.rise:g}"),
                    ),
                    cause=f"In {name} {share:.0%} of {units} units are off for every sample looked at; it was {least:.0%}.",
                    advice="Lower the learning rate or warm up; LeakyReLU, GELU or normalisation keep a slope on the other side.",
                )
            )
        if filling:
            name, share, least, _ = max(filling, key=lambda row: row[1])
            found.append(
                Finding(
                    code=self.code,
                    defect="activation saturates",
                    severity=Severity.WARNING,
                    verdict=Verdict.SATURATED,
                    where=tuple(row[0] for row in filling),
                    evidence=(
                        Evidence("saturated fraction", share, "", f"of {name}; limit {self.saturated:g}"),
                        Evidence("rise", share - least, "", f"limit {self.rise:g}"),
                    ),
                    cause=f"In {name} {share:.0%} of the elements are on the flat part; it was {least:.0%}.",
                    advice="Normalise before it, decay its weights, or lower the learning rate: what enters has grown too large.",
                )
            )
        return found

    def _risen(self, known: dict[str, dict[str, float]], key: str, share: float, window: float) -> float:
        """The smallest share of a window no longer than this one, this one included."""
        least = known.setdefault(key, {})
        length = str(int(window))
        least[length] = min(share, least.get(length, share))
        # A longer window finds fewer dead units: against one, the share of a shorter would seem to have risen.
        return min(smallest for looks, smallest in least.items() if int(looks) <= window)
