"""Draw every weight orthogonal, slightly above gain 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.records import Verdict
from headwater.remedies.drawing import draw_every_layer
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["OrthogonalInitialization"]


@dataclass(frozen=True)
class OrthogonalInitialization:
    """Draw every weight orthogonal, slightly above gain 1.

    All singular values of every weight are equal, so that no direction is lost over depth; 1.05 makes up for tanh.

    Attributes:
        treats: verdicts and their turn.

    References:
        Saxe et al., *Exact solutions to the nonlinear dynamics of learning in deep linear neural networks*, ICLR 2014. The
        gain is chosen by us.
    """

    code: ClassVar[str] = "HR104"
    name: ClassVar[str] = "orthogonal initialisation"
    stage: ClassVar[int] = Stage.WEIGHTS
    invasiveness: ClassVar[int] = 2
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {
            Verdict.VANISHING: 4, Verdict.EXPLODING: 4, Verdict.SATURATED: 4, Verdict.SYMMETRIC: 4,
            Verdict.DEAD_UNITS: 4, Verdict.NAN: 4,
            Verdict.EXPLODING_IN_TIME: 5, Verdict.VANISHING_IN_TIME: 5,  # a plain layer that is used at every step
        }
    )  # fmt: skip

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        return draw_every_layer(patient, "nn.init.orthogonal_(layer.weight, gain=1.05)", "orthogonal, gain 1.05")
