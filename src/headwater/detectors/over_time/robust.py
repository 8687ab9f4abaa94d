"""Statistics that a few outliers do not move: median, MAD, and whether a series goes one way."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

from headwater.detectors.over_time.protocol import Memory

__all__ = ["NORMAL_MAD", "enter_window", "kendall_z", "mad", "median", "middle"]

NORMAL_MAD = 1.4826
"""σ of a normal distribution over its median absolute deviation: 1/Φ⁻¹(3/4)."""


def median(values: Sequence[float]) -> float:
    """The median of at least one number; of an even count the mean of the two in the middle."""
    return middle(sorted(values))


def middle(ordered: Sequence[float]) -> float:
    """The median of at least one number, given in ascending order."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def mad(ordered: Sequence[float]) -> float:
    """Median absolute deviation from the median, of numbers in ascending order."""
    centre = middle(ordered)
    return median([abs(value - centre) for value in ordered])


def enter_window(memory: Memory, value: float, length: int) -> None:
    """Let a number into a window of the last ``length`` ones, kept in order of arrival and in order of size.

    Args:
        memory: holds the lists ``window`` and ``ordered``; changed in place.
        value: a finite number.
        length: of the window; the oldest one leaves when it is full.
    """
    window, ordered = memory.setdefault("window", []), memory.setdefault("ordered", [])
    window.append(value)
    insort(ordered, value)
    if len(window) > length:
        del ordered[bisect_left(ordered, window.pop(0))]


def kendall_z(values: Sequence[float]) -> float:
    """Mann–Kendall's S over its standard deviation without a trend: beyond ±3.29 it is chance once in 1,000.

    The test assumes that deviations from the trend are independent of one another: thin a series whose neighbours go
    together before it is asked. It takes time quadratic in the number of values.

    Args:
        values: at least three finite numbers, in the order of time.

    Returns:
        Positive for a rise; 0 without any.

    Example:
        >>> round(kendall_z([1, 2, 3, 4, 100]), 2)
        2.45

    References:
        Sen, *Estimates of the regression coefficient based on Kendall's tau*, JASA 1968.
    """
    n = len(values)
    s = sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :])
    return s / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)  # of S, without ties
