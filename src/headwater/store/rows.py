"""Numbers that the writer derives from the rows of a block while it has them at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headwater.records.statistics import LOG10_2
from headwater.records.step import Block, GradientPhase, WatchedTensor
from headwater.store.schema import form_of

__all__ = ["Roots", "element_count", "gradient_norm_log10", "roots"]


@dataclass(slots=True)
class Roots:
    """Of every row of a block: log10 of its root mean square, and Σx² as ``squares · 4^exponents``.

    Where no element is finite, or the row was not observed, the first two are NaN.

    Attributes:
        rms_log10: over the finite elements.
        squares: likewise.
        exponents: likewise.
        nan_count: elements that are NaN, in all rows.
        inf_count: elements that are infinite, in all rows.
    """

    rms_log10: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    exponents: list[float] = field(default_factory=list)
    nan_count: float = 0.0
    inf_count: float = 0.0

    def norm_log10(self) -> float | None:
        """log10 of √Σx² over all elements: -inf when that is zero, NaN or inf as they are, None without an observed row."""
        if self.nan_count > 0.0:
            return math.nan
        if self.inf_count > 0.0:
            return math.inf
        known = [(s, e) for s, e in zip(self.squares, self.exponents, strict=True) if s == s]
        if not known:
            return None
        top = max((e for s, e in known if s > 0.0), default=None)
        if top is None:
            return -math.inf
        # Relative to the largest scale: the sum itself may be no double.
        total = math.fsum([s * 4.0 ** (e - top) for s, e in known if s > 0.0])
        return 0.5 * math.log10(total) + top * LOG10_2


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of this shape; 1 for a scalar."""
    return math.prod(shape)


def roots(block: Block) -> Roots | None:
    """Root mean squares of a block of statistics or norms; None for any other.

    As ``Statistics.rms_log10``, without the records in between (a tenth of the time): a run writes these by the million.

    Args:
        block: any block.

    Returns:
        One entry per row.
    """
    form = form_of(block)
    if form == "statistics":
        return _of_statistics(block.rows)
    if form == "norms":
        return _of_norms(block.rows, block.tensors)
    return None


def _of_statistics(rows: Sequence[Sequence[float]]) -> Roots:
    found = Roots()
    logs, all_squares, exponents, nan, log10 = (
        found.rms_log10, found.squares, found.exponents, math.nan, math.log10
    )  # fmt: skip
    for count, _, nans, infs, exponent, total, _, deviations, _, _, _ in rows:
        broken = nans + infs
        finite = count - broken
        if broken > 0.0:
            found.nan_count += nans
            found.inf_count += infs
        squares = deviations + total * total / finite if finite > 0.0 else nan
        if squares > 0.0:
            logs.append(0.5 * log10(squares / finite) + exponent * LOG10_2)
        else:
            logs.append(-math.inf if squares == 0.0 else nan)
        all_squares.append(squares)
        exponents.append(exponent)
    return found


def _of_norms(rows: Sequence[Sequence[float]], tensors: Sequence[WatchedTensor]) -> Roots:
    """The norm is over the finite elements, so is the mean."""
    found = Roots()
    for (norm, nans, infs), tensor in zip(rows, tensors, strict=True):
        finite = element_count(tensor.shape) - nans - infs
        if nans + infs > 0.0:
            found.nan_count += nans
            found.inf_count += infs
        if finite > 0.0 and norm > 0.0:
            found.rms_log10.append(math.log10(norm) - 0.5 * math.log10(finite))
        else:
            found.rms_log10.append(-math.inf if finite > 0.0 and norm == 0.0 else math.nan)
        mantissa, exponent = math.frexp(norm)  # the square of 1e-200 is no double
        found.squares.append(mantissa * mantissa if finite > 0.0 else math.nan)
        found.exponents.append(exponent)
    return found


def gradient_norm_log10(found: Mapping[GradientPhase | None, Roots], loss_scale: float | None) -> float | None:
    """log10 of the l2 norm of the whole gradient before clipping.

    Args:
        found: of the gradient blocks of one step, by phase.
        loss_scale: that a ``backward`` gradient is still multiplied by.

    Returns:
        -inf when the whole gradient is zero, NaN when an element is NaN, inf when one is infinite and none NaN; None when
        no gradient of the right phase was recorded.
    """
    if "pre_clip" in found:
        return found["pre_clip"].norm_log10()
    if "backward" in found and loss_scale is not None and loss_scale > 0.0:
        norm = found["backward"].norm_log10()
        return None if norm is None else norm - math.log10(loss_scale)
    return None
