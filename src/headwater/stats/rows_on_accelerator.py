"""Moments of rows without a look at any value: on an accelerator a look would wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.stats.elements import as_computable

__all__ = ["COLUMNS", "divided_by_power", "has_float64", "merged", "rows_on_accelerator"]

COLUMNS = 11
"""Columns of a row of moments: the fields of records.Statistics, in their order."""
_COUNT, _ZERO, _NAN, _INF, _EXPONENT, _SUM, _SUM_ABS, _DEVIATIONS, _FOURTH, _MAX, _MIN = range(COLUMNS)


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64 at all (Apple's does not)."""
    return device.type != "mps"


def rows_on_accelerator(rows: Tensor, *, double: bool = True) -> Tensor:
    """Additive statistics of each row, by the same kernels whatever the values.

    Args:
        rows: shape (k, n), k and n at least 1, any dtype.
        double: sum in float64, where the fourth powers of every float32 are in range and no scale is needed. Otherwise
            (and for float64 input) rows are divided by a power of two near their largest magnitude.

    Returns:
        Shape (k, 11) on the same device, float64 (float32 if not ``double``).
    """
    x = as_computable(rows)
    scale_needed = x.dtype == torch.float64 or not double
    x = x.double() if double else x
    n = x.shape[1]
    clean = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    finite = torch.eq(clean, x, out=torch.empty_like(x))  # NaN equals nothing, an infinity not its 0
    nan = torch.isnan(x).sum(1)
    count = finite.sum(1)
    magnitude = clean.abs()
    largest = magnitude.amax(1)
    zero = torch.eq(magnitude, 0.0, out=torch.empty_like(x))
    zeros = zero.sum(1) - (n - count)
    # Zeros step aside to the largest number; the others stay as they are, since 0 * max is 0.
    smallest = torch.add(magnitude, zero, alpha=torch.finfo(x.dtype).max, out=zero).amin(1)
    smallest = torch.where(largest > 0.0, smallest, 0.0)
    exponent = torch.zeros_like(count)
    if scale_needed:
        power = torch.frexp(largest).exponent
        clean, largest = divided_by_power(clean, power[:, None]), divided_by_power(largest, power)
        magnitude = clean.abs()
        exponent = power.to(x.dtype)
    total, deviations = _centred(clean, finite, count.clamp(min=1.0))
    total_abs = magnitude.sum(1)
    fourths = magnitude.mul_(magnitude).mul_(magnitude).sum(1)
    everything = torch.full_like(count, float(n))
    return torch.stack(
        [everything, zeros, nan, everything - count - nan, exponent, total, total_abs, deviations, fourths, largest,
         smallest], dim=1,
    )  # fmt: skip


def _centred(y: Tensor, finite: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Σy and Σ(y - mean)² by the corrected two-pass formula: the sum of the deviations shows the mean's rounding."""
    mean = y.sum(1) / count
    deviation = (y - mean[:, None]).mul_(finite)
    rest = deviation.sum(1)
    squares = deviation.mul_(deviation).sum(1)
    return mean * count + rest, (squares - rest * rest / count).clamp_(min=0.0)


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """``2**exponent``, exact, for exponents of normal numbers: the bits of the number are written directly."""
    if dtype == torch.float64:
        return ((exponent.long() + 1023) << 52).view(torch.float64)
    return ((exponent.int() + 127) << 23).view(torch.float32)


def divided_by_power(x: Tensor, exponent: Tensor) -> Tensor:
    """``x / 2**exponent`` in two steps, since 2**149 (for the smallest float32) is itself out of range."""
    half = torch.div(exponent, 2, rounding_mode="floor")
    return x * _power_of_two(-half, x.dtype) * _power_of_two(half - exponent, x.dtype)


def merged(rows: Tensor) -> Tensor:
    """The moments of all rows together: ``Statistics.merge`` for rows on a device.

    Args:
        rows: shape (..., k, 11), float64.

    Returns:
        Shape (..., 11).
    """
    finite = rows[..., _COUNT] - rows[..., _NAN] - rows[..., _INF]
    # A row of zeros, or of nothing finite, has no scale of its own.
    has_scale = rows[..., _MAX] > 0.0
    scale = torch.where(has_scale, rows[..., _EXPONENT], -torch.inf).amax(-1, keepdim=True)
    scale = torch.where(has_scale.any(-1, keepdim=True), scale, 0.0)
    factor = torch.exp2(torch.where(has_scale, rows[..., _EXPONENT] - scale, 0.0))
    sums = rows[..., _SUM] * factor
    means = sums / finite.clamp(min=1.0)
    mean = sums.sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp(min=1.0)
    squared = factor * factor
    smallest = torch.where(rows[..., _MIN] > 0.0, rows[..., _MIN], torch.inf).amin(-1)
    counts = rows[..., : _INF + 1].sum(-2)
    rest = torch.stack(
        [
            scale[..., 0],
            sums.sum(-1),
            (rows[..., _SUM_ABS] * factor).sum(-1),
            (rows[..., _DEVIATIONS] * squared).sum(-1) + (finite * (means - mean).square()).sum(-1),
            (rows[..., _FOURTH] * squared * squared).sum(-1),
            (rows[..., _MAX] * factor).amax(-1),
            torch.where(smallest < torch.inf, smallest, 0.0),
        ],
        dim=-1,
    )
    return torch.cat([counts, rest], dim=-1)
