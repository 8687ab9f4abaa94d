"""A recorded step whose gradient, update or loss stands far above the run's own past."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from headwater.detectors.over_time.moment import Moment, Sizes, log10_sum_of_squares, written
from headwater.detectors.over_time.protocol import Action, Memory
from headwater.detectors.over_time.robust import NORMAL_MAD, enter_window, mad, median, middle
from headwater.records import Evidence, Finding, Severity

__all__ = ["Spike"]

_NOTHING = -400.0  # log10 of a norm that is exactly zero, as a number JSON can hold; float64 ends near -324


@dataclass(frozen=True)
class Spike:
    """The gradient, the update or the loss jumps far above the run's own past.

    ## What it finds
    A recorded step at which the norm of the whole gradient (before clipping), the size of the relative updates per
    learning rate, or the loss lies far above its last values; and the parameters that grew most, first the one that adds
    most to the jump.

    ## Why it matters
    One such step can undo thousands; Adam remembers it in its second moment for hundreds of steps. Update spikes can come
    before those of gradient and loss.

    ## Evidence and threshold
    Robust z: (log10 value - median) / (1.4826 MAD) over the last ``window`` = 128 recorded steps (the window and the
    6 of ``z`` as in OLMo-core's stability monitor, there with mean and standard deviation, which one outlier inflates so
    that the next is missed), once ``least_steps`` = 16 are there. A MAD of few numbers is itself uncertain: with n steps
    the limit is 6 √(1 + 16 / n). The step must also lie ``decades`` = 0.5 (a factor of 3.2) above the median for gradients
    and updates, and ``loss_decades`` = 0.1 (26 %) for the loss: a run may be so smooth that 6 σ are nothing. By as much it
    must lie above the largest but one of the last ``recent_steps`` = 3: a gradient that climbs as the network begins to
    learn is no jump, however far it comes. MAD is taken as at least ``least_mad`` = 0.01 decades. All but the window and z
    chosen by us, see benchmarks/alerts.py. Past sizes of single tensors: the median over the last ``recent`` = 8 recorded
    steps. Multiplying the loss by a constant changes nothing.

    ## Known false alarms
    A run whose gradient norm has heavy tails by nature (reinforcement learning, very small batches); a change of the data.
    Only recorded steps are seen: with ``every=10`` nine spikes of ten pass unseen.

    ## What to try
    Look at the batch and at the parameters named; clip the norm near its usual value, lower the learning rate or Adam's
    β₂, warm up longer.

    ## References
    Groeneveld et al., *OLMo*, 2024, and the stability monitor of OLMo-core. Pascanu, Mikolov, Bengio, ICML 2013 (clipping).
    """

    code: ClassVar[str] = "HW602"
    keeps_flight_record: ClassVar[bool] = True
    window: int = 128
    z: float = 6.0
    least_steps: int = 16
    decades: float = 0.5
    loss_decades: float = 0.1
    least_mad: float = 0.01
    recent_steps: int = 3
    recent: int = 8
    patience: int = 1
    action: Action = "warn"

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding] | None:
        """Return at most one finding for the gradient, one for the update and one for the loss."""
        record = moment.record
        if record.skipped is not None:
            return None
        found: list[Finding] = []
        norm = moment.gradient_norm_log10
        if moment.gradients is not None and math.isfinite(norm):
            above = self._above(memory.setdefault("gradient", {}), norm, self.decades)
            if above is not None:
                told = f"The norm of the whole gradient is {written(norm)}"
                found.append(self._finding(moment, "gradient spike", told, above, moment.gradients, memory))
            self._remember(memory, "gradient", moment.gradients)
        tensors, ratios = moment.updates
        rate = record.learning_rate
        if tensors and any(ratio > -math.inf for ratio in ratios) and (rate is None or rate > 0):
            size = log10_sum_of_squares(ratios) - (0.0 if rate is None else math.log10(rate))
            above = self._above(memory.setdefault("update", {}), size, self.decades)
            if above is not None:
                told = f"The relative updates of the weights, √Σ(‖Δw‖/‖w‖)² per learning rate, are {written(size)}"
                found.append(self._finding(moment, "update spike", told, above, Sizes(tensors, ratios), memory))
            self._remember(memory, "update", Sizes(tensors, ratios))
        if record.loss is not None and 0 < record.loss < math.inf:
            above = self._above(memory.setdefault("loss", {}), math.log10(record.loss), self.loss_decades)
            if above is not None:
                found.append(self._finding(moment, "loss spike", f"The loss is {record.loss:.4g}", above, None, memory))
        return found

    def _above(self, series: Memory, value: float, decades: float) -> tuple[float, float, int] | None:
        """z, decades above the median and window length when the value is a spike; it then enters the window."""
        ordered: list[float] = series.get("ordered", [])
        found = None
        if len(ordered) >= self.least_steps:
            rise = value - middle(ordered)
            # The largest but one, so that one outlier does not hide the next.
            lately = sorted(series["window"][-self.recent_steps :])[-2]
            if rise >= decades and value - lately >= decades:  # the MAD is worked out only then
                z = rise / (NORMAL_MAD * max(self.least_mad, mad(ordered)))
                found = (z, rise, len(ordered)) if z >= self._limit(len(ordered)) else None
        enter_window(series, value, self.window)
        return found

    def _limit(self, steps: int) -> float:
        return self.z * math.sqrt(1 + self.least_steps / steps)

    def _remember(self, memory: Memory, kind: str, sizes: Sizes) -> None:
        names = [tensor.name for tensor in sizes.tensors]
        series = memory[kind]
        if series.get("names") != names:
            series.update(names=names, sizes=[])
        past: list[list[float]] = series["sizes"]
        known = sizes.l2_log10
        # Nearly always all are finite; whether they are is told by their sum.
        whole = math.isfinite(sum(known)) and min(known, default=0.0) >= _NOTHING
        past.append(known if whole else [max(_NOTHING, size) for size in known])
        if len(past) > self.recent:
            del past[0]

    def _finding(
        self,
        moment: Moment,
        defect: str,
        told: str,
        above: tuple[float, float, int],
        sizes: Sizes | None,
        memory: Memory,
    ) -> Finding:
        z, rise, length = above
        grown = (
            [] if sizes is None else self._grown(sizes, memory["update" if defect == "update spike" else "gradient"])
        )
        added = math.fsum(part for _, part, _ in grown)
        where: list[str] = []
        shares: list[Evidence] = []
        for name, part, decades in grown[:5]:
            where.append(name)
            past = "had no size before" if decades > 100 else f"{decades:.1f} decades above its own past"
            shares.append(Evidence("share of the growth", part / added, "", f"{name}, {past}"))
            if math.fsum(p for _, p, _ in grown[: len(where)]) >= 0.9 * added:
                break
        most = f" {where[0]} adds {shares[0].value:.0%} of the growth." if where else ""
        return Finding(
            code=self.code,
            defect=defect,
            severity=Severity.WARNING,
            where=tuple(where),
            evidence=(
                Evidence("robust z", z, "", f"limit {self._limit(length):.2g}, over {length} recorded steps"),
                Evidence("above the median", rise, "decades"),
                *shares,
            ),
            cause=f"{told}, {10 ** min(300.0, rise):.3g} times the median of the last {length} recorded steps (z = {z:.1f}).{most}",
            advice="Look at this batch and at what is named first; clipping near the usual norm keeps one step from undoing many.",
            step=moment.record.step,
        )

    def _grown(self, sizes: Sizes, series: Memory) -> list[tuple[str, float, float]]:
        """Name, growth of the squared norm (in units of the largest) and growth in decades, most growth first."""
        names = [tensor.name for tensor in sizes.tensors]
        past: list[list[float]] = series.get("sizes", []) if series.get("names") == names else []
        now = [max(_NOTHING, size) for size in sizes.l2_log10]
        before = [median(column) for column in zip(*past, strict=True)] if past else [_NOTHING] * len(now)
        top = max(now)
        grown = [
            (name, 10.0 ** (2 * (size - top)) - 10.0 ** (2 * (was - top)), size - was)
            for name, size, was in zip(names, now, before, strict=True)
            if size > was
        ]
        return sorted(grown, key=lambda row: -row[1])
