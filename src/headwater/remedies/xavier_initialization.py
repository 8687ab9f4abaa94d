"""Draw every weight from N(0, 2/(fan_in + fan_out))."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.records import Verdict
from headwater.remedies.drawing import draw_every_layer
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["XavierInitialization"]


@dataclass(frozen=True)
class XavierInitialization:
    """Draw every weight from N(0, 2/(fan_in + fan_out)).

    The compromise between keeping the signal and keeping the gradient of linear (and tanh) layers.

    Attributes:
        treats: verdicts and their turn.

    References:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010.
    """

    code: ClassVar[str] = "HR103"
    name: ClassVar[str] = "Xavier initialisation"
    stage: ClassVar[int] = Stage.WEIGHTS
    invasiveness: ClassVar[int] = 2
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {
            Verdict.VANISHING: 4, Verdict.EXPLODING: 4, Verdict.SATURATED: 4, Verdict.SYMMETRIC: 4,
            Verdict.DEAD_UNITS: 4, Verdict.NAN: 4,
        }
    )  # fmt: skip

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        return draw_every_layer(patient, "nn.init.xavier_normal_(layer.weight)", "N(0, 2/(fan_in + fan_out))")
