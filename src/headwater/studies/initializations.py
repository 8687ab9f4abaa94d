"""Initialisers as data: a distribution and a standard deviation from fan_in and fan_out.

Every rule works in place on one matrix (..., out, in) or on a stack of them, one per draw of a network.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headwater.errors import StudyError

__all__ = ["INITIALIZATIONS", "Initialization", "initialization"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialization:
    """How the weights and biases of one layer are drawn.

    Attributes:
        name: how it is asked for.
        title: the rule in words.
        distribution: of the weights; both have mean 0.
        weight_std: standard deviation of a weight from (fan_in, fan_out).
        bias: ``default`` is torch's U(±1/√fan_in), ``zeros`` is 0.
        preserves: what the variance rule keeps from layer to layer, in words; empty where it keeps nothing.
    """

    name: str
    title: str
    distribution: Literal["uniform", "normal"]
    weight_std: Callable[[int, int], float]
    bias: Literal["default", "zeros"]
    preserves: str = ""

    @property
    def formula(self) -> str:
        """The variance rule alone, such as ``Var(W) = 2/n_in``."""
        return self.title.rpartition(", ")[2].rpartition(": ")[2]

    def weight_(self, weight: Tensor, fan_in: int, fan_out: int, generator: torch.Generator | None = None) -> None:
        """Fill a weight in place.

        Args:
            weight: any shape; every element is drawn alike.
            fan_in: inputs per output unit.
            fan_out: outputs per input unit.
            generator: the random stream, or None for torch's global one.
        """
        std = self.weight_std(fan_in, fan_out)
        with torch.no_grad():
            if self.distribution == "normal":
                weight.normal_(0.0, std, generator=generator)
            else:
                bound = math.sqrt(3.0) * std  # Var U(-b, b) = b²/3
                weight.uniform_(-bound, bound, generator=generator)

    def bias_(self, bias: Tensor, fan_in: int, generator: torch.Generator | None = None) -> None:
        """Fill a bias in place.

        Args:
            bias: any shape.
            fan_in: inputs per output unit.
            generator: the random stream, or None for torch's global one.
        """
        with torch.no_grad():
            if self.bias == "zeros":
                bias.zero_()
            else:
                bound = 1.0 / math.sqrt(fan_in)
                bias.uniform_(-bound, bound, generator=generator)

    def weight_variance(self, fan_in: int, fan_out: int) -> float:
        """σ_w² = fan_in · Var(W).

        Args:
            fan_in: inputs per output unit.
            fan_out: outputs per input unit.

        Returns:
            σ_w², 1 where the weights alone keep the second moment.
        """
        return fan_in * self.weight_std(fan_in, fan_out) ** 2

    def bias_variance(self, fan_in: int) -> float:
        """σ_b² = Var(b).

        Args:
            fan_in: inputs per output unit.

        Returns:
            The variance of a bias.
        """
        return 0.0 if self.bias == "zeros" else 1.0 / (3.0 * fan_in)


_FORWARD = "the second moment forward, where φ passes half of it (ReLU)"
INITIALIZATIONS: dict[str, Initialization] = {
    rule.name: rule
    for rule in (
        Initialization(
            # torch.nn.Linear.reset_parameters: kaiming_uniform_(a=√5) is U(±1/√fan_in)
            name="default", title="torch's default, U(±1/√n_in): Var(W) = 1/(3·n_in)", distribution="uniform",
            weight_std=lambda n_in, n_out: math.sqrt(1.0 / (3.0 * n_in)), bias="default",
        ),
        Initialization(
            name="xavier_normal", title="Xavier normal, Var(W) = 2/(n_in + n_out)", distribution="normal",
            weight_std=lambda n_in, n_out: math.sqrt(2.0 / (n_in + n_out)), bias="zeros",
            preserves="half the signal forward (1/n_in), half the gradient backward (1/n_out), where φ ≈ identity",
        ),
        Initialization(
            name="xavier_uniform", title="Xavier uniform, Var(W) = 2/(n_in + n_out)", distribution="uniform",
            weight_std=lambda n_in, n_out: math.sqrt(2.0 / (n_in + n_out)), bias="zeros",
            preserves="half the signal forward (1/n_in), half the gradient backward (1/n_out), where φ ≈ identity",
        ),
        Initialization(
            name="kaiming_normal", title="He normal, Var(W) = 2/n_in", distribution="normal",
            weight_std=lambda n_in, n_out: math.sqrt(2.0 / n_in), bias="zeros", preserves=_FORWARD,
        ),
        Initialization(
            name="kaiming_uniform", title="He uniform, Var(W) = 2/n_in", distribution="uniform",
            weight_std=lambda n_in, n_out: math.sqrt(2.0 / n_in), bias="zeros", preserves=_FORWARD,
        ),
        Initialization(
            name="kaiming_normal_gain_1", title="He normal with gain 1, Var(W) = 1/n_in", distribution="normal",
            weight_std=lambda n_in, n_out: math.sqrt(1.0 / n_in), bias="zeros",
            preserves="the second moment forward, where φ passes all of it",
        ),
    )
}  # fmt: skip


def initialization(name: str) -> Initialization:
    """The rule behind a name.

    Args:
        name: one of :data:`INITIALIZATIONS`, or ``normal:STD`` for N(0, STD²) weights with torch's default biases.

    Returns:
        The rule.

    Raises:
        StudyError: the name is unknown, or STD is no positive number.
    """
    rule = INITIALIZATIONS.get(name)
    if rule is not None:
        return rule
    kind, colon, text = name.partition(":")
    if kind == "normal" and colon:
        try:
            std = float(text)
        except ValueError:
            std = math.nan
        if not (math.isfinite(std) and std > 0.0):
            raise StudyError(f"{name!r}: write the standard deviation as a positive number, such as normal:0.01")
        return Initialization(
            name=name, title=f"N(0, {std:g}²) whatever the width", distribution="normal",
            weight_std=lambda n_in, n_out: std, bias="default",
        )  # fmt: skip
    known = [*INITIALIZATIONS, "normal:STD"]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    raise StudyError(
        f"unknown initialisation {name!r}; "
        + (f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}")
    )
