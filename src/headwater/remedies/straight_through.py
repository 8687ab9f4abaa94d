"""Let the gradient pass a step function as if it were the identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.records import Verdict
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment
from headwater.remedies.watched_forward import forward_under

__all__ = ["StraightThrough"]

_STEPS = {"sign", "sgn", "round", "floor", "ceil", "trunc", "heaviside"}
_CLASS = '''class StraightThroughSteps(TorchFunctionMode):
    """Forward: the step function. Backward: the identity."""

    steps = {torch.sign, torch.sgn, torch.round, torch.floor, torch.ceil, torch.trunc, torch.heaviside}
    steps |= {getattr(torch.Tensor, f.__name__) for f in steps}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in self.steps and args[0].requires_grad:
            return args[0] + (result - args[0]).detach()
        return result
'''


@dataclass(frozen=True)
class StraightThrough:
    """Pass the gradient of ``sign``, ``round`` and other steps straight through, in the modules whose forward calls them.

    Attributes:
        treats: verdicts and their turn.

    References:
        Bengio, Léonard, Courville, *Estimating or propagating gradients through stochastic neurons*, 2013.
    """

    code: ClassVar[str] = "HRB02"
    name: ClassVar[str] = "straight-through estimator"
    stage: ClassVar[int] = Stage.OPERATION
    invasiveness: ClassVar[int] = 3
    treats: Mapping[Verdict, int] = field(default_factory=lambda: {Verdict.ZERO_GRADIENT: 1})

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        used: dict[str, set[str]] = {}
        for operation in patient.operations:
            if operation.name in _STEPS:
                used.setdefault(operation.module, set()).add(operation.name)
        if not used:
            return NotApplicable(
                "no forward of its modules calls a step function; a detach() or no_grad() has to be removed in the source"
            )
        code = "import torch\nfrom torch.overrides import TorchFunctionMode\n\n\n"
        code += _CLASS + "\n\n" + forward_under("StraightThroughSteps", used)
        return Treatment(
            code=code,
            changes=tuple(
                f"{name or '(model)'}: gradient of {', '.join(sorted(names))} taken as 1"
                for name, names in used.items()
            ),
            notes=(
                "In your own source, write z + (torch.round(z) - z).detach() where this wraps the forward. The gradient is an "
                "estimate, not the derivative, which is zero.",
            ),
        )
