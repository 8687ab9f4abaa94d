"""A forecast held against a measurement: which layers leave the band, and what may be the cause."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from headwater.errors import InputError
from headwater.records.finding import Evidence, Finding, Severity
from headwater.records.profile import ParameterProfile, Profile
from headwater.records.saved import Saved
from headwater.records.time_forecast import TimeComparison, compare_times

if TYPE_CHECKING:
    from headwater.records.forecast import Forecast, LayerForecast

__all__ = ["DEPARTURE", "Comparison", "ComparisonRow", "compare_forecast"]

DEPARTURE = "HW701"
"""Code of the finding that layers leave the band."""

# Chosen by us.
_BANDS = 3.0  # standard deviations
_FLOOR = 0.1  # decades below which a difference is not worth a word
_BY_CHANCE = 6.0  # standard deviations up to which one draw may be an unlucky one: bands are of wide networks
_VALUE_FLOOR = (
    0.02  # decades (5 %) by which the rms of values may differ from its law, and three deviations of sampling
)
_SHOWN = 3  # names in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One layer, forecast and measured.

    Attributes:
        name: of the layer.
        on_trunk: whether it lies on the trunk.
        forecast_log10: forecast log10 rms(∂L/∂h) relative to the last trunk layer.
        measured_log10: measured, likewise.
        band_decades: standard deviation that the theory allows what was measured: between draws of the weights, over √n
            for the mean of n draws.
        outside: whether they differ by more than three bands and 0.1 decades.
    """

    name: str
    on_trunk: bool
    forecast_log10: float
    measured_log10: float
    band_decades: float
    outside: bool

    @property
    def difference_decades(self) -> float:
        """Measured minus forecast."""
        return self.measured_log10 - self.forecast_log10


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Saved):
    """A forecast held against a measurement: gradients along depth, relative to the last trunk layer.

    Attributes:
        rows: layers that both have, in execution order.
        rms_error_decades: root mean square of the difference along the trunk; NaN without a common trunk layer.
        branch_error_decades: the same over the other layers; NaN without any.
        weight_error_decades: the same over the parameters' gradients, absolute; NaN without any.
        outside: trunk layers that leave the band, the one nearest the loss first.
        unmatched: measured layers without a forecast.
        findings: one (HW701, a warning) when trunk layers leave the band: from which layer on, by how much, what may be
            the cause and what to try; empty otherwise.
        times: gradients over time of the recurrent layers that both have; absolute, not relative to a layer.
    """

    SCHEMA: ClassVar[str] = "headwater.comparison"

    rows: tuple[ComparisonRow, ...]
    rms_error_decades: float
    branch_error_decades: float
    weight_error_decades: float
    outside: tuple[str, ...]
    unmatched: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    times: tuple[TimeComparison, ...] = ()

    @property
    def time_error_decades(self) -> float:
        """RMS error of log10 rms(∂L/∂h_t) over all steps and states; NaN without a recurrent layer."""
        return _rms(
            [
                b - a
                for time in self.times
                for a, b in zip(time.forecast_log10, time.measured_log10, strict=True)
                if a is not None and b is not None
            ]
        )

    def sentence(self) -> str:
        """The comparison in one sentence."""
        if math.isnan(self.rms_error_decades):
            return "Forecast and measurement have no trunk layer in common."
        lead = f"Forecast and measurement differ by {self.rms_error_decades:.3f} decades (rms along the trunk)"
        return f"{lead}; measured departs from theory from {self.outside[0]} on." if self.outside else f"{lead}."


def _measured(row: Any, name: str = "gradient") -> tuple[float, int] | None:
    """Log10 rms and of how many draws it is the mean."""
    spread = row.spread.get(f"{name}.rms")
    if spread is not None and math.isfinite(spread.mean):
        return float(spread.mean), max(1, spread.count)
    statistics = getattr(row, name)
    if statistics is None or statistics.nonfinite_count or not math.isfinite(statistics.rms_log10):
        return None
    return float(statistics.rms_log10), 1


def _outside(difference: float, band: float) -> bool:
    return abs(difference) > max(_FLOOR, _BANDS * band)


def compare_forecast(forecast: Forecast, profile: Profile) -> Comparison:
    """Hold a forecast against a measurement of the same architecture.

    Args:
        forecast: from ``predict``.
        profile: from ``measure``; of several draws their mean of log10 rms is compared.

    Returns:
        The comparison.
    """
    known = {row.name: row for row in forecast.layers}
    pairs: list[tuple[str, bool, float, float, float]] = []
    unmatched = []
    for layer in profile.layers:
        value, row = _measured(layer), known.get(layer.name)
        if value is None:
            continue
        if row is None or row.gradient_rms_log10 is None or not math.isfinite(row.gradient_rms_log10):
            unmatched.append(layer.name)
            continue
        band = (row.gradient_band_decades or 0.0) / math.sqrt(value[1])
        pairs.append((layer.name, layer.on_trunk and row.on_trunk, row.gradient_rms_log10, value[0], band))
    reference = next((p for p in reversed(pairs) if p[1]), pairs[-1] if pairs else None)
    rows = []
    for name, on_trunk, predicted, measured, band in pairs:
        assert reference is not None
        a, b = predicted - reference[2], measured - reference[3]
        rows.append(
            ComparisonRow(
                name=name,
                on_trunk=on_trunk,
                forecast_log10=a,
                measured_log10=b,
                band_decades=band,
                outside=_outside(b - a, band),
            )
        )
    weights = []
    for parameter in profile.parameters:
        found = _measured(parameter)
        match = next((p for p in forecast.parameters if p.name == parameter.name), None)
        if found is None or match is None or match.gradient_rms_log10 is None:
            continue
        if math.isfinite(match.gradient_rms_log10):
            weights.append(match.gradient_rms_log10 - found[0])
    leaving = [row for row in reversed(rows) if row.on_trunk and row.outside]
    return Comparison(
        rows=tuple(rows),
        rms_error_decades=_rms([r.difference_decades for r in rows if r.on_trunk]),
        branch_error_decades=_rms([r.difference_decades for r in rows if not r.on_trunk]),
        weight_error_decades=_rms(weights),
        outside=tuple(row.name for row in leaving),
        unmatched=tuple(unmatched),
        findings=(_departure(forecast, profile, leaving),) if leaving else (),
        times=compare_times(forecast.times, profile.times),
    )


def _rms(values: list[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values) / len(values)) if values else math.nan


# -------------------------------------------------------------------- why


def _departure(forecast: Forecast, profile: Profile, leaving: list[ComparisonRow]) -> Finding:
    """The finding.

    Args:
        forecast: from ``predict``.
        profile: from ``measure``.
        leaving: trunk rows outside the band, nearest the loss first.

    Returns:
        Where the measurement departs, by how much, and the candidates for a cause in the order in which they are tried.
    """
    first = leaving[0]
    worst = max(leaving, key=lambda row: abs(row.difference_decades))
    candidates = list(_candidates(forecast, profile, first))
    lead = (
        f"Measured departs from theory from {first.name} on: {_decades(first.measured_log10)} decades there, forecast "
        f"{_decades(first.forecast_log10)} ± {first.band_decades:.2f}."
    )
    return Finding(
        code=DEPARTURE,
        defect="departure from theory",
        severity=Severity.WARNING,
        where=tuple(row.name for row in reversed(leaving)),
        evidence=(
            Evidence(f"measured minus forecast at {first.name}", first.difference_decades, "decades",
                     f"limit ±{max(_FLOOR, _BANDS * first.band_decades):.2g}"),
            Evidence(f"the most, at {worst.name}", worst.difference_decades, "decades"),
            Evidence("trunk layers outside", len(leaving)),
            Evidence("draws measured", profile.draws),
        ),
        cause=" ".join([lead, *(cause for cause, _ in candidates)]),
        advice=" ".join(dict.fromkeys(advice for _, advice in candidates)),
    )  # fmt: skip


def _candidates(forecast: Forecast, profile: Profile, first: ComparisonRow) -> Iterator[tuple[str, str]]:
    """Each candidate with its own number, and what to do about it; a general one where no number points anywhere."""
    found = False
    for candidate in (
        _other_loss(forecast, profile),
        _other_values(forecast, profile),
        _other_signal(forecast, profile),
        _number_format(forecast, profile, first),
        _chance(profile, first),
    ):
        if candidate is not None:
            found = True
            yield candidate
    if forecast.coverage.assumptions:
        yield (
            f"The forecast lists {_counted(len(forecast.coverage.assumptions), 'broken assumption')}.",
            " ".join(f"{text[:1].upper()}{text[1:]}." for text in forecast.coverage.assumptions),
        )
    elif not found:
        yield (
            "The weights have the scale of their initial law and the forward signal is as forecast: what is left is that "
            "weights depend on each other or on the data (trained, tied, pruned), that something rewrites gradients on "
            "the way (a hook, a custom backward), or that a rule of the theory is too coarse here.",
            "Compare with draws=20 of freshly initialised weights: if the departure goes, it is in these weights; if it "
            "stays, trust the measurement.",
        )


def _other_loss(forecast: Forecast, profile: Profile) -> tuple[str, str] | None:
    if forecast.loss_source == profile.loss_source:
        return None
    return (
        f"The forecast is of another loss ({forecast.loss_source}) than the measurement ({profile.loss_source}).",
        "Give predict and measure the same targets and loss_fn.",
    )


def _laws(forecast: Forecast) -> dict[str, float]:
    """The rms of every parameter by its initial law; NaN when that is not known."""
    return {p.name: math.sqrt(p.value_mean**2 + p.value_variance) for p in forecast.parameters}


def _off_law(parameter: ParameterProfile, law: float) -> float | None:
    """log10 of the rms of the values over that of their law, where sampling does not explain it."""
    value = parameter.value
    if not (law > 0.0) or value.nonfinite_count or not value.count or not (value.rms > 0.0):
        return None
    ratio = math.log10(value.rms / law)
    # The rms of n Gaussian numbers has a relative variance of 1/(2n).
    sampling = math.sqrt(0.5 / value.count) / math.log(10.0)
    return ratio if abs(ratio) > max(_VALUE_FLOOR, 3.0 * sampling) else None


def _other_values(forecast: Forecast, profile: Profile) -> tuple[str, str] | None:
    """Parameters whose values are larger or smaller than their initial law says."""
    laws = _laws(forecast)
    found = []
    for parameter in profile.parameters:
        ratio = _off_law(parameter, laws.get(parameter.name, math.nan))
        if ratio is not None:
            found.append((parameter.name, ratio))
    if not found:
        return None
    found.sort(key=lambda pair: -abs(pair[1]))
    told = ", ".join(f"{name} ×{10.0**ratio:.3g}" for name, ratio in found[:_SHOWN])
    return (
        f"{_counted(len(found), 'parameter')} differ{'s' if len(found) == 1 else ''} in rms from the initial law that the "
        f"forecast used (most: {told}).",
        "If these weights were trained or loaded, measure() is right and the theory of initialisation does not speak of "
        "them; if not, an initialiser ran that the forecast did not see: pass predict the function that makes this model, "
        "or the model itself.",
    )


def _other_signal(forecast: Forecast, profile: Profile) -> tuple[str, str] | None:
    """The first layer whose activation leaves its band: the cause lies in the forward pass or in the inputs."""
    rows: dict[str, LayerForecast] = {row.name: row for row in forecast.layers}
    laws = _laws(forecast)
    for position, layer in enumerate(profile.layers):
        row, value = rows.get(layer.name), _measured(layer, "activation")
        if row is None or value is None or row.activation_rms_log10 is None:
            continue
        if not math.isfinite(row.activation_rms_log10):
            continue
        difference = value[0] - row.activation_rms_log10
        if not _outside(difference, (row.activation_band_decades or 0.0) / math.sqrt(value[1])):
            continue
        cause = (
            f"The forward signal departs first at {layer.name} (rms 10^{value[0]:.2f}, forecast "
            f"10^{row.activation_rms_log10:.2f})."
        )
        owned = {p.layer for p in profile.parameters if _off_law(p, laws.get(p.name, math.nan)) is not None}
        if layer.name in owned:
            return cause, "The values of its own parameters explain where the forward signal departs."
        if position == 0:
            return (
                cause,
                "Forecast with the inputs that were measured: other inputs have other moments and covariances.",
            )
        return cause, f"Look at what enters {layer.name} before the gradient: the backward pass depends on it."
    return None


def _number_format(forecast: Forecast, profile: Profile, first: ComparisonRow) -> tuple[str, str] | None:
    try:
        failure = forecast.fails_at(profile.dtype)
    except InputError:  # a format whose limits are not tabulated
        return None
    if failure is None:
        return None
    return (
        f"The gradient is forecast to leave the range of {failure.dtype} at {failure.layer} "
        f"(10^{failure.gradient_rms_log10:.1f} against 10^{failure.limit_log10:.1f}), and what is rounded to zero or "
        "overflows is not as in exact arithmetic.",
        f"Measure in float64, or scale the loss; {first.name} is where the difference shows first.",
    )


def _chance(profile: Profile, first: ComparisonRow) -> tuple[str, str] | None:
    bands = abs(first.difference_decades) / first.band_decades if first.band_decades > 0.0 else math.inf
    if bands > _BY_CHANCE or profile.draws > 1:
        return None
    return (
        f"It is one draw of the weights, {bands:.1f} standard deviations off.",
        "Measure with draws=20: what is left of the difference then is not chance.",
    )


def _decades(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
