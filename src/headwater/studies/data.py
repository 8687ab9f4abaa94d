"""Samples, targets and losses of a study, as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from headwater.errors import StudyError

__all__ = ["LOSSES", "Data", "Loss", "summed_output", "summed_squared_error"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(output, target)`` of one network, a scalar."""


def summed_output(output: Tensor, target: Tensor) -> Tensor:
    """Σ output: a loss without targets."""
    return output.sum()


def summed_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Σ (output − target)², with whatever broadcasting the two shapes ask for."""
    return ((output - target) ** 2).sum()


LOSSES: dict[str, tuple[Loss, str]] = {
    "mse": (functional.mse_loss, "mean squared error"),
    "summed_output": (summed_output, "the sum of the outputs"),
    "summed_squared_error": (summed_squared_error, "the sum of (prediction − target)²"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """How samples and targets are drawn.

    Attributes:
        samples: B.
        inputs: ``normal``: N(0, 1); ``integers``: uniform in [−10, 10); ``linspace``: fixed, evenly from 1 to −1.
        targets: ``one``, ``zero``, ``normal``, or ``integers``: uniform in [0, 5).
        target_shape: ``column``: (B, outputs); ``flat``: (B,).
        standardize: whether each feature gets mean 0 and standard deviation 1 over the samples.
    """

    samples: int = 1
    inputs: Literal["normal", "integers", "linspace"] = "normal"
    targets: Literal["one", "zero", "normal", "integers"] = "zero"
    target_shape: Literal["column", "flat"] = "column"
    standardize: bool = False

    def draw(
        self, features: int, outputs: int, generator: torch.Generator | None = None, draws: tuple[int, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        r"""Draw samples and targets.

        Args:
            features: D.
            outputs: units of the output layer.
            generator: the random stream, or None for torch's global one.
            draws: leading dimensions, one data set for each.

        Returns:
            Samples (\*draws, B, D) and targets (\*draws, B, outputs) or (\*draws, B).

        Raises:
            StudyError: features cannot be standardised over a single sample.
        """
        shape = (*draws, self.samples, features)
        if self.inputs == "normal":
            x = torch.randn(shape, generator=generator)
        elif self.inputs == "integers":
            x = torch.randint(-10, 10, shape, generator=generator).float()
        else:
            x = torch.linspace(1.0, -1.0, features).expand(shape).contiguous()
        if self.standardize:
            if self.samples < 2:
                raise StudyError("standardising a feature needs more than one sample")
            # population standard deviation (scikit-learn's StandardScaler)
            std, mean = torch.std_mean(x, dim=-2, correction=0, keepdim=True)
            x = (x - mean) / torch.where(std > 0, std, torch.ones_like(std))
        target_shape = (*draws, self.samples, outputs) if self.target_shape == "column" else (*draws, self.samples)
        if self.targets == "normal":
            y = torch.randn(target_shape, generator=generator)
        elif self.targets == "integers":
            y = torch.randint(0, 5, target_shape, generator=generator).float()
        else:
            y = torch.full(target_shape, 1.0 if self.targets == "one" else 0.0)
        return x, y

    def input_second_moment(self, features: int) -> float:
        """E[x²] of a feature: what the theory starts from.

        Args:
            features: D.

        Returns:
            1 for N(0, 1) and standardised features, 33.5 for the integers −10 … 9, the mean square of the fixed ones.
        """
        if self.inputs == "integers" and not self.standardize:
            return sum(k * k for k in range(-10, 10)) / 20
        if self.inputs == "linspace":
            return math.fsum((1.0 - 2.0 * i / max(features - 1, 1)) ** 2 for i in range(features)) / features
        return 1.0

    def describe(self) -> str:
        """The data in words."""
        inputs = {
            "normal": "x ~ N(0, 1)",
            "integers": "integer features uniform in [−10, 10)",
            "linspace": "x fixed, evenly from 1 to −1",
        }[self.inputs]
        targets = {"one": "target 1", "zero": "target 0", "normal": "y ~ N(0, 1)", "integers": "y uniform in [0, 5)"}
        standardized = ", standardised per feature" if self.standardize else ""
        plural = "s" if self.samples > 1 else ""
        return f"{self.samples} sample{plural}, {inputs}{standardized}; {targets[self.targets]}"
