"""Let an LSTM remember: a large bias on its forget gate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from headwater.records import Verdict
from headwater.remedies.patient import Patient, folded
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["RaiseForgetBias"]


@dataclass(frozen=True)
class RaiseForgetBias:
    """Set the bias of an LSTM's forget gate (a GRU's update gate) to log T: it then keeps its state for about T steps.

    The cell's gradient is multiplied by σ(b) per step; with b = log T it is T/(T+1), and (T/(T+1))^T ≈ 1/e over T steps.

    Attributes:
        bias: the value; None for log T of the longest sequence in the batch, at least 1.
        treats: verdicts and their turn.

    References:
        Jozefowicz, Zaremba, Sutskever, *An empirical exploration of recurrent network architectures*, ICML 2015 (a forget
        bias above zero). Tallec and Ollivier, *Can recurrent neural networks warp time?*, ICLR 2018 (log T).
    """

    bias: float | None = None
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {Verdict.VANISHING_IN_TIME: 1, Verdict.EXPLODING_IN_TIME: 4}
    )

    @property
    def code(self) -> str:
        """HR901."""
        return "HR901"

    @property
    def name(self) -> str:
        """What is done."""
        return "a large bias on the forget gate"

    @property
    def stage(self) -> int:
        """With the weights."""
        return Stage.WEIGHTS

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
        gated = {
            name: module
            for name, module in patient.model.named_modules()
            if isinstance(module, nn.LSTM | nn.LSTMCell | nn.GRU | nn.GRUCell) and module.bias
        }
        if not gated:
            return NotApplicable("it has no LSTM or GRU with biases")
        steps = max((len(t.steps) for t in patient.diagnosis.profile.times), default=1)
        bias = max(1.0, math.log(steps)) if self.bias is None else self.bias
        code = (
            "import torch\n\n"
            f"names = {folded(gated)}\n"
            "with torch.no_grad():\n"
            "    for name in names:\n"
            "        recurrent = model.get_submodule(name)\n"
            "        size = recurrent.hidden_size\n"
            "        # Gates are stacked input, forget, cell, output (LSTM) or reset, update, new (GRU): the second one keeps.\n"
            "        for parameter_name, parameter in recurrent.named_parameters(recurse=False):\n"
            '            if parameter_name.startswith("bias_ih"):\n'
            f"                parameter[size : 2 * size] = {bias:.4g}\n"
            '            elif parameter_name.startswith("bias_hh"):\n'
            "                parameter[size : 2 * size] = 0.0\n"
        )
        return Treatment(
            code=code,
            changes=tuple(
                f"{name}: bias of the {'forget' if 'LSTM' in type(module).__name__ else 'update'} gate {bias:.3g}"
                for name, module in gated.items()
            ),
        )
