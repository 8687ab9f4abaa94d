"""The rows of a forecast: a layer, a parameter, a step along the trunk, where a format fails, and what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from headwater.records.profile import LayerKind

__all__ = ["BlockForecast", "FailurePoint", "ForecastCoverage", "LayerForecast", "ParameterForecast"]


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
        if self.unruled:
            text = "no rule for " + ", ".join(f"{name} ({reason})" for name, reason in self.unruled.items())
        elif self.complete:
            return f"a rule for each of {self.operations} operations"
        else:
            text = f"{self.operations} operations"
        return f"{text}; {len(self.unknown_layers)} layers and {len(self.unknown_parameters)} parameters are unknown"
