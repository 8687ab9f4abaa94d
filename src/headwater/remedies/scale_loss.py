"""Multiply the loss, so that small gradients stay above the smallest number of their type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.records import Verdict
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["ScaleLoss"]

_LARGEST_EXPONENT = 15  # the scale is the gradient of a float16 loss, which holds no number above 65504


@dataclass(frozen=True)
class ScaleLoss:
    """Scale the loss by a power of two before ``backward()`` and the gradients back before ``step()``.

    Attributes:
        treats: verdicts and their turn.
        headroom_log2: the largest gradient is brought to 2^-headroom of the largest number of its type; chosen by us.

    References:
        Micikevicius et al., *Mixed precision training*, ICLR 2018.
    """

    code: ClassVar[str] = "HRA02"
    name: ClassVar[str] = "loss scaling"
    stage: ClassVar[int] = Stage.TRAINING
    invasiveness: ClassVar[int] = 0
    treats: Mapping[Verdict, int] = field(default_factory=lambda: {Verdict.VANISHING: 1, Verdict.ZERO_GRADIENT: 2})
    headroom_log2: int = 5

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        small = [q for q in patient.diagnosis.profile.parameters if q.dtype == "float16" and q.gradient is not None]
        if not small:
            return NotApplicable("no parameter is float16, where gradients underflow first")
        rows = [row for row in patient.diagnosis.profile.layers if row.gradient is not None and row.dtype == "float16"]
        sizes = [row.gradient.max_abs for row in rows if row.gradient is not None]
        sizes += [q.gradient.max_abs for q in small if q.gradient is not None]
        largest = max((s for s in sizes if math.isfinite(s)), default=0.0)
        # Where everything was flushed to zero no number tells the scale: the largest possible one.
        exponent = (
            _LARGEST_EXPONENT if largest <= 0.0 else math.floor(math.log2(65504.0 / largest)) - self.headroom_log2
        )
        if exponent < 1:
            return NotApplicable("its largest gradient is near the largest number of float16 already")
        scale = 2.0 ** min(exponent, _LARGEST_EXPONENT)
        code = (
            "import torch\n\n"
            f"loss_scale = {scale:.1f}\n\n\n"
            "def scale_loss(loss):\n"
            '    """Call it on the loss, before backward()."""\n'
            "    return loss.float() * loss_scale\n\n\n"
            "def before_step(model, optimizer):\n"
            '    """Call it between backward() and step()."""\n'
            "    for parameter in model.parameters():\n"
            "        if parameter.grad is not None:\n"
            "            parameter.grad.div_(loss_scale)\n"
        )
        return Treatment(
            code=code,
            kind="training",
            changes=(f"(training loop): the loss times {scale:g}",),
            notes=("torch.amp.GradScaler does this and adapts the factor; keep the weights themselves in float32.",),
        )
