"""Draw every weight orthonormal and scale it to unit output variance on the user's own batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from headwater.errors import HeadwaterError
from headwater.init.lsuv import lsuv_
from headwater.records import Verdict
from headwater.records.remedy import run_code
from headwater.remedies.drawing import layers_to_draw, trained_weights
from headwater.remedies.patient import Patient, folded
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["LsuvInitialization"]


@dataclass(frozen=True)
class LsuvInitialization:
    """Draw every weight orthonormal, then scale it so that its layer's output has unit variance on the batch.

    The factors that :func:`headwater.init.lsuv_` finds on a copy are written into the code, so that it needs no data.

    Attributes:
        treats: verdicts and their turn.

    References:
        Mishkin and Matas, *All you need is a good init*, ICLR 2016.
    """

    code: ClassVar[str] = "HR105"
    name: ClassVar[str] = "layer-sequential unit variance (LSUV)"
    stage: ClassVar[int] = Stage.WEIGHTS
    invasiveness: ClassVar[int] = 2
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {
            Verdict.VANISHING: 2, Verdict.EXPLODING: 2, Verdict.SATURATED: 2, Verdict.SYMMETRIC: 4,
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
        kept = trained_weights(patient)
        if kept is not None:
            return kept
        names = [name for name in layers_to_draw(patient) if name in patient.calls]
        if len(names) < 2:
            return NotApplicable("it has fewer than two layers whose output could be scaled")
        if patient.first_input is None:
            return NotApplicable("the model's first argument is no tensor, so there is nothing to scale the layers on")
        code = (
            "import torch\nfrom torch import nn\n\n"
            f"names = {folded(names)}\n"
            f"{patient.seeded}"
            "    for name in names:\n"
            "        layer = model.get_submodule(name)\n"
            "        nn.init.orthogonal_(layer.weight)\n"
            "        if layer.bias is not None:\n"
            "            nn.init.zeros_(layer.bias)\n"
        )
        twin = copy.deepcopy(patient.model)
        run_code(code, twin)
        before = {name: _scale(twin, name) for name in names}
        try:
            lsuv_(twin, patient.first_input, orthonormal=False)
        except (HeadwaterError, RuntimeError, TypeError) as error:
            return NotApplicable(f"no layer can be scaled on this batch ({error})")
        factors = {name: _scale(twin, name) / before[name] for name in names}
        listed = "".join(f"    {name!r}: {factor:.6g},\n" for name, factor in factors.items())
        code += (
            f"factors = {{  # what brings each layer's output to unit variance on the batch\n{listed}}}\n"
            "with torch.no_grad():\n"
            "    for name, factor in factors.items():\n"
            "        model.get_submodule(name).weight.mul_(factor)\n"
        )
        return Treatment(
            code=code,
            changes=tuple(
                f"{name}: weight orthonormal times {factor:.4g}, bias zero" for name, factor in factors.items()
            ),
        )


def _scale(model: nn.Module, name: str) -> float:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return float(weight.detach().double().square().mean().sqrt())
