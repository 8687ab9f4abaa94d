"""Limit the norm of the gradient, with a threshold taken from the measured one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.records import Verdict
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["ClipGradients"]


@dataclass(frozen=True)
class ClipGradients:
    """Clip the gradient's norm over all parameters.

    It keeps a step from throwing the weights off; the gradient explodes as before, so the verdict does not change.

    Attributes:
        treats: verdicts and their turn.
        largest: the threshold is this, or a tenth of the measured norm when that is smaller; chosen by us (thresholds
            of 1 and 0.5 are what is used in practice).

    References:
        Pascanu, Mikolov, Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013.
    """

    code: ClassVar[str] = "HRA01"
    name: ClassVar[str] = "gradient clipping"
    stage: ClassVar[int] = Stage.TRAINING
    invasiveness: ClassVar[int] = 0
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {Verdict.EXPLODING: 5, Verdict.EXPLODING_IN_TIME: 2, Verdict.NAN: 6}
    )
    largest: float = 1.0

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        norms = [q.gradient.l2_norm for q in patient.diagnosis.profile.parameters if q.gradient is not None]
        norm = math.hypot(*norms) if norms else 0.0
        if not math.isfinite(norm):
            return NotApplicable("its gradient is not finite: clipping makes no finite number of a NaN")
        if norm == 0.0:
            return NotApplicable("its gradient is zero")
        threshold = float(f"{min(self.largest, norm / 10):.2g}")
        code = (
            "import torch\n\n\n"
            "def before_step(model, optimizer):\n"
            '    """Call it between loss.backward() and optimizer.step()."""\n'
            f"    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={threshold:g})\n"
        )
        return Treatment(
            code=code,
            kind="training",
            changes=(f"(training loop): the gradient's norm, now {norm:.3g}, is clipped to {threshold:g}",),
            notes=("Clipping limits the step; the gradient still explodes on its way.",),
        )
