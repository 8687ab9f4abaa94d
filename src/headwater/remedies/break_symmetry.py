"""Draw layers whose units are copies of one another anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from headwater.records import Verdict
from headwater.remedies.patient import Patient, folded
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["BreakSymmetry"]


@dataclass(frozen=True)
class BreakSymmetry:
    """Call ``reset_parameters()`` of every layer whose units are copies, or whose weight is one constant.

    Such weights hold no information that a training could have put there, so they are drawn anew also where weights
    are to be kept. The layers' own default initialisation is used: it knows every kind of layer, recurrent ones included.

    Attributes:
        treats: verdicts and their turn.

    References:
        Goodfellow, Bengio, Courville, *Deep Learning*, MIT Press 2016, chapter on optimisation (breaking symmetry).
    """

    code: ClassVar[str] = "HR601"
    name: ClassVar[str] = "random weights for units that are copies"
    stage: ClassVar[int] = Stage.WEIGHTS
    invasiveness: ClassVar[int] = 2
    treats: Mapping[Verdict, int] = field(default_factory=lambda: {Verdict.SYMMETRIC: 1})

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        where = {w.split("#")[0] for w in (patient.root.where if patient.root is not None else ())}
        copies = {q.name for q in patient.diagnosis.profile.parameters if q.duplicate_units}
        names = [
            name
            for name, module in patient.model.named_modules()
            if callable(getattr(module, "reset_parameters", None))
            and (_is_constant(module) or self._named(patient, name, module, where | copies))
        ]
        if not names:
            return NotApplicable("no layer with copied units has a reset_parameters()")
        code = (
            f"import torch\n\nnames = {folded(names)}\n{patient.seeded}"
            "    for name in names:\n        model.get_submodule(name).reset_parameters()\n"
        )
        return Treatment(code=code, changes=tuple(f"{name}: its own reset_parameters()" for name in names))

    def _named(self, patient: Patient, name: str, module: nn.Module, wanted: set[str]) -> bool:
        clean = patient.profile_names.get(name, name)
        own = {f"{clean}.{p}" if clean else p for p, _ in module.named_parameters(recurse=False)}
        return clean in wanted or bool(own & wanted)


def _is_constant(module: nn.Module) -> bool:
    weights = [p for p in module.parameters(recurse=False) if p.dim() >= 2 and p.numel() > 1 and not p.is_meta]
    return bool(weights) and all(bool((w == w.flatten()[0]).all()) for w in weights)
