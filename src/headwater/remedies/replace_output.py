"""Change what the model applies to its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from headwater.records import Verdict
from headwater.remedies.patient import Call, Patient, folded
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["ReplaceOutput"]

_CODES = {"identity": "HR801", "sigmoid": "HR802", "softmax": "HR803", "softplus": "HR804"}
_TITLES = {
    "identity": "no activation on the output", "sigmoid": "sigmoid on the output", "softmax": "softmax on the output",
    "softplus": "softplus on the output",
}  # fmt: skip
_MAKERS = {
    "identity": "nn.Identity()",
    "sigmoid": "nn.Sigmoid()",
    "softmax": "nn.Softmax(dim=-1)",
    "softplus": "nn.Softplus()",
}
_TYPES = {"identity": nn.Identity, "sigmoid": nn.Sigmoid, "softmax": nn.Softmax, "softplus": nn.Softplus}
_TURNS: Mapping[str, Mapping[Verdict, int]] = {
    "identity": {Verdict.DEAD_UNITS: 2, Verdict.SATURATED: 4, Verdict.ZERO_GRADIENT: 4, Verdict.VANISHING: 5},
    "sigmoid": {Verdict.ZERO_GRADIENT: 1, Verdict.NAN: 1, Verdict.DEAD_UNITS: 5},
    "softmax": {Verdict.NAN: 1},
    "softplus": {Verdict.NAN: 2, Verdict.DEAD_UNITS: 5, Verdict.ZERO_GRADIENT: 5},
}


@dataclass(frozen=True)
class ReplaceOutput:
    """Replace the activation on the output, or add one where a loss takes a logarithm of what is no probability.

    Which one is right depends on the loss: a loss on scores (``cross_entropy``, ``binary_cross_entropy_with_logits``,
    ``mse_loss``) wants none; a hand-written log-likelihood wants probabilities (sigmoid per output, softmax over
    classes); a rate or a standard deviation wants a softplus. The one that is tried and heals is recommended; read the
    note before taking it.

    Attributes:
        to: the new one.

    References:
        Goodfellow, Bengio, Courville, *Deep Learning*, MIT Press 2016, section on output units.
    """

    to: Literal["identity", "sigmoid", "softmax", "softplus"] = "identity"

    @property
    def code(self) -> str:
        """One per target: HR801 to HR804."""
        return _CODES[self.to]

    @property
    def name(self) -> str:
        """What is done."""
        return _TITLES[self.to]

    @property
    def stage(self) -> int:
        """Before the weights are drawn."""
        return Stage.OUTPUT

    @property
    def invasiveness(self) -> int:
        """Chosen by us."""
        return 4

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
        verdict = patient.diagnosis.verdict
        last = patient.output_activation()
        if verdict is Verdict.NAN and not self._made_in_the_loss(patient):
            return NotApplicable("what is not finite is not made between the output and the loss")
        shape = patient.output.shape if patient.output is not None else None
        if self.to == "softmax" and (shape is None or len(shape) < 2 or shape[-1] < 2):
            return NotApplicable("a softmax over one output is the constant 1")
        note = f"The output now means something else ({_TITLES[self.to]}): check that your loss and your targets want that."
        if last is None or not self._is_output(patient, last):
            if verdict is not Verdict.NAN or self.to == "identity":
                return NotApplicable("it has no activation on its output")
            if shape is None:
                return NotApplicable("its output is no tensor")
            return Treatment(code=_appended(_MAKERS[self.to]), changes=(f"(output): {self.to} added",), notes=(note,))
        if isinstance(last.module, _TYPES[self.to]):
            return NotApplicable(f"its output has a {self.to} already")
        names = patient.every_name(last.module)
        if names == ("",):
            return NotApplicable("the model is this one activation")
        code = (
            f"from torch import nn\n\nfor name in {folded(names)}:\n    model.set_submodule(name, {_MAKERS[self.to]})\n"
        )
        return Treatment(
            code=code,
            changes=(f"{last.name}: {type(last.module).__name__} becomes {_MAKERS[self.to].removeprefix('nn.')}",),
            notes=(note,),
        )

    def _is_output(self, patient: Patient, call: Call) -> bool:
        """Whether a call gives the model's output, or where the finding says it does."""
        if patient.output is None:
            return True
        return call.output_shapes[-1] == tuple(patient.output.shape)

    def _made_in_the_loss(self, patient: Patient) -> bool:
        return all(row.activation.nonfinite_count == 0 for row in patient.diagnosis.profile.layers)


def _appended(maker: str) -> str:
    return (
        "from torch import nn\n\n"
        f'model.add_module("output_activation", {maker})\n'
        "if not isinstance(model, nn.Sequential):  # a Sequential runs what is added to it\n\n"
        "    def activate(module, args, output):\n"
        "        return module.output_activation(output)\n\n"
        "    model.register_forward_hook(activate)\n"
    )
