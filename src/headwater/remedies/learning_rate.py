"""A learning rate of its own for every parameter, from the measured gradients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.records import Verdict
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["LayerwiseLearningRate"]


@dataclass(frozen=True)
class LayerwiseLearningRate:
    """Give each weight the SGD learning rate at which a step changes it by the same share of its norm.

    It evens out what the gradient lost over depth for the optimizer; the gradient vanishes as before, so the verdict does
    not change. Adam does nearly the same on its own.

    Attributes:
        treats: verdicts and their turn.
        update_ratio: ‖Δw‖/‖w‖ of a step; 1e-3 is a common rule of thumb (Karpathy, CS231n notes).
        most: no rate exceeds this many times the median; chosen by us.

    References:
        You, Gitman, Ginsburg, *Large batch training of convolutional networks* (LARS), 2017.
    """

    code: ClassVar[str] = "HRA03"
    name: ClassVar[str] = "a learning rate per layer"
    stage: ClassVar[int] = Stage.TRAINING
    invasiveness: ClassVar[int] = 0
    treats: Mapping[Verdict, int] = field(default_factory=lambda: {Verdict.VANISHING: 6, Verdict.EXPLODING: 6})
    update_ratio: float = 1e-3
    most: float = 1e6

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        names = {patient.profile_names.get(n.rpartition(".")[0], "") + "." + n.rpartition(".")[2]: n
                 for n, p in patient.model.named_parameters() if p.requires_grad}  # fmt: skip
        rates: dict[str, float] = {}
        for q in patient.diagnosis.profile.parameters:
            real = names.get(q.name) or names.get(f".{q.name}")
            if real is None or q.gradient is None or q.role in ("bias", "normalization"):
                continue
            norm, gradient = q.value.l2_norm, q.gradient.l2_norm
            if 0.0 < norm < math.inf and 0.0 < gradient < math.inf:
                rates[real] = self.update_ratio * norm / gradient
        if len(rates) < 2:
            return NotApplicable("fewer than two weights have a gradient to take a rate from")
        middle = statistics.median(rates.values())
        rates = {name: min(rate, middle * self.most) for name, rate in rates.items()}
        listed = "".join(f"    {name!r}: {rate:.4g},\n" for name, rate in rates.items())
        code = (
            "import torch\n\n"
            f"rates = {{  # each step changes each weight by about {self.update_ratio:g} of its norm\n{listed}}}\n\n\n"
            "def make_optimizer(model):\n"
            "    groups = [\n"
            f'        {{"params": [parameter], "lr": rates.get(name, {middle:.4g})}}\n'
            "        for name, parameter in model.named_parameters()\n"
            "        if parameter.requires_grad\n"
            "    ]\n"
            f"    return torch.optim.SGD(groups, lr={middle:.4g})\n"
        )
        return Treatment(
            code=code,
            kind="training",
            changes=tuple(f"{name}: SGD learning rate {rate:.3g}" for name, rate in rates.items()),
            notes=("The gradient vanishes or explodes as before; only the size of the steps is evened out.",),
        )
