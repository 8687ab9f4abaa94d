"""NaN or infinity at a recorded step, and where it was made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from headwater.detectors.over_time.moment import Moment, nonfinite_tensors
from headwater.detectors.over_time.protocol import Action, Memory
from headwater.records import Evidence, Finding, Severity, Verdict
from headwater.records.step import Block, WatchedTensor

__all__ = ["NonFiniteStep"]

_Bad = tuple[WatchedTensor, int, int]

_NOT_LOOKED = 'layers were not looked at at this step (activations="recorded" looks at every recorded one)'


@dataclass(frozen=True)
class NonFiniteStep:
    """A value or a gradient becomes NaN or infinite during training.

    ## What it finds
    The first tensor with a NaN or an infinity in the order it was computed: parameters, activations forward, the loss,
    gradients of activations backward, gradients of parameters backward (the last in execution order first). What merely
    passes it on is listed after it. Steps that a gradient scaler skipped are its normal work and no alarm, unless
    ``amp_skips`` recorded steps in a row are skipped.

    ## Why it matters
    One NaN in one gradient is NaN in every parameter after the next clipping or step. With the action ``raise`` or ``stop``
    the optimizer does not apply it.

    ## Evidence and threshold
    A count above zero (arithmetic), in the gradient before clipping where that was seen, as clipping spreads it over all.
    ``amp_skips`` = 16: ``GradScaler`` starts at 65536 and halves at every skip, so 16 skips bring it to 1.

    ## Known false alarms
    Infinities of a mask that neither the loss nor a gradient feels are not counted. A step that the training loop
    itself dropped is a warning only.

    ## What to try
    At the place named: no division by zero, no logarithm or root of a number that can be 0 or negative, the fused loss;
    ``patience`` above 1 where single bad batches are expected and dropped.

    ## References
    Micikevicius et al., *Mixed precision training*, ICLR 2018 (loss scaling skips steps that overflow).
    """

    code: ClassVar[str] = "HW601"
    keeps_flight_record: ClassVar[bool] = True
    amp_skips: int = 16
    patience: int = 1
    action: Action = "warn"

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding] | None:
        """Return at most one finding."""
        record = moment.record
        if record.skipped == "amp":
            memory["skips"] = memory.get("skips", 0) + 1
            return [self._scaler(memory["skips"], record.loss_scale)] if memory["skips"] >= self.amp_skips else None
        memory["skips"] = 0
        values = _bad(record.block("value"))
        forward = _bad(record.block("activation"))
        backward = _bad(record.block("output_gradient"))[::-1]
        parameters = sorted(moment.nonfinite_gradients, key=lambda bad: bad[0].order)[::-1]
        loss_bad = record.loss is not None and not math.isfinite(record.loss)
        if not (values or backward or parameters or loss_bad) and not any(nan for _, nan, _ in forward):
            return []  # infinities that neither the loss nor any gradient feels are a mask
        place: _Bad | None
        if values:
            place, cause = values[0], f"The parameter {values[0][0].name} itself holds {_counts(values[0])}."
        elif forward:
            place, cause = forward[0], _forward_cause(forward[0], record.block("activation"))
        elif backward and not loss_bad:
            place = first = backward[0]
            cause = (
                f"The forward is finite; ∂L/∂(output of {first[0].name}) is the first gradient that is not: "
                f"{_counts(first)}{_maker(first[0], record.block('output_gradient'))}."
            )
        else:
            place, cause = self._from_parameters(moment, parameters, loss_bad)
        where = [place[0].name] if place else []
        where += [t.name for group in (values, forward, backward, parameters) for t, _, _ in group]
        where = list(dict.fromkeys(where))
        passed = (
            f" {len(where) - 1} more tensors pass it on, named in the order it reaches them." if len(where) > 1 else ""
        )
        dropped = " The training loop dropped this step." if record.skipped is not None else ""
        return [
            Finding(
                code=self.code,
                defect="NaN or infinity",
                severity=Severity.CRITICAL if record.skipped is None else Severity.WARNING,
                verdict=Verdict.NAN,
                where=tuple(where),
                evidence=(
                    Evidence("elements not finite", sum(place[1:]) if place else 0, "", "in the first tensor"),
                    Evidence("activations not finite", len(forward), "layers"),
                    Evidence("activation gradients not finite", len(backward), "layers"),
                    Evidence("parameter gradients not finite", len(parameters)),
                ),
                cause=cause + passed + dropped,
                advice=(
                    "Look at the operation named: a division, logarithm, root or power at its edge, or a number too large "
                    "for the dtype; go back to the last checkpoint whose parameters are finite."
                ),
                step=record.step,
            )
        ]

    def _from_parameters(self, moment: Moment, bad: list[_Bad], loss_bad: bool) -> tuple[_Bad | None, str]:
        looked = moment.record.activations
        block = moment.gradient_block
        if loss_bad:
            told = "every activation is finite: it is made at the loss" if looked else _NOT_LOOKED
            return (bad[0] if bad else None), f"The loss is {moment.record.loss}, and {told}."
        # The backward reaches the last layer first; of one layer, its weight stands for it.
        first = next((b for b in reversed(bad) if b[0].layer is not None and b[0].layer == bad[0][0].layer), bad[0])
        if block is not None and len(bad) == len(block.tensors) > 1 and not looked:
            clipped = " (only the gradient after clipping was seen)" if block.phase == "post_clip" else ""
            return first, (
                f"The gradients of all {len(bad)} parameters are not finite{clipped}: it is made in the forward, at the loss or "
                f"in the backward above {first[0].name}; {_NOT_LOOKED}."
            )
        told = "Every activation and its gradient is finite; the" if looked else "The"
        return first, f"{told} gradient of {first[0].name} is the first in the backward that is not: {_counts(first)}."

    def _scaler(self, skips: int, scale: float | None) -> Finding:
        told = "" if scale is None else f", the last at a loss scale of {scale:g}"
        return Finding(
            code=self.code,
            defect="gradient scaler skips every step",
            severity=Severity.CRITICAL,
            verdict=Verdict.NAN,
            evidence=(Evidence("recorded steps skipped in a row", skips, "", f"limit {self.amp_skips}"),),
            cause=f"The gradient scaler skipped {skips} recorded steps in a row{told}: no scale makes the gradient finite.",
            advice="The infinity is not one of scale: look for NaN in the data and the forward, in float32.",
        )


def _bad(block: Block | None) -> list[_Bad]:
    """The tensors with NaN or infinity, in execution order."""
    return [] if block is None else sorted(nonfinite_tensors(block), key=lambda bad: bad[0].order)


def _counts(bad: _Bad) -> str:
    _, nan, inf = bad
    return " and ".join(text for count, text in ((nan, f"{nan} NaN"), (inf, f"{inf} infinite")) if count) + " elements"


def _forward_cause(bad: _Bad, block: Block | None) -> str:
    tensor = bad[0]
    data = ""
    if block is not None and tensor.order == min(t.order for t in block.tensors):
        data = "; it is the first layer, so look at the data too"
    return f"The output of {tensor.name} ({tensor.type}) is the first that is not finite: {_counts(bad)}{data}."


def _maker(tensor: WatchedTensor, block: Block | None) -> str:
    """The layer after it whose gradient is still finite: its backward made the first bad one."""
    after = [t for t in block.tensors if t.order > tensor.order] if block is not None else []
    return f", made in the backward of {min(after, key=lambda t: t.order).name}" if after else ", made at the loss"
