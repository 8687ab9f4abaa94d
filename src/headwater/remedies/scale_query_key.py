"""Bring attention logits back to unit size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from headwater.records import Verdict
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["ScaleQueryKey"]

_NAMES = re.compile(
    r"^(q|k|wq|wk|w_q|w_k|to_q|to_k|q_proj|k_proj|query|key|q_lin|k_lin|query_proj|key_proj)$", re.IGNORECASE
)


@dataclass(frozen=True)
class ScaleQueryKey:
    """Multiply query and key so that what enters the softmax has standard deviation 1.

    Query and key are told by the usual names of their layers (q, k, q_proj, query, to_q and their like).

    Attributes:
        treats: verdicts and their turn.
        logit_std: the standard deviation to reach; 1 is what q·k/√d has for unit-variance queries and keys (Vaswani et
            al. 2017, the reason for dividing by √d).
        least: logits below this standard deviation are left alone; chosen by us.

    References:
        Vaswani et al., *Attention is all you need*, NeurIPS 2017. Zhai et al., *Stabilizing transformer training by
        preventing attention entropy collapse*, ICML 2023.
    """

    code: ClassVar[str] = "HR501"
    name: ClassVar[str] = "smaller query and key"
    stage: ClassVar[int] = Stage.RESCALING
    invasiveness: ClassVar[int] = 1
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {Verdict.SATURATED: 1, Verdict.VANISHING: 3, Verdict.EXPLODING: 4}
    )
    logit_std: float = 1.0
    least: float = 2.0

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        chosen: dict[str, float] = {}
        for owner, std in _softmaxes(patient).items():
            if std < self.least:
                continue
            factor = math.sqrt(self.logit_std / std)
            prefix = f"{owner}." if owner else ""
            for name, module in patient.model.named_modules():
                head, _, tail = name.rpartition(".")
                if isinstance(module, nn.Linear) and _NAMES.match(tail) and (head == owner or name.startswith(prefix)):
                    chosen.setdefault(name, factor)
        if not chosen:
            return NotApplicable("no softmax with large logits has layers named as query and key beside it")
        listed = "".join(f"    {name!r}: {factor:.6g},\n" for name, factor in chosen.items())
        code = (
            f"import torch\n\nfactors = {{\n{listed}}}\n"
            "with torch.no_grad():\n"
            "    for name, factor in factors.items():\n"
            "        for parameter in model.get_submodule(name).parameters():\n"
            "            parameter.mul_(factor)\n"
        )
        return Treatment(
            code=code, changes=tuple(f"{name}: weight and bias times {factor:.4g}" for name, factor in chosen.items())
        )


def _softmaxes(patient: Patient) -> dict[str, float]:
    """The module whose forward applies a softmax, and the standard deviation of what enters it."""
    found: dict[str, float] = {}
    for call in patient.calls.values():
        if call.kind == "softmax" and call.input_std is not None:
            owner = call.name.rpartition(".")[0]
            found[owner] = max(found.get(owner, 0.0), call.input_std)
    for operation in patient.operations:
        of_module = patient.calls.get(operation.module)
        known = operation.name == "softmax" and operation.input_std is not None
        if known and of_module is not None and of_module.kind != "softmax":
            found[operation.module] = max(found.get(operation.module, 0.0), operation.input_std or 0.0)
    return found
