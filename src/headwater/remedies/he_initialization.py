"""Draw every weight from N(0, 2/fan_in)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.records import Verdict
from headwater.remedies.drawing import draw_every_layer
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["HeInitialization"]


@dataclass(frozen=True)
class HeInitialization:
    """Draw every weight from N(0, 2/fan_in).

    The rule that keeps the second moment through ReLU layers, applied to all of them.

    Attributes:
        treats: verdicts and their turn.

    References:
        He et al., *Delving Deep into Rectifiers*, ICCV 2015.
    """

    code: ClassVar[str] = "HR102"
    name: ClassVar[str] = "He initialisation"
    stage: ClassVar[int] = Stage.WEIGHTS
    invasiveness: ClassVar[int] = 2
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {
            Verdict.VANISHING: 3, Verdict.EXPLODING: 3, Verdict.SATURATED: 3, Verdict.SYMMETRIC: 3,
            Verdict.DEAD_UNITS: 3, Verdict.NAN: 3,
        }
    )  # fmt: skip

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        return draw_every_layer(patient, 'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")', "N(0, 2/fan_in)")
