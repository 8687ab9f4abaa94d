"""Numbers as words: every sentence of a study's answers is chosen and filled by what was measured."""

from __future__ import annotations

import math

from headwater.records.study import Trend

__all__ = ["FLAT", "decades", "factor", "hides_its_signal", "moves", "percent", "power", "rate", "signed"]

# Decades per layer below which a trend is called flat: half a decade over 20 layers. Chosen by us.
FLAT = 0.025


def decades(value: float, digits: int = 2) -> str:
    """A number of decades without its sign, such as ``0.85``."""
    size = abs(value)
    return f"{size:.{digits}f}" if size < 10 else f"{size:.{digits - 1}f}"


def signed(value: float, digits: int = 2) -> str:
    """A number of decades with its sign, such as ``−0.85``."""
    text = decades(value, digits)
    return text if float(text) == 0.0 else f"{'−' if value < 0 else '+'}{text}"


def factor(log10: float) -> str:
    """10 to a power as a factor, such as ``× 0.141``."""
    return f"× {10.0**log10:.3g}" if -3 < log10 < 4 else f"× {power(log10)}"


def power(log10: float) -> str:
    """10 to a power in scientific notation, such as ``1.3e−18``, also outside the range of a double."""
    if not math.isfinite(log10):
        return "0" if log10 < 0 else "∞"
    exponent = math.floor(log10)
    mantissa = 10.0 ** (log10 - exponent)
    if f"{mantissa:.1f}" == "10.0":
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}e{'−' if exponent < 0 else '+'}{abs(exponent):02d}"


def percent(share: float) -> str:
    """A share as a percentage: never 0 % or 100 % unless it is exactly that."""
    if share in (0.0, 1.0) or math.isnan(share):
        return "—" if math.isnan(share) else f"{100 * share:.0f} %"
    text = (
        f"{100 * share:.0f}" if 0.1 <= share <= 0.9 else f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.1f}"
    )
    return f"{text} %" if float(text) < 100 else "> 99.9 %"


def moves(trend: Trend) -> str:
    """``falls``, ``grows`` or ``stays level``, by the trend's interval.

    Args:
        trend: a rate with its interval.

    Returns:
        ``stays level`` where the mean rate is below 0.025 decades per layer (chosen by us), or the interval holds 0.
    """
    if abs(trend.decades_per_layer) < FLAT or trend.low <= 0.0 <= trend.high:
        return "stays level"
    return "falls" if trend.decades_per_layer < 0 else "grows"


def rate(trend: Trend) -> str:
    """A rate with its interval, such as ``falls 0.852 decades per layer (95 % interval −0.853 to −0.852 over …)``."""
    interval = f"95 % interval {signed(trend.low, 3)} to {signed(trend.high, 3)} over {trend.draws:,} networks"
    if moves(trend) == "stays level":
        return f"stays level ({signed(trend.decades_per_layer, 3)} decades per layer; {interval})"
    return f"{moves(trend)} {decades(trend.decades_per_layer, 3)} decades per layer ({interval})"


def hides_its_signal(weight: Trend | None, hidden: Trend | None) -> bool:
    """Whether weight gradients look level although ∂L/∂h is not.

    Args:
        weight: the trend of ∂L/∂W.
        hidden: the trend of ∂L/∂h.

    Returns:
        True where ∂L/∂W moves by less than 0.05 decades per layer and ∂L/∂h by more than 0.1 (chosen by us).
    """
    if weight is None or hidden is None:
        return False
    return abs(weight.decades_per_layer) < 2 * FLAT and abs(hidden.decades_per_layer) > 4 * FLAT
