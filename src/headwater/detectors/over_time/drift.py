"""Weights, activations or gradients that move slowly in one direction over the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from headwater.detectors.depth import Slope, theil_sen
from headwater.detectors.over_time.moment import WEIGHT_ROLES, Moment, sizes_of
from headwater.detectors.over_time.protocol import Action, Memory
from headwater.detectors.over_time.robust import kendall_z, median
from headwater.records import Evidence, Finding, Severity

__all__ = ["Drift"]

_Row = tuple[str, float, Slope, float, int, int]  # name, change, line, Kendall's z, first and last step
_TOLD = {
    "value": ("the rms of the weights", "weight"),
    "activation": ("the rms of the output", "output"),
    "gradient": ("the gradient, relative to the median weight's,", "gradient"),
}


@dataclass(frozen=True)
class Drift:
    """A size drifts by orders of magnitude over the run, and still does.

    ## What it finds
    Weights or layer outputs whose rms, and weights whose gradient relative to the median weight's, go steadily up or down.

    ## Why it matters
    No single step is unusual, so no spike is seen, and yet the logits, the residual stream or one layer's share of the
    gradient leave the range in which the network was set up.

    ## Evidence and threshold
    The series of log10 rms over the whole run, thinned to at most ``points`` = 24 recorded steps; its first quarter, the
    start-up, is left out. Reported is a change along the Theil–Sen line of ``decades`` = 1 (outputs and weights) or
    ``gradient_decades`` = 1.5 (relative gradients, which healthy training moves more), when Mann–Kendall's z is beyond
    ``z`` = 3.29 (once in 1,000 by chance) and the second half goes on in the same direction by ``still`` = 0.25 of it or
    more. At least ``least_points`` = 12 points, after ``least_steps`` = 48 recorded steps. Outputs and weights grow
    by decades while a network learns: where the loss is known and still falls by ``learning`` = 0.1 of itself over the same
    steps, that is no finding; where it is not known, their limit is ``unknown_loss_decades`` = 3. Chosen by us, see
    benchmarks/alerts.py. Gradients are compared with other gradients of the same step, so their common fall with the loss
    is none, and the scale of the loss does not matter.

    ## Known false alarms
    Weights that start near zero by design and are still growing; strong weight decay on a layer that is not used.

    ## What to try
    Weight decay or normalisation for what grows; for logits a z-loss or a smaller output scale; less weight decay for
    what shrinks.

    ## References
    Sen, *Estimates of the regression coefficient based on Kendall's tau*, JASA 1968.
    """

    code: ClassVar[str] = "HW603"
    per_place: ClassVar[bool] = True
    decades: float = 1.0
    gradient_decades: float = 1.5
    z: float = 3.29
    still: float = 0.25
    points: int = 24
    least_points: int = 12
    least_steps: int = 48
    learning: float = 0.1
    unknown_loss_decades: float = 3.0
    patience: int = 1
    action: Action = "warn"

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding] | None:
        """Return at most one finding per quantity and direction."""
        if moment.record.skipped is not None:
            return None
        judged: list[tuple[str, list[Finding]]] = []
        for quantity, read in _READ.items():
            series = memory.setdefault(quantity, {})
            if not series:
                series.update(stride=1, seen=0, steps=[], losses=[], sizes={})
            sizes = read(moment, series["seen"] % series["stride"] == 0)
            if sizes is None:
                continue
            series["seen"] += 1
            if sizes:
                self._enter(series, moment, sizes)
                judged.append((quantity, self._judge(quantity, series)))
        return [finding for _, findings in judged for finding in findings] if judged else None

    def _enter(self, series: Memory, moment: Moment, sizes: dict[str, float]) -> None:
        """Add one point to the series."""
        steps, kept = series["steps"], series["sizes"]
        if len(steps) >= self.points:  # every second point leaves; from now on every second one enters
            del steps[1::2], series["losses"][1::2]
            for column in kept.values():
                del column[1::2]
            series["stride"] *= 2
        steps.append(moment.record.step)
        loss = moment.record.loss
        series["losses"].append(loss if loss is not None and math.isfinite(loss) else None)
        length = len(steps)
        for name, size in sizes.items():
            column = kept.get(name)
            if column is None:
                kept[name] = column = [None] * (length - 1)
            column.append(size)
        for column in kept.values() if len(kept) > len(sizes) else ():
            if len(column) < length:
                column.append(None)

    def _judge(self, quantity: str, series: Memory) -> list[Finding]:
        steps = series["steps"]
        start = len(steps) // 4
        if len(steps) - start < self.least_points or series["seen"] < self.least_steps:
            return []
        limit = self._limit(quantity, series["losses"][start:])
        found: dict[bool, list[_Row]] = {}
        for name, column in series["sizes"].items():
            first, last = next((y for y in column[start:] if y is not None), None), column[-1]
            # Cheap and necessary in nearly every case: a trend that large shows at the ends.
            if first is None or last is None or abs(last - first) < 0.7 * limit:
                continue
            known = [(x, y) for x, y in zip(steps[start:], column[start:], strict=True) if y is not None]
            if len(known) < self.least_points:
                continue
            xs, ys = [x for x, _ in known], [y for _, y in known]
            line, z = theil_sen(xs, ys), kendall_z(ys)
            if line is None:
                continue
            change = line.value * (xs[-1] - xs[0])
            half = len(xs) // 2
            third = max(2, half // 3)
            later = median(ys[-third:]) - median(ys[half - third // 2 : half - third // 2 + third])
            if (
                abs(change) >= limit
                and abs(z) >= self.z
                and later * change > 0
                and abs(later) >= self.still * abs(change)
            ):
                found.setdefault(change > 0, []).append((name, change, line, z, xs[0], xs[-1]))
        return [self._finding(quantity, up, rows, limit) for up, rows in found.items()]

    def _limit(self, quantity: str, losses: list[float | None]) -> float:
        """How many decades are a drift: none at all are while the network still learns."""
        if quantity == "gradient":
            return self.gradient_decades
        known = [loss for loss in losses if loss is not None]
        if len(known) < self.least_points // 2:
            return self.unknown_loss_decades
        third = len(known) // 3
        first, last = median(known[:third]), median(known[-third:])
        return math.inf if first - last > self.learning * abs(first) else self.decades

    def _finding(self, quantity: str, up: bool, rows: list[_Row], limit: float) -> Finding:
        name, change, line, z, first, last = max(rows, key=lambda row: abs(row[1]))
        span = last - first
        told, word = _TOLD[quantity]
        way = "grew" if up else "shrank"
        return Finding(
            code=self.code,
            defect=f"{word} drifts {'up' if up else 'down'}",
            severity=Severity.WARNING,
            where=tuple(row[0] for row in rows),
            evidence=(
                Evidence("change", change, "decades", f"of {name}, steps {first} to {last}; limit {limit:g}"),
                Evidence("95 % interval, from", line.low * span, "decades"),
                Evidence("95 % interval, to", line.high * span, "decades"),
                Evidence("Mann–Kendall z", z, "", f"limit {self.z:g}"),
            ),
            cause=(
                f"Of {name} {told} {way} by {abs(change):.1f} decades from step {first} to {last} (95 % interval "
                f"{line.low * span:+.1f} to {line.high * span:+.1f}), and it goes on."
            ),
            advice=(
                "Look at what feeds it: weight decay or normalisation bounds what grows."
                if up
                else "Look at what takes it away: weight decay, a closing gate, or a branch that is no longer used."
            ),
        )


def _values(moment: Moment, wanted: bool) -> dict[str, float] | None:
    block = moment.record.block("value")
    if block is None or not wanted:
        return None if block is None else {}
    sizes = sizes_of(block)
    return {
        tensor.name: size
        for tensor, size in zip(sizes.tensors, sizes.l2_log10, strict=True)
        if tensor.role in WEIGHT_ROLES and math.isfinite(size)
    }


def _activations(moment: Moment, wanted: bool) -> dict[str, float] | None:
    block = moment.record.block("activation")
    if block is None or not wanted:
        return None if block is None else {}
    sizes = sizes_of(block)
    whole = "count" in block.columns  # rms per element, as the batch may change its size; else the norm as it is
    return {
        tensor.name: size - (0.5 * math.log10(row[0]) if whole else 0.0)
        for tensor, size, row in zip(sizes.tensors, sizes.l2_log10, block.rows, strict=True)
        if math.isfinite(size)
    }


def _relative_gradients(moment: Moment, wanted: bool) -> dict[str, float] | None:
    sizes = moment.gradients
    if sizes is None or moment.gradient_is_nonfinite or not wanted:
        return None if sizes is None else {}
    logs = {
        tensor.name: size
        for tensor, size in zip(sizes.tensors, sizes.l2_log10, strict=True)
        if tensor.role in WEIGHT_ROLES and math.isfinite(size)
    }
    if len(logs) < 3:
        return {}
    middle = median(list(logs.values()))
    return {name: size - middle for name, size in logs.items()}


# Quantity to its log10 sizes at a moment: None where it was not recorded, empty where it is not its turn.
_READ: dict[str, Callable[[Moment, bool], dict[str, float] | None]] = {
    "value": _values,
    "activation": _activations,
    "gradient": _relative_gradients,
}
