"""Replace the hidden activations by one whose slope stays near 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from headwater.records import Verdict
from headwater.remedies.patient import Call, Patient, folded
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["SwapActivation"]

_MAKERS = {
    "relu": "nn.ReLU()", "tanh": "nn.Tanh()", "gelu": "nn.GELU()", "silu": "nn.SiLU()", "leaky_relu": "nn.LeakyReLU(0.1)",
}  # fmt: skip
_TITLES = {"relu": "ReLU", "tanh": "tanh", "gelu": "GELU", "silu": "SiLU", "leaky_relu": "LeakyReLU"}
_CODES = {"relu": "HR201", "tanh": "HR202", "gelu": "HR203", "silu": "HR204", "leaky_relu": "HR205"}
# Turn of each target by verdict. Chosen by us: the one nearest the published repair comes first.
_TURNS: Mapping[str, Mapping[Verdict, int]] = {
    "relu": {Verdict.VANISHING: 1, Verdict.SATURATED: 2},
    "tanh": {Verdict.VANISHING: 2, Verdict.EXPLODING: 4},
    "gelu": {Verdict.VANISHING: 3, Verdict.DEAD_UNITS: 3},
    "silu": {Verdict.VANISHING: 4, Verdict.DEAD_UNITS: 4},
    "leaky_relu": {Verdict.DEAD_UNITS: 1, Verdict.VANISHING: 3},
}
_SATURATING = (nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Softplus)
_DYING = (nn.ReLU, nn.ReLU6, nn.Threshold, nn.Hardshrink, nn.Softshrink)


@dataclass(frozen=True)
class SwapActivation:
    """Replace the hidden activations by another one.

    Only modules on the trunk with weights after them: a sigmoid that is a gate (it multiplies something beside the
    trunk) or the output stays, and so do the functions inside recurrent layers. The weights stay too: in a pair, an
    initialisation with the new activation's own gain follows.

    Attributes:
        to: the new activation.

    References:
        Glorot, Bordes, Bengio, *Deep sparse rectifier neural networks*, AISTATS 2011. The negative slope 0.1 is
        chosen by us.
    """

    to: Literal["relu", "tanh", "gelu", "silu", "leaky_relu"] = "relu"

    @property
    def code(self) -> str:
        """One per target: HR201 to HR205."""
        return _CODES[self.to]

    @property
    def name(self) -> str:
        """Such as ``ReLU for the hidden activations``."""
        return f"{_TITLES[self.to]} for the hidden activations"

    @property
    def stage(self) -> int:
        """Before the weights are drawn."""
        return Stage.ACTIVATION

    @property
    def invasiveness(self) -> int:
        """Chosen by us."""
        return 3

    @property
    def treats(self) -> Mapping[Verdict, int]:
        """Verdicts and their turn."""
        return _TURNS[self.to]

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        hidden = patient.hidden_activations()
        if not hidden:
            return NotApplicable(
                "it has no hidden activation module (functions such as torch.sigmoid in a forward have to be changed in "
                "the source)"
            )
        chosen = [call for call in hidden if self._improves(call)]
        if not chosen:
            types = "/".join(sorted({type(call.module).__name__ for call in hidden}))
            return NotApplicable(f"its hidden activations are {types} already, which this would not improve")
        names = [name for call in chosen for name in patient.every_name(call.module)]
        code = (
            f"from torch import nn\n\nfor name in {folded(names)}:\n    model.set_submodule(name, {_MAKERS[self.to]})\n"
        )
        return Treatment(
            code=code,
            changes=tuple(f"{call.name}: {type(call.module).__name__} becomes {_TITLES[self.to]}" for call in chosen),
        )

    def _improves(self, call: Call) -> bool:
        if self.to == "leaky_relu":
            return isinstance(call.module, _DYING)
        if self.to in ("gelu", "silu"):
            return isinstance(call.module, _DYING + _SATURATING)
        if self.to == "tanh":
            return isinstance(call.module, _SATURATING) and not isinstance(call.module, nn.Tanh)
        return isinstance(call.module, _SATURATING)
