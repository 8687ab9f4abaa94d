"""Scale the residual branches that a model has, so that their sum stays bounded over depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headwater.errors import InputError
from headwater.init.residual import plan_depth_scaled_residual
from headwater.records import Verdict
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["ScaleResidualBranches"]


@dataclass(frozen=True)
class ScaleResidualBranches:
    """Multiply the last layer of each of the L residual branches with 1/√L, or with zero.

    Attributes:
        zero: start the branches at zero: the model is then the identity in every block, and wakes up in training.
        treats: verdicts and their turn.

    References:
        Hanin and Rolnick, *How to start training*, NeurIPS 2018. Zhang, Dauphin, Ma, *Fixup initialization*, ICLR 2019.
    """

    zero: bool = False
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {Verdict.EXPLODING: 1, Verdict.VANISHING: 2, Verdict.NAN: 3}
    )

    @property
    def code(self) -> str:
        """HR403, with zero HR404."""
        return "HR404" if self.zero else "HR403"

    @property
    def name(self) -> str:
        """What is done."""
        return "residual branches that start at zero" if self.zero else "residual branches scaled by 1/√L"

    @property
    def stage(self) -> int:
        """After the weights are drawn, which would undo it."""
        return Stage.RESCALING

    @property
    def invasiveness(self) -> int:
        """Chosen by us."""
        return 1

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        try:
            plan = plan_depth_scaled_residual(patient.model, scale=0.0 if self.zero else None)
        except InputError as error:
            return NotApplicable(str(error))
        if not plan.changes:
            return NotApplicable("the last layers of its residual branches are frozen or shared")
        if self.zero and patient.keep_weights:
            return NotApplicable(f"it sets weights to zero, and they are to be kept ({patient.weights_note})")
        argument = ", scale=0.0" if self.zero else ""
        code = f"from headwater.init import depth_scaled_residual_\n\ndepth_scaled_residual_(model{argument})\n"
        return Treatment(code=code, changes=tuple(str(change) for change in plan.changes))
