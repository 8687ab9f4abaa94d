"""A bounded activation, or a softmax, that sits on its flat part."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.detectors.neighbours import decades_below_median, feeding_row
from headwater.records import Evidence, Finding, LayerProfile, Profile, Severity, Verdict

__all__ = ["SaturatedActivation"]

_LOGARITHMS = ("Log", "BinaryCrossEntropy", "NllLoss", "KlDiv", "CrossEntropy")


@dataclass(frozen=True)
class SaturatedActivation:
    """An activation or a softmax is saturated.

    ## What it finds
    Bounded activations (sigmoid, tanh, hardtanh, a clamp) most of whose elements have less than 5 % of the largest
    slope, and softmax rows that are one-hot (1 - Σp² < 0.02).

    ## Why it matters
    There the slope is next to nothing, so the gradient ends at this place whatever the rest of the network does.

    ## Evidence and threshold
    ``fraction``: more than half of what a standard normal input leaves unsaturated (a ReLU6 has half of its elements on
    its lower end then, and that is no saturation; a sigmoid none, tanh 3 %, a softmax none). Chosen by us: from there on
    the median element is saturated. A warning from ``warning_fraction`` = 0.25 on. And the gradient must be lost there.
    On the output, the logarithm of a likelihood makes up for the slope: nothing is lost while moving every
    pre-activation by one changes such a loss by ``output_share`` = 5 % of itself or more. Off the trunk (a gate), it
    is lost where the weights before it lie ``gate_decades`` = 3 below the median weight gradient, the limit over depth.

    ## Known false alarms
    Gates that are meant to be open or shut; attention that a trained network has made sharp on purpose.

    ## What to try
    Standardise what enters, or scale the weights before it: 1/√fan_in for a dense layer, 1/√d for q·k.

    ## References
    Glorot and Bengio, AISTATS 2010 (saturation of sigmoid networks). Vaswani et al., *Attention is all you need*, 2017
    (the scale of q·k).
    """

    code: ClassVar[str] = "HW202"
    fraction: float = 0.5
    warning_fraction: float = 0.25
    output_share: float = 0.05
    gate_decades: float = 3.0

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        # Where no gradient passes (an activation on the input itself) none can be lost.
        rows = [r for r in profile.layers if _excess(r) > self.warning_fraction and r.gradient is not None]
        if not rows:
            return
        strong = [r for r in rows if _excess(r) > self.fraction and self._loses(profile, r)]
        rows = strong or rows
        worst = max(rows, key=_excess)
        share = worst.saturated_fraction or 0.0
        softmax = worst.kind == "softmax"
        yield Finding(
            code=self.code,
            defect="saturated softmax" if softmax else "saturated activation",
            severity=Severity.CRITICAL if strong else Severity.WARNING,
            verdict=Verdict.SATURATED,
            where=tuple(r.name for r in rows),
            evidence=(
                Evidence(
                    "saturated fraction",
                    share,
                    "",
                    f"limit {self.fraction:g} of what N(0, 1) leaves: {worst.saturated_at_unit_normal or 0.0:.2g}",
                ),
                *(
                    (Evidence("mean squared slope", worst.slope_mean_square),)
                    if worst.slope_mean_square is not None
                    else ()
                ),
            ),
            cause=(
                f"In {worst.name} {share:.0%} of the {'rows are one-hot' if softmax else 'elements are on the flat part'}"
                f"{_entering(profile, worst)}."
            ),
            advice=(
                "Scale the logits: divide q·k by √d and start q and k at standard deviation 1/√d."
                if softmax
                else "Standardise the inputs, and scale the weights before this activation by 1/√fan_in."
            ),
        )

    def _loses(self, profile: Profile, row: LayerProfile) -> bool:
        """Whether a gradient is lost in a saturated row, and not made up for behind it nor carried past it."""
        before = feeding_row(profile, row)
        if before is None or before.gradient is None:
            return True
        if _is_output(profile, row):
            # A likelihood's 1/p undoes the slope. Σ|∂L/∂z| / L is how much of itself the loss changes when every
            # pre-activation moves by one; a loss below zero is no -log p, and its size means nothing.
            likelihood = any(p.operation.startswith(_LOGARITHMS) for p in profile.trunk if p.next_layer is None)
            moved = before.gradient.mean_abs * before.gradient.count
            return not (likelihood and profile.loss > 0 and moved >= self.output_share * profile.loss)
        if not row.on_trunk and row.kind != "softmax":
            below = decades_below_median(profile, before.parameters)
            return math.isnan(below) or below >= self.gate_decades
        return True


def _is_output(profile: Profile, row: LayerProfile) -> bool:
    """Whether nothing but the loss comes after a row."""
    position = next(i for i, r in enumerate(profile.layers) if r.name == row.name)
    return row.on_trunk and not any(r.parameters and ":" not in r.name for r in profile.layers[position + 1 :])


def _excess(row: LayerProfile) -> float:
    """The saturated share of the elements that would not be saturated by a standard normal input."""
    usual = row.saturated_at_unit_normal or 0.0
    return 0.0 if row.saturated_fraction is None or usual >= 1.0 else (row.saturated_fraction - usual) / (1.0 - usual)


def _entering(profile: Profile, row: LayerProfile) -> str:
    before = feeding_row(profile, row)
    if before is not None and before.activation.finite_count:
        return f": what enters has rms {before.activation.rms:.3g} (mean {before.activation.mean:.3g})"
    return ""
