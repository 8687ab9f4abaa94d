"""What the weights of a model look like before training, where that comes from, and what it does to the signal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from headwater.records.lookup import no_such
from headwater.records.saved import Saved

__all__ = [
    "BiasInitialization",
    "Distribution",
    "InitializationReport",
    "SignalAssumption",
    "WeightInitialization",
]


Distribution = Literal[
    "uniform", "normal", "truncated normal", "orthogonal", "identity", "constant", "zeros", "sparse", "unknown",
]  # fmt: skip
"""The shape of the values, judged from the values alone.

``constant``: all equal and not zero. ``sparse``: at least one tenth exact zeros. ``orthogonal``: W Wᵀ (or WᵀW) is a
multiple of the identity. ``unknown``: none of the shapes fits within the sampling error.
"""
SignalAssumption = Literal["repeated layer", "normalized input"]
"""How ``preactivation_variance`` was found.

``repeated layer``: the variance that settles when this layer is stacked on itself many times. ``normalized input``: a
normalisation layer comes right before, so the input has second moment 1.
"""


def _decades(factor: float | None) -> float | None:
    if factor is None:
        return None
    return math.log10(factor) if factor > 0.0 else -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightInitialization:
    """The initial values of one weight (or of one block of a stacked weight), explained.

    Attributes:
        name: the parameter's name, with the block in brackets where one parameter stacks several matrices:
            ``attn.in_proj_weight[query]``, ``lstm.weight_ih_l0[forget]``.
        parameter: the parameter's name in ``named_parameters()``.
        block: which block of the parameter this is; None when it is the whole.
        aliases: further names under which the same parameter is registered (tied weights).
        layer: ``named_modules()`` name of the module that owns it; ``(model)`` for the model itself.
        layer_type: that module's class name.
        shape: of the parameter, or of the block.
        fan_in: how many inputs one output sums over (1 for an embedding: a look-up sums nothing).
        fan_out: how many outputs one input feeds (for a convolution: output channels per group times kernel size).
        mean: of the values.
        std: of the values (population: divided by n).
        max_abs: largest absolute value.
        zero_fraction: share of exact zeros, 0 to 1.
        kurtosis: E[(w - mean)⁴] / Var², 3 for a Gaussian, 1.8 for a uniform law; NaN when all values are equal.
        weight_variance: σ_w² = fan_in · Var(W), dimensionless.
        weight_second_moment: fan_in · E[W²]; differs from ``weight_variance`` when the mean is not zero.
        distribution: the shape of the values.
        initializer: the initialiser that draws such values, such as ``torch default: U(±1/√fan_in)``; ``no standard
            initialiser`` when none fits within the sampling error.
        also: other initialisers that fit as well (they coincide, or cannot be told apart with this many values).
        activation: what follows: a name such as ``relu``; ``linear`` when it is known that nothing elementwise
            follows directly; None when it cannot be told from the modules.
        bias_variance: σ_b², second moment of the bias that is added to the output; 0 without a bias.
        signal: how ``preactivation_variance`` was found; None when it was not.
        preactivation_variance: q, the second moment of the layer's output that the factors are evaluated at; 0 or
            ``inf`` when the stacked layer shrinks or grows the signal without end.
        forward_gain: 1/√E[φ(z)²], the gain that keeps the forward signal when q = 1; None when φ is unknown.
        backward_gain: 1/√E[φ'(z)²], the gain that keeps the gradient when q = 1; None when φ is unknown.
        forward_weight_variance: the σ_w² that would keep the forward signal at this q; None where that has no meaning.
        backward_weight_variance: the σ_w² that would keep the gradient at this q, fan_in/fan_out included; None where
            that has no meaning.
        forward_factor: √(σ_w² / forward_weight_variance): RMS of the signal after the layer over before.
        backward_factor: √(σ_w² / backward_weight_variance): RMS of ∂L/∂input over ∂L/∂output of the layer with its
            activation.
        notes: what a reader should know: traps, reasons why a field is None.
    """

    name: str
    parameter: str
    block: str | None = None
    aliases: tuple[str, ...] = ()
    layer: str
    layer_type: str
    shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    mean: float
    std: float
    max_abs: float
    zero_fraction: float
    kurtosis: float
    weight_variance: float
    weight_second_moment: float
    distribution: Distribution
    initializer: str
    also: tuple[str, ...] = ()
    activation: str | None = None
    bias_variance: float = 0.0
    signal: SignalAssumption | None = None
    preactivation_variance: float | None = None
    forward_gain: float | None = None
    backward_gain: float | None = None
    forward_weight_variance: float | None = None
    backward_weight_variance: float | None = None
    forward_factor: float | None = None
    backward_factor: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """√σ_w², the gain that the values imply: 1/√3 for torch's default Linear."""
        return math.sqrt(self.weight_variance)

    @property
    def forward_decades(self) -> float | None:
        """log10 of ``forward_factor``: decades of signal won (+) or lost (-) in this layer."""
        return _decades(self.forward_factor)

    @property
    def backward_decades(self) -> float | None:
        """log10 of ``backward_factor``: decades of gradient won (+) or lost (-) in this layer."""
        return _decades(self.backward_factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasInitialization:
    """The initial values of one bias vector.

    Attributes:
        name: the parameter's name.
        layer: the module that owns it; ``(model)`` for the model itself.
        layer_type: that module's class name.
        shape: of the bias.
        mean: of the values.
        std: of the values (population).
        is_zero: whether every value is exactly 0.
        initializer: the initialiser that draws such values, or ``no standard initialiser``.
    """

    name: str
    layer: str
    layer_type: str
    shape: tuple[int, ...]
    mean: float
    std: float
    is_zero: bool
    initializer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InitializationReport(Saved):
    """How every weight of a model was initialised, and how far that is from keeping the signal.

    Attributes:
        rows: one per weight (or block of a stacked weight), in registration order.
        biases: one per bias, in registration order.
        skipped: parameter name to reason, for every parameter that is neither.
        model_type: the model's class name.
        torch_version: of the reading.
        headwater_version: of the reading.
    """

    SCHEMA: ClassVar[str] = "headwater.initialization"

    rows: tuple[WeightInitialization, ...]
    biases: tuple[BiasInitialization, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    model_type: str
    torch_version: str
    headwater_version: str

    def row(self, name: str) -> WeightInitialization:
        """The row of one weight.

        Args:
            name: its name, a tied alias, or the parameter's name when it has several blocks (the first one).

        Returns:
            The row.

        Raises:
            KeyError: no weight has this name; the message suggests near ones.
        """
        for row in self.rows:
            if name == row.name:
                return row
        for row in self.rows:
            if name == row.parameter or name in row.aliases:
                return row
        raise KeyError(no_such("weight", name, [row.name for row in self.rows]))

    def table(self) -> list[dict[str, Any]]:
        """One flat mapping per weight: what CSV and pandas show; None where a value does not apply."""
        shown = (
            "name", "layer", "layer_type", "fan_in", "fan_out", "mean", "std", "max_abs", "kurtosis",
            "weight_variance", "gain", "distribution", "initializer", "activation", "bias_variance",
            "preactivation_variance", "forward_weight_variance", "backward_weight_variance", "forward_factor",
            "backward_factor", "forward_decades", "backward_decades",
        )  # fmt: skip
        return [
            {"shape": "x".join(map(str, row.shape)), **{name: getattr(row, name) for name in shown}}
            for row in self.rows
        ]

    def to_csv(self, path: str | Path | None = None) -> str:
        """The weights as CSV, also written to ``path`` when one is given.

        Args:
            path: where to write; the file is replaced whole or not at all.

        Returns:
            The CSV text; a value that does not apply is an empty cell, never 0.
        """
        from headwater.records.table import rows_to_csv

        return rows_to_csv(self.table(), path)

    def to_pandas(self) -> Any:
        """The weights as a ``pandas.DataFrame`` (needs ``pip install headwater[pandas]``)."""
        from headwater.records.table import rows_to_pandas

        return rows_to_pandas(self.table())
