"""What the optimizer's steps do to the weights, during training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from headwater.detectors.over_time.moment import Moment
from headwater.detectors.over_time.protocol import Action, Memory
from headwater.records import Evidence, Finding, Severity
from headwater.records.step import WatchedTensor

__all__ = ["UpdateRatio"]


@dataclass(frozen=True)
class UpdateRatio:
    """Updates are as large as the weights, below rounding, or far off what they were.

    ## What it finds
    Weights that a step changes by more than ``largest`` of their norm, or by less than the rounding unit; and weights whose
    updates, relative to the other weights' of the same step, are decades off their own past.

    ## Why it matters
    A step as large as the weight throws away what it was; one below the rounding unit changes nothing; a change of
    decades against all others says that something happened to this weight.

    ## Evidence and threshold
    ‖Δw‖/‖w‖. ``largest`` = 0.5 and ``rounding`` = 6e-8 as HW501 (half a unit in the last place of float32). ``own_decades``
    = 2 off its own moving average (of the log10 ratio over the median weight's, weight ``memory_share`` = 1/16 per recorded
    step, after ``least_steps`` = 8; it stands still for as many steps while the weight is off, then follows), chosen by us,
    see benchmarks/alerts.py; comparing with the other weights cancels the learning rate's schedule. Three recorded steps in a
    row (``patience``). A weight that was zero when watching began has no ratio at first, and then 1, 1/2, 1/3 … under Adam:
    it is not judged as too large for ``least_steps`` recorded steps. Steps whose learning rate is below ``rate_share`` =
    0.01 of the largest so far, the end of a schedule, are not judged for rounding.

    ## Known false alarms
    Weights that start near zero, but not at it, with a large learning rate.

    ## What to try
    Another learning rate for these weights; float32 master weights where half precision rounds the step away.

    ## References
    Micikevicius et al., *Mixed precision training*, ICLR 2018 (updates lost to rounding in half precision).
    """

    code: ClassVar[str] = "HW607"
    needs_update: ClassVar[bool] = True
    per_place: ClassVar[bool] = True
    largest: float = 0.5
    rounding: float = 6e-8
    own_decades: float = 2.0
    memory_share: float = 0.0625
    least_steps: int = 8
    rate_share: float = 0.01
    patience: int = 3
    action: Action = "warn"

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding] | None:
        """Return at most one finding of each kind."""
        tensors, ratios = moment.updates
        rate = moment.record.learning_rate
        if not tensors or rate == 0:
            return None
        found: list[Finding] = []
        ordered = sorted(ratios)
        grown = self._grown_from_zero(tensors, memory)
        if ordered[-1] > math.log10(self.largest):
            found += self._large(tensors, ratios, grown)
        peak = memory["rate"] = max(rate or 0.0, memory.get("rate", 0.0))
        if ordered[0] < math.log10(self.rounding) and (rate is None or rate >= self.rate_share * peak):
            found += self._small(moment, tensors, ratios)
        middle = ordered[len(ordered) // 2]
        if len(ratios) >= 3 and middle > -math.inf:
            found += self._off(tensors, ratios, middle, memory)
        return found

    def _grown_from_zero(self, tensors: tuple[WatchedTensor, ...], memory: Memory) -> dict[str, int]:
        """Weights that had no ratio at first, as they were zero, and for how many recorded steps they are left alone."""
        grown: dict[str, int] = memory.setdefault("grown", {})
        for name in list(grown):
            grown[name] -= 1
            if grown[name] <= 0:
                del grown[name]
        if memory.get("count") != len(tensors):
            names = [t.name for t in tensors]
            known = set(memory.get("names", names))
            grown.update({name: self.least_steps for name in names if name not in known})
            memory.update(names=names, count=len(tensors))
        return grown

    def _large(self, tensors: tuple[WatchedTensor, ...], ratios: list[float], grown: dict[str, int]) -> list[Finding]:
        limit = math.log10(self.largest)
        rows = [(t.name, r) for t, r in zip(tensors, ratios, strict=True) if r > limit and t.name not in grown]
        if not rows:
            return []
        name, size = max(rows, key=lambda row: row[1])
        ratio = 10.0 ** min(size, 300.0)
        return [
            Finding(
                code=self.code,
                defect="updates as large as the weights",
                severity=Severity.WARNING,
                where=tuple(row[0] for row in rows),
                evidence=(
                    Evidence("‖Δw‖/‖w‖", ratio, "", f"of {name}; limit {self.largest:g}"),
                    Evidence("weights", len(rows), "", f"of {len(tensors)}"),
                ),
                cause=f"One step changes {name} by {ratio:.2g} of its norm, recorded step after recorded step.",
                advice="Lower the learning rate for these weights; look at the gradient's scale first.",
            )
        ]

    def _small(self, moment: Moment, tensors: tuple[WatchedTensor, ...], ratios: list[float]) -> list[Finding]:
        gradients = moment.gradients
        fed = (
            {}
            if gradients is None
            else {t.name: s > -math.inf for t, s in zip(gradients.tensors, gradients.l2_log10, strict=True)}
        )
        # A weight without a gradient does not move, and that is no matter of rounding.
        rows = [
            (t, r)
            for t, r in zip(tensors, ratios, strict=True)
            if r < math.log10(self.rounding) and fed.get(t.name, False)
        ]
        if not rows:
            return []
        tensor, size = min(rows, key=lambda row: row[1])
        ratio = 10.0 ** max(size, -300.0) if size > -math.inf else 0.0
        return [
            Finding(
                code=self.code,
                defect="updates below rounding",
                severity=Severity.WARNING,
                where=tuple(t.name for t, _ in rows),
                evidence=(
                    Evidence("‖Δw‖/‖w‖", ratio, "", f"of {tensor.name} ({tensor.dtype}); limit {self.rounding:g}"),
                    Evidence("weights", len(rows), "", f"of {len(tensors)}"),
                ),
                cause=f"{tensor.name} gets a gradient and one step changes it by {ratio:.2g} of its norm: rounding undoes that.",
                advice="Raise the learning rate, or keep float32 master weights; look at the gradient's scale first.",
            )
        ]

    def _off(
        self, tensors: tuple[WatchedTensor, ...], ratios: list[float], middle: float, memory: Memory
    ) -> list[Finding]:
        past: dict[str, list[float]] = memory.setdefault(
            "past", {}
        )  # name -> [moving average, steps in it, steps off it]
        rows: list[tuple[str, float]] = []
        share, least, limit = self.memory_share, self.least_steps, self.own_decades
        for tensor, ratio in zip(tensors, ratios, strict=True):
            if ratio == -math.inf:
                continue
            level = ratio - middle
            entry = past.get(tensor.name)
            if entry is None:
                past[tensor.name] = [level, 1, 0]
                continue
            off = level - entry[0]
            if (off >= limit or -off >= limit) and entry[1] >= least:
                rows.append((tensor.name, off))
                entry[2] += 1
                if entry[2] <= least:
                    continue
            else:
                entry[2] = 0
            entry[1] += 1
            entry[0] += off * max(share, 1.0 / entry[1])  # a plain mean first, then a moving one
        if not rows:
            return []
        name, off = max(rows, key=lambda row: abs(row[1]))
        return [
            Finding(
                code=self.code,
                defect="update far off its own past",
                severity=Severity.WARNING,
                where=tuple(row[0] for row in rows),
                evidence=(
                    Evidence(
                        "off its own past", off, "decades", f"of {name}; limit ±{limit:g}, against the median weight"
                    ),
                    Evidence("weights", len(rows), "", f"of {len(tensors)}"),
                ),
                cause=(
                    f"Beside the other weights' the updates of {name} are {abs(off):.1f} decades "
                    f"{'above' if off > 0 else 'below'} what they were."
                ),
                advice="Look at what happened to this weight: its own learning rate, a branch that opened or closed, a spike.",
            )
        ]
