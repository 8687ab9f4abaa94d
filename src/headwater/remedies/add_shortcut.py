"""Let the gradient pass beside the layers: a shortcut around every block that keeps its shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from headwater.records import Verdict
from headwater.remedies.patient import Call, Patient, folded
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["AddShortcut"]

_WEIGHTS = ("linear", "convolution")
_WITHIN = ("activation", "normalization", "dropout")
_CLASS = '''class Residual(nn.Module):
    """x + scale * branch(x): the gradient reaches x undiminished, whatever the branch does to it."""

    def __init__(self, branch, scale):
        super().__init__()
        self.branch = branch
        self.scale = scale

    def forward(self, x, *args, **kwargs):
        return x + self.scale * self.branch(x, *args, **kwargs)
'''


@dataclass(frozen=True)
class AddShortcut:
    """Wrap every block that keeps its shape: x + branch(x)/√L.

    Blocks are neighbours in a ``Sequential`` or ``ModuleList`` that keep the shape: whole modules, or a weight layer with
    the activation after it. Blocks that add their input already are left alone. L is the number of blocks; with 1/√L
    signal and gradient grow by at most (1 + 1/L)^L < e.

    Attributes:
        normalize: put a LayerNorm (GroupNorm of one group for pictures) at the head of every branch.
        treats: verdicts and their turn.

    References:
        He et al., *Identity mappings in deep residual networks*, ECCV 2016. Hanin and Rolnick, *How to start training*,
        NeurIPS 2018 (the scale of the branches).
    """

    normalize: bool = False
    treats: Mapping[Verdict, int] = field(default_factory=lambda: {Verdict.VANISHING: 3, Verdict.EXPLODING: 4})

    @property
    def code(self) -> str:
        """HR401, with normalisation HR402."""
        return "HR402" if self.normalize else "HR401"

    @property
    def name(self) -> str:
        """What is done."""
        return "shortcuts with normalised branches" if self.normalize else "shortcuts with branches scaled by 1/√L"

    @property
    def stage(self) -> int:
        """Before the weights are drawn."""
        return Stage.SHORTCUT

    @property
    def invasiveness(self) -> int:
        """Chosen by us."""
        return 7 if self.normalize else 6

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        groups = _groups(patient)
        if not groups:
            return NotApplicable(
                "no neighbouring blocks in a Sequential or ModuleList keep their shape without a shortcut of their own; "
                "add x + f(x) in the forward of your blocks"
            )
        scale = 1.0 / math.sqrt(len(groups))
        lines: list[str] = []
        for names, shape in groups:
            branch = ", ".join(f"model.get_submodule({name!r})" for name in names)
            norm = f"{_norm(shape, patient.factory)}, " if self.normalize else ""
            lines.append(
                f"branch = nn.Sequential({norm}{branch})\n" if norm or len(names) > 1 else f"branch = {branch}\n"
            )
            lines.append(f"model.set_submodule({names[0]!r}, Residual(branch, {scale:.6g}))\n")
            lines.extend(f"model.set_submodule({name!r}, nn.Identity())\n" for name in names[1:])
        imports = "import torch\nfrom torch import nn\n" if "torch." in patient.factory else "from torch import nn\n"
        if not self.normalize and all(len(names) == 1 for names, _ in groups):
            listed = folded(names[0] for names, _ in groups)
            body = (
                f"for name in {listed}:\n"
                f"    model.set_submodule(name, Residual(model.get_submodule(name), {scale:.6g}))\n"
            )
        else:
            body = "".join(lines)
        return Treatment(
            code=f"{imports}\n\n{_CLASS}\n\n{body}",
            changes=tuple(
                f"{' and '.join(names)}: x + {scale:.3g}·f({'norm(x)' if self.normalize else 'x'})"
                for names, _ in groups
            ),
            notes=("Parameters inside a wrapped block get .branch in their name: an old checkpoint needs renaming.",),
        )


def _norm(shape: tuple[int, ...], factory: str) -> str:
    if len(shape) > 3:
        return f"nn.GroupNorm(1, {shape[1]}{factory})"
    return f"nn.LayerNorm({shape[-1]}{factory})"


def _groups(patient: Patient) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Names of the modules of each block, and the shape that it keeps."""
    if patient.residual_parts:
        return []
    found: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    for name, module in patient.model.named_modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            prefix = f"{name}." if name else ""
            children = [patient.calls.get(prefix + child) for child, _ in module.named_children()]
            found.extend(_in_container([c for c in children if c is not None], isinstance(module, nn.Sequential)))
    return found


def _in_container(children: list[Call], sequential: bool) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    groups: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    position = 0
    while position < len(children):
        call = children[position]
        used = 1
        whole = call.kind in ("container", "other") and any(True for _ in call.module.parameters())
        if whole and call.shape is not None and call.calls == 1:
            groups.append(((call.name,), call.shape))
        elif sequential and call.kind in _WEIGHTS and call.input_shapes[0] is not None and call.calls == 1:
            members = [call]
            while position + used < len(children) and children[position + used].kind in _WITHIN:
                members.append(children[position + used])
                used += 1
            last = members[-1].output_shapes[0]
            if len(members) > 1 and last == call.input_shapes[0] and all(m.calls == 1 for m in members):
                groups.append((tuple(m.name for m in members), call.input_shapes[0]))
        position += used
    return groups
