"""Logits so large that the loss is saturated before training begins."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, Profile, Severity

__all__ = ["LossSaturation"]

_LOGIT_LOSSES = ("LogSoftmax", "NllLoss", "BinaryCrossEntropyWithLogits", "Softmax", "CrossEntropy", "LogSigmoid")


@dataclass(frozen=True)
class LossSaturation:
    """The logits saturate the loss.

    ## What it finds
    A softmax or sigmoid loss whose logits have an rms above ``logit_rms``.

    ## Why it matters
    The probabilities are 0 and 1 from the start: samples that are right give no gradient, samples that are wrong give
    the largest one, and the loss starts far above log(number of classes).

    ## Evidence and threshold
    ``logit_rms`` = 10: e^10 between two classes (chosen by us). Logits are exponents, so this does not depend on the
    scale of the loss.

    ## Known false alarms
    A trained, confident classifier.

    ## What to try
    Start the head smaller, standardise the inputs, or divide the logits by a temperature.

    ## References
    Guo et al., *On calibration of modern neural networks*, ICML 2017 (temperature).
    """

    code: ClassVar[str] = "HW503"
    logit_rms: float = 10.0

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        operations = [p.operation for p in profile.trunk if p.next_layer is None]
        last = next((r for r in reversed(profile.layers) if r.on_trunk and r.parameters), None)
        if last is None or not any(o.startswith(_LOGIT_LOSSES) for o in operations):
            return
        size = last.activation.rms
        if not size > self.logit_rms:
            return
        yield Finding(
            code=self.code,
            defect="saturated loss",
            severity=Severity.WARNING,
            where=(last.name,),
            evidence=(Evidence("rms of the logits", min(size, sys.float_info.max), "", f"limit {self.logit_rms:g}"),),
            cause=f"The logits ({last.name}) have rms {size:.3g} and the loss starts at {profile.loss:.3g}.",
            advice="Start the head with smaller weights or standardise what enters the network.",
        )
