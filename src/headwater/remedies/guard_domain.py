"""Keep roots and logarithms away from the edge of their domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.records import Verdict
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment
from headwater.remedies.watched_forward import forward_under

__all__ = ["GuardDomain"]

_GUARDED = {"sqrt", "rsqrt", "log", "log2", "log10"}
_CLASS = '''class GuardedDomain(TorchFunctionMode):
    """Roots and logarithms of at least eps: below it the value is that of eps and the gradient is zero, not NaN."""

    guarded = {torch.sqrt, torch.rsqrt, torch.log, torch.log2, torch.log10}
    guarded |= {torch.Tensor.sqrt, torch.Tensor.rsqrt, torch.Tensor.log, torch.Tensor.log2, torch.Tensor.log10}
    eps = EPS

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.guarded:
            args = (args[0].clamp(min=self.eps), *args[1:])
        return func(*args, **(kwargs or {}))
'''


@dataclass(frozen=True)
class GuardDomain:
    """Clamp the argument of ``sqrt``, ``rsqrt`` and ``log`` from below, in the modules whose forward calls them.

    The derivative of √x is infinite at 0, and ``torch.where`` multiplies the branch that it does not take by zero:
    0·∞ is NaN. With the argument clamped, what lies below eps gets the gradient zero. Losses are out of reach: they are
    not part of the model.

    Attributes:
        treats: verdicts and their turn.
        eps: smallest argument; chosen by us: its root 1e-4 has the slope 5e3, which float32 carries with ease.

    References:
        PyTorch issues 2421 (sqrt of a zero distance) and 68425 (where and the branch not taken).
    """

    code: ClassVar[str] = "HRB01"
    name: ClassVar[str] = "guarded roots and logarithms"
    stage: ClassVar[int] = Stage.OPERATION
    invasiveness: ClassVar[int] = 3
    treats: Mapping[Verdict, int] = field(default_factory=lambda: {Verdict.NAN: 1})
    eps: float = 1e-8

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        used: dict[str, set[str]] = {}
        for operation in patient.operations:
            if operation.name in _GUARDED:
                used.setdefault(operation.module, set()).add(operation.name)
        if not used:
            return NotApplicable("no forward of its modules takes a root or a logarithm; look at the loss")
        code = "import torch\nfrom torch.overrides import TorchFunctionMode\n\n\n"
        code += _CLASS.replace("EPS", f"{self.eps:g}") + "\n\n" + forward_under("GuardedDomain", used)
        return Treatment(
            code=code,
            changes=tuple(
                f"{name or '(model)'}: arguments of {', '.join(sorted(names))} clamped to at least {self.eps:g}"
                for name, names in used.items()
            ),
            notes=(
                "In your own source, write torch.sqrt(x.clamp(min=1e-8)) (or x + 1e-8) where this wraps the forward.",
            ),
        )
