"""Weights that stop learning while the others go on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from headwater.detectors.over_time.moment import WEIGHT_ROLES, Moment, written
from headwater.detectors.over_time.protocol import Action, Memory
from headwater.records import Evidence, Finding, Severity, Verdict
from headwater.records.step import StepRecord

__all__ = ["StalledLayer"]


@dataclass(frozen=True)
class StalledLayer:
    """A weight stops learning while the others go on.

    ## What it finds
    Weights whose gradient is exactly zero at several recorded steps in a row while others get one; and weights whose
    updates ‖Δw‖/‖w‖ (or gradient rms, where updates are not recorded) lie decades below the best-fed quarter of the weights.
    Also all parameters together, where none has had a gradient since watching began and the loss is not 0. A weight that gets
    zero only at the first steps (LoRA's A, zero-initialised branches) is named as such, for information.

    ## Why it matters
    The loss still falls, because the rest learns around it; nothing else says that a layer stays what it was.

    ## Evidence and threshold
    Exact zeros, ``first_steps`` = 3 recorded steps in a row when it has never had a gradient (with the default schedule
    steps 0, 1, 2: one step moves what multiplies it, a second allows for a warm-up that starts at learning rate 0; steps at
    learning rate 0 are not counted), ``later_steps`` = 8 in a row when it had one before. Below the upper quartile by
    ``decades`` = 4 at ``low_steps`` = 8 recorded steps in a row: HW104's limit for a warning and its quartile, here with
    what the optimizer made of it, and only while that quarter moves by more than ``moving`` = 6e-8 (HW501's rounding unit).
    Never against a fixed number: the loss times a constant changes nothing. The
    numbers of steps are chosen by us, see benchmarks/alerts.py.

    ## Known false alarms
    An expert or a head that gets no sample for so long; a weight that the optimizer is told to move more slowly by four
    decades. Frozen parameters and those without a gradient are not counted.

    ## What to try
    Look for a detach, a step function, dead units or two zero-initialised factors between it and the loss (``diagnose``
    says which); give the layer its own learning rate where only the scale is different.

    ## References
    Hu et al., *LoRA*, 2021 (B starts at zero). You et al., *Large batch training of convolutional networks*, 2017 (LARS:
    the ratio of update and weight per layer).
    """

    code: ClassVar[str] = "HW604"
    needs_update: ClassVar[bool] = True
    per_place: ClassVar[bool] = True
    decades: float = 4.0
    moving: float = 6e-8
    low_steps: int = 8
    first_steps: int = 3
    later_steps: int = 8
    patience: int = 1
    action: Action = "warn"

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding] | None:
        """Return at most one finding of each kind."""
        record = moment.record
        if record.skipped is not None or record.learning_rate == 0 or moment.gradient_is_nonfinite:
            return None
        if moment.gradients is None and not moment.updates[0]:
            return None  # such as a last step whose gradients are gone
        found = self._zeros(moment, memory)
        found += self._low(moment, memory, set(memory["zero"]))
        return found

    def _zeros(self, moment: Moment, memory: Memory) -> list[Finding]:
        # Of the weights at zero now: recorded steps in a row, and the first of them.
        zero: dict[str, list[int]] = memory.setdefault("zero", {})
        never: dict[str, int] = memory.setdefault("never", {})  # the same, since the first step it was seen at
        sizes = moment.gradients
        if sizes is None:
            return []
        if not zero and -math.inf not in sizes.l2_log10 and any(size > -math.inf for size in sizes.l2_log10):
            memory.update(looked=True, nothing=None)  # the usual step, at little cost
            return []
        now = {
            t.name
            for t, s in zip(sizes.tensors, sizes.l2_log10, strict=True)
            if s == -math.inf and t.role in WEIGHT_ROLES
        }
        # A head's bias is fed whatever the weights get: where every unit below it is dead, it alone still is.
        fed = sum(1 for size in sizes.l2_log10 if size > -math.inf)
        first_look = "looked" not in memory
        memory["looked"] = True
        if not fed:
            return self._nothing(moment, memory)
        memory["nothing"] = None  # from now on zeros everywhere may be a loss that has reached zero
        if not now and not zero:
            return []
        began = [name for name in never if name not in now]
        for name in [name for name in zero if name not in now]:
            del zero[name]
        for name in now:
            if first_look:
                never[name] = 0
            zero.setdefault(name, [0, moment.record.step])[0] += 1
        found = []
        late = [name for name in zero if name in never and zero[name][0] >= self.first_steps]
        lost = [name for name in zero if name not in never and zero[name][0] >= self.later_steps]
        order = {t.name: t.order for t in sizes.tensors}
        if late or lost:
            found.append(self._dead(sorted(late + lost, key=order.__getitem__), zero, bool(late), fed))
        woken = [name for name in began if never.pop(name) == 0]
        if woken:
            found.append(self._transient(moment.record, sorted(woken, key=lambda name: order.get(name, 0))))
        return found

    def _nothing(self, moment: Moment, memory: Memory) -> list[Finding]:
        """All gradients exactly zero ever since watching began, by a loss that is not."""
        sizes, record = moment.gradients, moment.record
        # Recorded steps in a row, and the first of them; None once anything has had a gradient.
        count: list[int] | None = memory.setdefault("nothing", [0, record.step])
        if count is None or sizes is None or not sizes.tensors or record.loss == 0:
            return []
        count[0] += 1
        if count[0] < self.first_steps:
            return []
        rows = tuple(t.name for t in sorted(sizes.tensors, key=lambda t: t.order))
        return [
            Finding(
                code=self.code,
                defect="no gradient at all",
                severity=Severity.CRITICAL,
                verdict=Verdict.ZERO_GRADIENT,
                where=rows,
                evidence=(
                    Evidence("parameters with zero gradient", len(rows)),
                    Evidence("recorded steps in a row", count[0], "", f"limit {self.first_steps}"),
                    Evidence("parameters with a gradient", 0),
                ),
                cause=f"The gradients of all {len(rows)} parameters that get one have been exactly zero since watching began: "
                "nothing is learnt.",
                advice=(
                    "Run headwater.diagnose on one batch: it says whether they are cut off (a detach, a step function) or "
                    "multiplied by zero (both factors of a LoRA adapter at zero, a head at zero under a zero branch)."
                ),
                step=count[1],
            )
        ]

    def _low(self, moment: Moment, memory: Memory, zero: set[str]) -> list[Finding]:
        tensors, sizes = moment.updates
        what = "updates"
        if not tensors and moment.gradients is not None and moment.record.block("update") is None:
            what = "gradient"
            every = moment.gradients
            kept = [(t, s) for t, s in zip(every.tensors, every.rms_log10(), strict=True) if t.role in WEIGHT_ROLES]
            tensors, sizes = tuple(t for t, _ in kept), [s for _, s in kept]
        low: dict[str, list[int]] = memory.setdefault("low", {})
        finite = sorted(size for size in sizes if math.isfinite(size))
        if len(finite) < 3:
            return []
        fed = finite[(3 * len(finite)) // 4]
        limit = fed - self.decades
        if what == "updates" and fed < math.log10(self.moving):
            return []  # nothing moves: one rounding error compared with another
        if finite[0] > limit and len(finite) == len(sizes):
            low.clear()
            return []
        now = {t.name: s for t, s in zip(tensors, sizes, strict=True) if s <= limit and t.name not in zero}
        for name in [name for name in low if name not in now]:
            del low[name]
        for name in now:
            low.setdefault(name, [0, moment.record.step])[0] += 1
        rows = [name for name in now if low[name][0] >= self.low_steps]
        if not rows:
            return []
        worst = min(rows, key=now.__getitem__)
        told = "‖Δw‖/‖w‖" if what == "updates" else "gradient (rms)"
        if now[worst] > -math.inf:
            below = fed - now[worst]
            amount = f"{below:.1f} decades below"
            evidence = Evidence("below the best-fed quarter", below, "decades", f"of {worst}; limit {self.decades:g}")
        else:
            amount = f"exactly zero, against {written(fed)} of"
            evidence = Evidence(told, 0.0, "", f"of {worst}; the best-fed quarter has {written(fed)}")
        return [
            Finding(
                code=self.code,
                defect="stalled layer",
                severity=Severity.WARNING,
                where=tuple(rows),
                evidence=(
                    evidence,
                    Evidence("recorded steps in a row", low[worst][0], "", f"limit {self.low_steps}"),
                ),
                cause=f"For {low[worst][0]} recorded steps the {told} of {worst} has been {amount} the best-fed weights'.",
                advice="Look at what stands between it and the loss; its own learning rate helps where only the scale differs.",
                step=min(low[name][1] for name in rows),
            )
        ]

    def _dead(self, rows: list[str], zero: dict[str, list[int]], never: bool, fed: int) -> Finding:
        longest = max(rows, key=lambda name: zero[name][0])
        since = "since watching began" if never else f"for {zero[longest][0]} recorded steps, after it had one"
        more = f", and {len(rows) - 1} more weights with it" if len(rows) > 1 else ""
        others = "one other parameter gets" if fed == 1 else f"{fed} other parameters get"
        return Finding(
            code=self.code,
            defect="no gradient at all",
            severity=Severity.CRITICAL,
            verdict=Verdict.ZERO_GRADIENT,
            where=tuple(rows),
            evidence=(
                Evidence("weights with zero gradient", len(rows)),
                Evidence(
                    "recorded steps in a row",
                    zero[longest][0],
                    "",
                    f"limit {self.first_steps if never else self.later_steps}",
                ),
                Evidence("parameters with a gradient", fed),
            ),
            cause=f"The gradient of {longest} has been exactly zero {since}{more}, while {others} one.",
            advice=(
                "Run headwater.diagnose on one batch: it says whether these weights are cut off (a detach, a step function) or "
                "multiplied by zero (two zero-initialised factors, dead units)."
            ),
            step=min(zero[name][1] for name in rows),
        )

    def _transient(self, record: StepRecord, rows: list[str]) -> Finding:
        return Finding(
            code=self.code,
            defect="zero gradient at first",
            severity=Severity.INFO,
            where=tuple(rows),
            evidence=(Evidence("weights", len(rows)),),
            cause=f"{len(rows)} weights got exactly zero at first and have a gradient at step {record.step}: what multiplies them "
            "started at zero.",
            advice="Nothing to do: this is how LoRA, ReZero and zero-initialised branches start.",
        )
