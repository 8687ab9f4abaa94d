"""Orthogonal recurrent weights: a state that keeps its norm from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from headwater.records import Verdict
from headwater.remedies.drawing import trained_weights
from headwater.remedies.patient import Patient, folded
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["OrthogonalRecurrence"]


@dataclass(frozen=True)
class OrthogonalRecurrence:
    """Draw every recurrent matrix (each gate's on its own) orthogonal and set the biases of the state to zero.

    Attributes:
        law: ``orthogonal``; or ``identity``, which with small input weights (one tenth of torch's default) lets a plain
            recurrent network keep a state nearly linearly.
        treats: verdicts and their turn.

    References:
        Saxe et al., ICLR 2014. Le, Jaitly, Hinton, *A simple way to initialize recurrent networks of rectified linear
        units*, 2015 (the identity).
    """

    law: Literal["orthogonal", "identity"] = "orthogonal"
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {Verdict.VANISHING_IN_TIME: 2, Verdict.EXPLODING_IN_TIME: 1, Verdict.SYMMETRIC: 4}
    )

    @property
    def code(self) -> str:
        """HR902, with the identity HR903."""
        return "HR902" if self.law == "orthogonal" else "HR903"

    @property
    def name(self) -> str:
        """What is done."""
        return (
            "orthogonal recurrent weights"
            if self.law == "orthogonal"
            else "recurrent weights that start as the identity"
        )

    @property
    def stage(self) -> int:
        """With the weights."""
        return Stage.WEIGHTS

    @property
    def invasiveness(self) -> int:
        """Chosen by us."""
        return 2

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
        chosen = {
            name: module
            for name, module in patient.model.named_modules()
            if isinstance(module, nn.RNNBase | nn.RNNCellBase)
        }
        if self.law == "identity":
            chosen = {n: m for n, m in chosen.items() if isinstance(m, nn.RNN | nn.RNNCell)}
        if not chosen:
            return NotApplicable("it has no recurrent module that this is for")
        fill = "nn.init.orthogonal_(gate)" if self.law == "orthogonal" else "nn.init.eye_(gate)"
        small = (
            '            elif parameter_name.startswith("weight_ih_l0") or parameter_name == "weight_ih":\n'
            "                parameter.mul_(0.1)\n"
            if self.law == "identity"
            else ""
        )
        code = (
            f"import torch\nfrom torch import nn\n\nnames = {folded(chosen)}\n{patient.seeded}"
            "    for name in names:\n"
            "        recurrent = model.get_submodule(name)\n"
            "        for parameter_name, parameter in recurrent.named_parameters(recurse=False):\n"
            '            if parameter_name.startswith("weight_hh"):\n'
            "                for gate in parameter.split(recurrent.hidden_size):\n"
            f"                    {fill}\n"
            '            elif parameter_name.startswith("bias_hh"):\n'
            "                parameter.zero_()\n"
            f"{small}"
        )
        if self.law == "identity":
            code += '            elif parameter_name.startswith("bias_ih"):\n                parameter.zero_()\n'
        return Treatment(
            code=code, changes=tuple(f"{name}: recurrent weights {self.law}, bias of the state zero" for name in chosen)
        )
