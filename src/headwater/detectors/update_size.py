"""What one step of the user's optimizer does to each weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, Profile, Severity

__all__ = ["UpdateSize"]


@dataclass(frozen=True)
class UpdateSize:
    """Updates are far too small or too large for the weights they change.

    ## What it finds
    With an optimizer given: weights that one step changes by more than ``largest`` of their norm, or by less than the
    rounding unit of their dtype; gradients so small that Adam's eps, not the gradient, sets the step; parameters in no
    group of the optimizer, and frozen ones in one.

    ## Why it matters
    A step as large as the weight throws away what it was; one below the rounding unit changes nothing.

    ## Evidence and threshold
    ‖Δw‖/‖w‖ of one step taken on a copy. ``largest`` = 0.5 (chosen by us: a step that turns the weight by half its
    length), ``rounding`` = 6e-8 (float32: half a unit in the last place), gradient rms below ``eps_factor`` = 1 times eps.
    SGD's step depends on the scale of the loss; Adam's does not, as long as eps is negligible. No default band in
    between: healthy models differ by an order of magnitude between parameters.

    ## Known false alarms
    Weights that start at or near zero (left out when exactly zero).

    ## What to try
    Another learning rate; a smaller eps or a loss scale where eps dominates.

    ## References
    Kingma and Ba, *Adam*, ICLR 2015 (the role of eps).
    """

    code: ClassVar[str] = "HW501"
    largest: float = 0.5
    rounding: float = 6e-8
    eps_factor: float = 1.0

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield up to one finding per kind."""
        look = profile.second_look
        if look is None:
            return
        known = [u for u in look.updates if u.update_ratio is not None and math.isfinite(u.update_ratio)]
        weights = {q.name for q in profile.parameters if q.role in ("weight", "attention", "recurrent", "embedding")}
        known = [u for u in known if u.name in weights]
        large = [u for u in known if (u.update_ratio or 0) > self.largest]
        small = [u for u in known if 0 <= (u.update_ratio or 0) < self.rounding and u.gradient_rms > 0]
        starved = [u for u in look.updates if u.epsilon and 0 < u.gradient_rms < self.eps_factor * u.epsilon]
        for rows, defect, cause in (
            (large, "updates as large as the weights", "changes it by {ratio:.2g} of its norm"),
            (small, "updates below rounding", "changes it by {ratio:.2g} of its norm, which rounding undoes"),
        ):
            if rows:
                worst = max(rows, key=lambda u: abs(math.log10((u.update_ratio or 0) + 1e-300)))
                yield Finding(
                    code=self.code,
                    defect=defect,
                    severity=Severity.WARNING,
                    where=tuple(u.name for u in rows),
                    evidence=(Evidence("‖Δw‖/‖w‖", worst.update_ratio or 0.0, "", f"of {worst.name}"),),
                    cause=f"One step of {worst.optimizer} (lr {worst.learning_rate:g}) on {worst.name} "
                    + cause.format(ratio=worst.update_ratio or 0.0)
                    + ".",
                    advice="Change the learning rate for these parameters; look at the gradient's scale first.",
                )
        if starved:
            worst = min(starved, key=lambda u: u.gradient_rms)
            yield Finding(
                code=self.code,
                defect="eps dominates the step",
                severity=Severity.WARNING,
                where=tuple(u.name for u in starved),
                evidence=(Evidence("gradient rms", worst.gradient_rms, "", f"eps {worst.epsilon:g}"),),
                cause=(
                    f"The gradient of {worst.name} (rms {worst.gradient_rms:.2g}) is below {worst.optimizer}'s eps "
                    f"{worst.epsilon:g}."
                ),
                advice="Scale the loss up, or lower eps; the step is no longer independent of the gradient's scale.",
            )
        for names, defect in (
            (look.unassigned, "parameters in no optimizer group"),
            (look.frozen_in_optimizer, "frozen parameters in the optimizer"),
        ):
            if names:
                yield Finding(
                    code=self.code,
                    defect=defect,
                    severity=Severity.WARNING if names is look.unassigned else Severity.INFO,
                    where=names,
                    evidence=(Evidence("parameters", len(names)),),
                    cause=f"{len(names)} {defect}.",
                    advice="Pass them to the optimizer, or freeze them."
                    if names is look.unassigned
                    else "Remove them from it.",
                )
