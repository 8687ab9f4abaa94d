"""What is forecast of a model before it runs: activations and gradients of every layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from headwater.errors import InputError
from headwater.records.budget import Budget
from headwater.records.comparison import Comparison, compare_forecast
from headwater.records.forecast_rows import (
    BlockForecast,
    FailurePoint,
    ForecastCoverage,
    LayerForecast,
    ParameterForecast,
)
from headwater.records.lookup import find_layer, find_row
from headwater.records.profile import LossSource, Profile
from headwater.records.saved import Saved
from headwater.records.time_forecast import TimeForecast, rms_over_time

__all__ = [
    "BlockForecast",
    "FailurePoint",
    "Forecast",
    "ForecastCoverage",
    "LayerForecast",
    "ParameterForecast",
    "TimeForecast",
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
        times: states and gradients over time inside recurrent layers, beside ``Profile.times``.
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
    times: tuple[TimeForecast, ...] = ()

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

    def through_time(
        self,
        layer: str,
        state: str = "hidden",
        *,
        kind: Literal["gradient", "activation"] = "gradient",
        stack: int | None = None,
        reverse: bool | None = None,
    ) -> tuple[float, ...]:
        """Forecast rms at each time step of a recurrent layer, as ``Profile.through_time``.

        Args:
            layer: name of an ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, or of a cell that is called once per step.
            state: ``hidden`` (h_t) or ``cell`` (c_t).
            kind: ``gradient``, rms(∂L/∂h_t), or ``activation``, rms(h_t).
            stack: which of the stacked layers; None pools all of them.
            reverse: which direction; None pools both.

        Returns:
            One rms per time step, t = 0 first; NaN where it is unknown.

        Raises:
            KeyError: the layer is not recurrent, or has no such state.
        """
        return rms_over_time(self.times, layer, state, kind, stack, reverse)

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
