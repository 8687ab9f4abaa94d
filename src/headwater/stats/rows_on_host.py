"""Moments of rows in main memory: a look at a value is free here, so most rows take the short way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwater.records.statistics import Statistics
from headwater.stats.elements import as_computable

__all__ = ["rows_on_host"]

# Largest magnitudes of a row between which fourth powers of 65,536 elements need no scale: neither the sum of the
# large ones overflows, nor do the small ones that fall below the normal range matter beside the largest.
_NEEDS_NO_SCALE = {torch.float32: (2.0**-20, 2.0**26), torch.float64: (2.0**-200, 2.0**200)}

# Exponents e for which 2**-e is a normal number; beyond them a division takes two steps.
_ONE_STEP = {torch.float32: 126, torch.float64: 1022}

# Σy² - (Σy)²/n loses at most two bits while mean² stays below this share of the mean square (chosen by us).
_CANCELLATION_SHARE = 0.75


def rows_on_host(rows: Tensor) -> list[Statistics]:
    """Additive statistics of each row, with as few passes over the data as its values allow.

    Ordinary rows take eight: |x|, its largest, smallest and sum, Σx, x² and its sum, x⁴ and its sum (with one
    temporary). Non-finite elements, exact zeros, extreme magnitudes and a mean far above the spread cost more, in
    those blocks alone.

    Args:
        rows: shape (k, n), k and n at least 1, any dtype, in main memory.

    Returns:
        One record per row.
    """
    x = as_computable(rows)
    k, n = x.shape
    nan = inf = zero = exponents = [0] * k
    finite: Tensor | None = None
    magnitude = x.abs()
    tops = magnitude.amax(1).tolist()
    if not all(map(math.isfinite, tops)):
        nan, inf, finite, x = _without_nonfinite(x, magnitude)
        torch.abs(x, out=magnitude)
        tops = magnitude.amax(1).tolist()
    smallest = magnitude.amin(1).tolist()
    if 0.0 in smallest:
        zero, smallest = _zeros_and_smallest(magnitude)
        # Elements that were not finite are zeros by now, and are no zeros.
        zero = [z - a - b for z, a, b in zip(zero, nan, inf, strict=True)]
    low, high = _NEEDS_NO_SCALE[x.dtype]
    if not all(low <= top <= high or top == 0.0 for top in tops):
        exponents = [0 if low <= top <= high else math.frexp(top)[1] for top in tops]
        x = _divided_by_powers(x, exponents)
        torch.abs(x, out=magnitude)
        tops = [math.ldexp(top, -e) for top, e in zip(tops, exponents, strict=True)]
    counts = [n - a - b for a, b in zip(nan, inf, strict=True)]
    totals, absolutes, deviations, fourths = _sums(x, magnitude, finite, counts)
    columns = (zero, nan, inf, exponents, totals, absolutes, deviations, fourths, tops, smallest)
    return [Statistics(n, *row) for row in zip(*columns, strict=True)]


def _without_nonfinite(x: Tensor, magnitude: Tensor) -> tuple[list[int], list[int], Tensor, Tensor]:
    """NaN and infinity counts, a mask (1.0 where finite), and the rows with 0 in place of what is not."""
    # A comparison written into a float tensor is several times faster than one that makes a boolean tensor.
    infinite = torch.eq(magnitude, math.inf, out=torch.empty_like(x))
    nan = torch.ne(x, x, out=torch.empty_like(x))
    counts = [list(map(int, mask.sum(1).tolist())) for mask in (nan, infinite)]
    finite = infinite.add_(nan).neg_().add_(1.0)
    return counts[0], counts[1], finite, torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def _zeros_and_smallest(magnitude: Tensor) -> tuple[list[int], list[float]]:
    """The number of exact zeros, and the smallest magnitude that is not one (0 where all are)."""
    zero = torch.eq(magnitude, 0.0, out=torch.empty_like(magnitude))
    counts = list(map(int, zero.sum(1).tolist()))
    # Zeros step aside to the largest number; the others stay as they are, since 0 * max is 0.
    smallest = torch.add(magnitude, zero, alpha=torch.finfo(magnitude.dtype).max, out=zero).amin(1).tolist()
    n = magnitude.shape[1]
    return counts, [0.0 if z == n else s for z, s in zip(counts, smallest, strict=True)]


def _divided_by_powers(x: Tensor, exponents: list[int]) -> Tensor:
    """``x / 2**exponent`` row by row, exact but for elements 2**126 and more below the largest of their row."""

    def times_powers(y: Tensor, powers: list[int]) -> Tensor:
        return y * torch.tensor([[2.0**power] for power in powers], dtype=x.dtype)

    if all(abs(e) <= _ONE_STEP[x.dtype] for e in exponents):
        return times_powers(x, [-e for e in exponents])
    # 2**149, which the smallest float32 calls for, is itself out of range.
    halves = [e // 2 for e in exponents]
    x = times_powers(x, [-h for h in halves])
    return times_powers(x, [h - e for h, e in zip(halves, exponents, strict=True)])


def _sums(
    x: Tensor, magnitude: Tensor, finite: Tensor | None, counts: list[int]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Σy, Σ|y|, Σ(y - mean)² and Σy⁴ of each row; ``magnitude`` is overwritten."""
    totals: list[float] = x.sum(1).tolist()
    absolutes: list[float] = magnitude.sum(1).tolist()
    squares = magnitude.mul_(magnitude)
    sums_of_squares: list[float] = squares.sum(1).tolist()
    fourths: list[float] = squares.mul_(squares).sum(1).tolist()
    squares_of_means = [t * t / c if c else 0.0 for t, c in zip(totals, counts, strict=True)]
    if any(m > _CANCELLATION_SHARE * s for m, s in zip(squares_of_means, sums_of_squares, strict=True)):
        totals, deviations = _centred(x, magnitude, finite, totals, counts)
    else:
        deviations = [s - m for s, m in zip(sums_of_squares, squares_of_means, strict=True)]
    return totals, absolutes, deviations, fourths


def _centred(
    x: Tensor, temporary: Tensor, finite: Tensor | None, totals: list[float], counts: list[int]
) -> tuple[list[float], list[float]]:
    """Σy and Σ(y - mean)² by the corrected two-pass formula: the sum of the deviations shows the mean's rounding."""
    means = torch.tensor([t / c if c else 0.0 for t, c in zip(totals, counts, strict=True)], dtype=x.dtype)
    deviation = torch.sub(x, means[:, None], out=temporary)
    if finite is not None:
        deviation.mul_(finite)
    rests = deviation.sum(1).tolist()
    squares = deviation.mul_(deviation).sum(1).tolist()
    deviations = [max(0.0, s - r * r / c) if c else 0.0 for s, r, c in zip(squares, rests, counts, strict=True)]
    return [m * c + r for m, c, r in zip(means.tolist(), counts, rests, strict=True)], deviations
