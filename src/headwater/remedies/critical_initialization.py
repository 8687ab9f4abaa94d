"""Draw every weight at the critical point of the activation that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.errors import InputError
from headwater.init import plan_critical
from headwater.records import Verdict
from headwater.remedies.drawing import trained_weights
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["CriticalInitialization"]


@dataclass(frozen=True)
class CriticalInitialization:
    """Draw every weight at the critical point of the activation that follows it: He's rule for ReLU, Xavier's for tanh.

    The weights become N(0, σ_w²/fan_in) with σ_w² E[φ'(√q z)²] = 1 (:func:`headwater.init.critical_`), the biases zero.
    Embeddings, recurrent layers, query and key, shared and frozen weights stay.

    Attributes:
        treats: verdicts and their turn.

    References:
        Schoenholz et al., *Deep Information Propagation*, ICLR 2017.
    """

    code: ClassVar[str] = "HR101"
    name: ClassVar[str] = "critical initialisation"
    stage: ClassVar[int] = Stage.WEIGHTS
    invasiveness: ClassVar[int] = 2
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {
            Verdict.VANISHING: 1, Verdict.EXPLODING: 1, Verdict.SATURATED: 2, Verdict.SYMMETRIC: 2, Verdict.NAN: 3,
            Verdict.DEAD_UNITS: 3, Verdict.ZERO_GRADIENT: 4,
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
        kept = trained_weights(patient)
        if kept is not None:
            return kept
        try:
            plan = plan_critical(patient.model)
        except InputError as error:
            return NotApplicable(str(error))
        if not plan.changes:
            reasons = "; ".join(sorted(set(plan.kept.values())))
            return NotApplicable(f"it has no weight that the rule applies to ({reasons})")
        code = f"import torch\nfrom headwater.init import critical_\n\n{patient.seeded}    critical_(model)\n"
        return Treatment(code=code, changes=tuple(str(change) for change in plan.changes))
