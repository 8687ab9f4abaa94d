"""What is forecast of a recurrent layer step by step, and how it lines up with what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.records.lookup import no_such
from headwater.records.profile import TimeProfile

__all__ = ["TimeComparison", "TimeForecast", "compare_times", "rms_over_time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeForecast:
    """One state of a recurrent layer over time.

    Attributes:
        layer: name of the recurrent layer's row, as in ``TimeProfile``.
        state: ``hidden`` (h_t), or ``cell`` (c_t, LSTM).
        stack: which of the stacked layers, from 0.
        reverse: whether this is the backward direction of a bidirectional layer.
        activation_rms_log10: log10 rms(h_t), t = 0 first; empty where only the gradient is followed (cells of ``nn.LSTM``).
        gradient_rms_log10: log10 rms(∂L/∂h_t), t = 0 first; None where it is unknown, empty where no gradient comes back.
    """

    layer: str
    state: Literal["hidden", "cell"]
    stack: int
    reverse: bool
    activation_rms_log10: tuple[float | None, ...]
    gradient_rms_log10: tuple[float | None, ...]

    @property
    def decades(self) -> float:
        """log10 rms(∂L/∂h) at t = 0 minus that at the last step; NaN where one of them is unknown."""
        values = self.gradient_rms_log10
        if not values or values[0] is None or values[-1] is None:
            return math.nan
        return values[0] - values[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeComparison:
    """One state over time, forecast and measured.

    Attributes:
        layer: name of the recurrent layer.
        state: ``hidden`` or ``cell``.
        stack: which of the stacked layers.
        reverse: which direction.
        forecast_log10: log10 rms(∂L/∂h_t), t = 0 first; None where either side has no finite number.
        measured_log10: likewise.
        rms_error_decades: root mean square of the difference over the steps that both have; NaN without one.
    """

    layer: str
    state: Literal["hidden", "cell"]
    stack: int
    reverse: bool
    forecast_log10: tuple[float | None, ...]
    measured_log10: tuple[float | None, ...]
    rms_error_decades: float


def rms_over_time(
    times: Sequence[TimeForecast], layer: str, state: str, kind: str, stack: int | None, reverse: bool | None
) -> tuple[float, ...]:
    """One rms per time step, pooled over the stacked layers and directions that are asked for.

    Args:
        times: of a forecast.
        layer: name of a recurrent layer.
        state: ``hidden`` or ``cell``.
        kind: ``gradient`` or ``activation``.
        stack: which of the stacked layers; None pools all of them.
        reverse: which direction; None pools both.

    Returns:
        t = 0 first; NaN where it is unknown.

    Raises:
        KeyError: the layer is not recurrent, or has no such state.
    """
    of_layer = [t for t in times if t.layer == layer]
    if not of_layer:
        raise KeyError(no_such("recurrent layer", layer, sorted({t.layer for t in times})))
    chosen = [
        t
        for t in of_layer
        if t.state == state and stack in (None, t.stack) and (reverse is None or reverse == t.reverse)
    ]
    values = [t.activation_rms_log10 if kind == "activation" else t.gradient_rms_log10 for t in chosen]
    if not any(values):
        have = sorted({f"state={t.state!r}, stack={t.stack}, reverse={t.reverse}" for t in of_layer})
        raise KeyError(
            f"{layer} has no {kind} of state={state!r}, stack={stack}, reverse={reverse}; it has {'; '.join(have)}"
        )
    # All states of a layer have the same number of elements: the pooled mean square is their mean.
    return tuple(_pooled(step) for step in zip(*(v for v in values if v), strict=True))


def _pooled(logs: Sequence[float | None]) -> float:
    known = [v for v in logs if v is not None]
    if len(known) < len(logs):
        return math.nan
    return math.sqrt(math.fsum(10.0 ** (2.0 * min(v, 150.0)) for v in known) / len(known))


def compare_times(times: Sequence[TimeForecast], measured: Sequence[TimeProfile]) -> tuple[TimeComparison, ...]:
    """Hold the gradients over time of a forecast against those of a profile.

    Args:
        times: of the forecast.
        measured: of the profile; of several draws each step is the pooled rms over them.

    Returns:
        One row for each state that both have, in the forecast's order.
    """
    known = {(t.layer, t.state, t.stack, t.reverse): t for t in measured}
    rows = []
    for time in times:
        match = known.get((time.layer, time.state, time.stack, time.reverse))
        if match is None:
            continue
        pairs = [
            (value, step.rms_log10)
            if value is not None and math.isfinite(value) and step is not None and math.isfinite(step.rms_log10)
            else (None, None)
            for value, step in zip(time.gradient_rms_log10, match.steps, strict=False)
        ]
        differences = [m - f for f, m in pairs if f is not None and m is not None]
        error = math.sqrt(math.fsum(d * d for d in differences) / len(differences)) if differences else math.nan
        rows.append(
            TimeComparison(
                layer=time.layer,
                state=time.state,
                stack=time.stack,
                reverse=time.reverse,
                forecast_log10=tuple(f for f, _ in pairs),
                measured_log10=tuple(m for _, m in pairs),
                rms_error_decades=error,
            )
        )
    return tuple(rows)
