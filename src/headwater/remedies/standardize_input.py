"""Give the model inputs of mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from headwater.records import Verdict
from headwater.remedies.patient import Patient
from headwater.remedies.remedy import NotApplicable, Stage, Treatment

__all__ = ["StandardizeInput"]


@dataclass(frozen=True)
class StandardizeInput:
    """Subtract the mean of the inputs and divide by their standard deviation, inside the model.

    The numbers are those of the batch, per feature (per channel of a picture), and become buffers of the model that a
    forward pre-hook uses, so that they are saved with it. In your own code you may as well do it where the data are read.

    Attributes:
        treats: verdicts and their turn.
        most_features: above that many features one mean and one standard deviation serve all; chosen by us.
        mean_limit: inputs whose mean is within this many standard deviations of 0, and ...
        scale_limit: ... whose standard deviation is within this factor of 1, are left alone; chosen by us.

    References:
        LeCun et al., *Efficient BackProp*, 1998 (inputs of zero mean and equal variance).
    """

    code: ClassVar[str] = "HR701"
    name: ClassVar[str] = "standardised inputs"
    stage: ClassVar[int] = Stage.INPUT
    invasiveness: ClassVar[int] = 1
    treats: Mapping[Verdict, int] = field(
        default_factory=lambda: {
            Verdict.SATURATED: 1, Verdict.DEAD_UNITS: 2, Verdict.EXPLODING: 3, Verdict.NAN: 4, Verdict.VANISHING: 5,
            Verdict.EXPLODING_IN_TIME: 4,
        }
    )  # fmt: skip
    most_features: int = 128
    mean_limit: float = 1.0
    scale_limit: float = 3.0

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan it.

        Args:
            patient: the model.

        Returns:
            The treatment, or why there is none.
        """
        x = patient.first_input
        if x is None or not x.is_floating_point():
            return NotApplicable("its first input is no floating-point tensor")
        if x.dim() < 2 or x.shape[0] < 2:
            return NotApplicable("one sample has no mean and standard deviation to standardise by")
        axis = 1 if x.dim() >= 4 else x.dim() - 1  # channels of (B, C, H, W); features of (B, D) and (B, T, D)
        x = x.double()
        overall_mean, overall_std = float(x.mean()), float(x.std())
        per_feature = x.movedim(axis, 0).flatten(1)
        mean, std = per_feature.mean(1), per_feature.std(1)
        if x.shape[axis] > self.most_features:
            mean, std = x.mean().reshape(1), x.std().reshape(1)
        std = torch.where(std > 1e-6 * (abs(overall_mean) + overall_std), std, torch.ones_like(std))
        worst = float((mean / std).abs().max())
        stretch = float(torch.maximum(std, 1 / std).max())
        if worst <= self.mean_limit and stretch <= self.scale_limit:
            return NotApplicable(
                f"its inputs are standardised well enough (mean {overall_mean:.3g}, standard deviation {overall_std:.3g})"
            )
        if not torch.isfinite(torch.cat([mean, std])).all():
            return NotApplicable("its inputs are not finite")
        shape = [1] * x.dim()
        shape[axis] = len(mean)
        code = (
            "import torch\n\n"
            f"mean = torch.tensor({_numbers(mean)}{patient.factory})\n"
            f"std = torch.tensor({_numbers(std)}{patient.factory})\n"
            f'model.register_buffer("input_mean", mean.reshape({tuple(shape)}))\n'
            f'model.register_buffer("input_std", std.reshape({tuple(shape)}))\n\n\n'
            "def standardize(module, args):\n"
            "    return ((args[0] - module.input_mean) / module.input_std, *args[1:])\n\n\n"
            "model.register_forward_pre_hook(standardize)\n"
        )
        what = "per feature" if len(mean) > 1 else "over all features"
        return Treatment(
            code=code,
            changes=(
                f"(input): (x − mean)/std, {what}; it had mean {overall_mean:.3g} and standard deviation {overall_std:.3g}",
            ),
            notes=("Take mean and standard deviation from the whole training set rather than from this batch.",),
        )


def _numbers(values: torch.Tensor) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in values.tolist()) + "]"
