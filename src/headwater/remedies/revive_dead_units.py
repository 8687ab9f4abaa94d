"""Restart the units that are off for every sample, and leave the others alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.records import Verdict
from headwater.remedies.patient import Call, Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["ReviveDeadUnits"]

_MOST_LISTED = 2000  # unit numbers written into a snippet; chosen by us


@dataclass(frozen=True)
class ReviveDeadUnits:
    """Draw the incoming weights of dead units from N(0, 2/fan_in) and set their bias to zero.

    A dead unit gives the same value for every sample, so nothing that was learnt is lost with its incoming weights: this
    is done also where weights are to be kept. What follows it may have been thrown off by the same step; in a pair, the
    hidden activations become leaky, or the input is standardised.

    Attributes:
        treats: verdicts and their turn.

    References:
        He et al., *Delving Deep into Rectifiers*, ICCV 2015 (the law). Restarting dead units: Sokar et al., *The dormant
        neuron phenomenon in deep reinforcement learning*, ICML 2023.
    """

    code: ClassVar[str] = "HR602"
    name: ClassVar[str] = "fresh incoming weights for dead units"
    stage: ClassVar[int] = Stage.WEIGHTS
    invasiveness: ClassVar[int] = 1
    treats: Mapping[Verdict, int] = field(default_factory=lambda: {Verdict.DEAD_UNITS: 1, Verdict.ZERO_GRADIENT: 3})

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        units: dict[str, list[int]] = {}
        last: Call | None = None
        for call in patient.calls.values():
            dead = call.constant_units
            if last is not None and dead and max(dead) < last.module.get_parameter("weight").shape[0]:
                units[last.name] = list(dead)
            if call.kind in ("linear", "convolution") and "weight" in call.module._parameters:
                last = call
        if not units:
            return NotApplicable("no dead unit lies behind a linear layer or a convolution")
        if sum(map(len, units.values())) > _MOST_LISTED:
            return NotApplicable(f"more than {_MOST_LISTED} units are dead: draw the whole layers instead")
        listed = "".join(f"    {name!r}: {dead},\n" for name, dead in units.items())
        code = (
            f"import torch\n\ndead_units = {{\n{listed}}}\n{patient.seeded}"
            "    for name, units in dead_units.items():\n"
            "        layer = model.get_submodule(name)\n"
            "        fan_in = layer.weight[0].numel()\n"
            "        layer.weight[units] = torch.randn_like(layer.weight[units]) * (2 / fan_in) ** 0.5\n"
            "        if layer.bias is not None:\n"
            "            layer.bias[units] = 0.0\n"
        )
        return Treatment(
            code=code,
            changes=tuple(
                f"{name}: {len(dead)} of {_out(patient, name)} units restarted" for name, dead in units.items()
            ),
        )


def _out(patient: Patient, name: str) -> int:
    weight = patient.calls[name].module.get_parameter("weight")
    return int(weight.shape[0])
