"""What is forecast of a model before it runs: activations and gradients of every layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from headwater.errors import InputError
from headwater.records.budget import Budget
from headwater.records.comparison import Comparison, compare_forecast
from headwater.records.lookup import find_layer, find_row
from headwater.records.profile import LayerKind, LossSource, Profile
from headwater.records.saved import Saved

__all__ = [
    "BlockForecast",
    "FailurePoint",
    "Forecast",
    "ForecastCoverage",
    "LayerForecast",
    "ParameterForecast",
]


# Number formats: log10 of the largest number, the smallest normal one, and half the smallest subnormal (below it a value
# rounds to zero). IEEE 754; bfloat16 has float32's exponents and 7 fraction bits.
_FORMATS: Mapping[str, tuple[float, float, float]] = {
    "float64": (308.2547, -307.6527, -323.6072),
    "float32": (38.5318, -37.9298, -45.1545),
    "bfloat16": (38.5301, -37.9298, -40.3380),
    "float16": (4.8164, -4.2144, -7.5257),
}
_SHORT = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterForecast:
    """The forecast gradient of one parameter.

    Attributes:
        name: as in the profile.
        aliases: other names of the same storage.
        shape: of the parameter.
        layer: name of the layer that owns it, or None.
        value_mean: mean of its initial law; NaN when that is not known.
        value_variance: variance of its initial law; NaN when that is not known.
        gradient_rms_log10: mean over draws of log10 rms(∂L/∂value); None when it is unknown.
        gradient_band_decades: standard deviation of that logarithm between draws.
        unknown: why there is no forecast, or None.
    """

    name: str
    aliases: tuple[str, ...] = ()
    shape: tuple[int, ...]
    layer: str | None
    value_mean: float
    value_variance: float
    gradient_rms_log10: float | None
    gradient_band_decades: float | None
    unknown: str | None = None

    @property
    def gradient_rms(self) -> float | None:
        """rms(∂L/∂value), typical over draws; None when it is unknown."""
        return _power(self.gradient_rms_log10)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerForecast:
    """The forecast of one tensor that a module call produces.

    Attributes:
        name: as in the profile.
        type: the module's class name.
        kind: what sort of layer it is.
        on_trunk: whether every path from the loss to the first parameters passes through this tensor.
        shape: of the tensor.
        aliases: other module names whose output this is.
        parameters: names of the parameters the module owns.
        activation_rms_log10: mean over draws of log10 rms; None when it is unknown.
        activation_band_decades: standard deviation of that logarithm between draws.
        gradient_rms_log10: the same of ∂L/∂output.
        gradient_band_decades: likewise.
        unknown: the operation without a rule after which nothing is known, or None.
    """

    name: str
    type: str
    kind: LayerKind
    on_trunk: bool
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    activation_rms_log10: float | None
    activation_band_decades: float | None
    gradient_rms_log10: float | None
    gradient_band_decades: float | None
    unknown: str | None = None

    @property
    def activation_rms(self) -> float | None:
        """rms(h), typical over draws; None when it is unknown."""
        return _power(self.activation_rms_log10)

    @property
    def gradient_rms(self) -> float | None:
        """rms(∂L/∂h), typical over draws; None when it is unknown."""
        return _power(self.gradient_rms_log10)


def _power(exponent: float | None) -> float | None:
    if exponent is None:
        return None
    return 10.0**exponent if exponent < 308.0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockForecast:
    """What one step along the trunk multiplies the squared gradient by.

    Attributes:
        name: the layer nearer the input.
        above: the layer nearer the loss.
        multiplier: χ, the factor on E δ² from ``above`` to ``name``.
        depth_scale: ξ = 1/|ln χ|, in such steps; ``inf`` at χ = 1.
    """

    name: str
    above: str
    multiplier: float
    depth_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePoint:
    """Where a number format stops holding a gradient.

    Attributes:
        layer: the first layer, from the loss, whose gradient does not fit.
        kind: ``underflow`` (rms below the smallest normal number) or ``overflow``.
        dtype: the format.
        depth: how many trunk layers lie between it and the loss.
        gradient_rms_log10: the forecast there.
        limit_log10: log10 of the format's limit.
    """

    layer: str
    kind: str
    dtype: str
    depth: int
    gradient_rms_log10: float
    limit_log10: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastCoverage:
    """What the forecast knows and what it does not.

    Attributes:
        operations: operations of the run.
        unruled: operation without a rule to the reason; everything behind one is unknown, never taken as 1.
        unknown_layers: layers whose gradient is unknown.
        unknown_parameters: parameters whose gradient is unknown.
        assumptions: assumptions of the theory that this model or these inputs break, each with what to do instead.
    """

    operations: int
    unruled: Mapping[str, str] = field(default_factory=dict)
    unknown_layers: tuple[str, ...] = ()
    unknown_parameters: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every layer and parameter has a forecast."""
        return not self.unknown_layers and not self.unknown_parameters

    def __str__(self) -> str:
        if not self.unruled:
            return f"a rule for each of {self.operations} operations"
        names = ", ".join(f"{name} ({reason})" for name, reason in self.unruled.items())
        return f"no rule for {names}; {len(self.unknown_layers)} layers behind them are unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast(Saved):
    """The forecast gradient profile of a model at initialisation.

    Attributes:
        layers: one row per module call that produces a tensor of its own, in execution order.
        parameters: every parameter once, in registration order.
        budget: the gradient's change along the trunk, by step and kind.
        coverage: what is known and what is not.
        loss_source: as in the profile.
        model_type: the model's class name.
        batch_size: of the inputs.
        parameter_count: elements of all parameters.
        dtype: of the first floating-point parameter.
        torch_version: of the run.
        headwater_version: of the run.
    """

    SCHEMA: ClassVar[str] = "headwater.forecast"

    layers: tuple[LayerForecast, ...]
    parameters: tuple[ParameterForecast, ...]
    budget: Budget
    coverage: ForecastCoverage
    loss_source: LossSource
    model_type: str
    batch_size: int | None
    parameter_count: int
    dtype: str
    torch_version: str
    headwater_version: str

    def layer(self, name: str) -> LayerForecast:
        """The row of one layer.

        Args:
            name: its name or one of its aliases; the first call when a reused module is named without ``#k``.

        Returns:
            The row.

        Raises:
            KeyError: no layer has this name; the message suggests near ones.
        """
        return find_layer(self.layers, name)

    def parameter(self, name: str) -> ParameterForecast:
        """The row of one parameter.

        Args:
            name: its name or one of its aliases.

        Returns:
            The row.

        Raises:
            KeyError: no parameter has this name; the message suggests near ones.
        """
        return find_row(self.parameters, name, "parameter")

    @property
    def trunk_layers(self) -> tuple[LayerForecast, ...]:
        """The rows that lie on the trunk, in execution order."""
        return tuple(row for row in self.layers if row.on_trunk)

    @property
    def blocks(self) -> tuple[BlockForecast, ...]:
        """χ and ξ of every step along the trunk whose two ends are known, input side first."""
        known = [row for row in self.trunk_layers if row.gradient_rms_log10 is not None]
        found = []
        for lower, upper in itertools.pairwise(known):
            assert lower.gradient_rms_log10 is not None
            assert upper.gradient_rms_log10 is not None
            if not (math.isfinite(lower.gradient_rms_log10) and math.isfinite(upper.gradient_rms_log10)):
                continue
            decades = 2.0 * (lower.gradient_rms_log10 - upper.gradient_rms_log10)
            rate = abs(decades) * math.log(10.0)
            found.append(
                BlockForecast(
                    name=lower.name,
                    above=upper.name,
                    multiplier=10.0 ** min(decades, 308.0),
                    depth_scale=1.0 / rate if rate > 0.0 else math.inf,
                )
            )
        return tuple(found)

    @property
    def multiplier(self) -> float:
        """χ per trunk step, the geometric mean over the trunk; NaN with fewer than two known layers."""
        blocks = self.blocks
        if not blocks:
            return math.nan
        return math.exp(math.fsum(math.log(b.multiplier) for b in blocks) / len(blocks))

    @property
    def depth_scale(self) -> float:
        """ξ = 1/|ln χ| in trunk steps."""
        chi = self.multiplier
        if math.isnan(chi):
            return math.nan
        rate = abs(math.log(chi))
        return 1.0 / rate if rate > 0.0 else math.inf

    def fails_at(self, dtype: str = "float32") -> FailurePoint | None:
        """The first layer, counted from the loss, whose gradient a number format cannot hold.

        Args:
            dtype: ``float32``, ``bfloat16``, ``float16``, ``float64`` (or ``fp32``, ``bf16``, ``fp16``), or a torch dtype.

        Returns:
            Where, or None when every known gradient on the trunk fits.

        Raises:
            InputError: an unknown format.
        """
        name = str(dtype).removeprefix("torch.")
        name = _SHORT.get(name, name)
        if name not in _FORMATS:
            raise InputError(f"dtype should be one of {', '.join(_FORMATS)}, got {dtype!r}")
        largest, smallest, _ = _FORMATS[name]
        for depth, row in enumerate(reversed(self.trunk_layers)):
            value = row.gradient_rms_log10
            if value is None:
                continue
            if value < smallest or value > largest:
                return FailurePoint(
                    layer=row.name,
                    kind="underflow" if value < smallest else "overflow",
                    dtype=name,
                    depth=depth,
                    gradient_rms_log10=value,
                    limit_log10=smallest if value < smallest else largest,
                )
        return None

    def compare(self, profile: Profile) -> Comparison:
        """Hold the forecast against a measurement of the same architecture.

        Where the profile is over several draws, their mean of log10 rms is compared; else the one measured. Trunk layers
        that leave the band are a finding (HW701) with what may be the cause.

        Args:
            profile: from ``measure``.

        Returns:
            The comparison.
        """
        return compare_forecast(self, profile)

    # ---------------------------------------------------------------- data

    def table(self) -> list[dict[str, Any]]:
        """One flat mapping per layer and per parameter; None where nothing is known."""
        shown = (
            "name",
            "type",
            "kind",
            "on_trunk",
            "activation_rms",
            "gradient_rms",
            "gradient_band_decades",
            "unknown",
        )
        rows = [{"row": "layer", **{name: getattr(row, name) for name in shown}} for row in self.layers]
        blank = dict.fromkeys(shown)
        for p in self.parameters:
            values = {"name": p.name, "gradient_rms": p.gradient_rms, "unknown": p.unknown}
            rows.append({"row": "parameter", **blank, **values, "gradient_band_decades": p.gradient_band_decades})
        return rows

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows as CSV, also written to ``path`` when one is given.

        Args:
            path: where to write; the file is replaced whole or not at all.

        Returns:
            The CSV text; an unknown value is an empty cell, never 0.
        """
        from headwater.records.table import rows_to_csv

        return rows_to_csv(self.table(), path)

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame`` (needs ``pip install headwater[pandas]``)."""
        from headwater.records.table import rows_to_pandas

        return rows_to_pandas(self.table())
