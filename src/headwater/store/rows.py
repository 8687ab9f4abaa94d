"""Numbers that the writer derives from a row while it has it at hand, and what a reader derives from a stored one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from headwater.records.statistics import LOG10_2
from headwater.records.step import Block

__all__ = ["element_count", "norm_of_all_log10", "norm_rms_log10", "squared_norm_log10", "statistics_rms_log10"]


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of this shape; 1 for a scalar."""
    return math.prod(shape)


def statistics_rms_log10(row: Sequence[float]) -> float:
    """log10 of the root mean square of a row of whole statistics.

    As ``Statistics.rms_log10``, without the object in between (a tenth of the time).

    Args:
        row: in the order of ``STATISTICS_COLUMNS``.

    Returns:
        -inf when every finite element is zero, NaN when there is none or it was not observed.
    """
    finite = row[0] - row[2] - row[3]
    if not finite > 0.0:
        return math.nan
    total = row[5]
    squares = row[7] + total * total / finite
    if squares > 0.0:
        return 0.5 * math.log10(squares / finite) + row[4] * LOG10_2
    return -math.inf if squares == 0.0 else math.nan


def norm_rms_log10(row: Sequence[float], count: int) -> float:
    """log10 of the root mean square of a row of norms.

    Args:
        row: in the order of ``NORM_COLUMNS``; the norm is over the finite elements.
        count: number of elements of the tensor.

    Returns:
        As :func:`statistics_rms_log10`.
    """
    finite = count - row[1] - row[2]
    if not finite > 0.0 or math.isnan(row[0]):
        return math.nan
    return math.log10(row[0]) - 0.5 * math.log10(finite) if row[0] > 0.0 else -math.inf


def squared_norm_log10(rms_log10: float, finite_count: float) -> float:
    """log10 of Σx² from the root mean square and the number of finite elements; -inf for none."""
    return 2.0 * rms_log10 + math.log10(finite_count) if finite_count > 0.0 else -math.inf


def norm_of_all_log10(blocks: Iterable[tuple[Block, Sequence[float]]], loss_scale: float | None) -> float | None:
    """log10 of the l2 norm of the whole gradient before clipping, over its finite elements.

    Args:
        blocks: the gradient blocks of one step, each with its rows' ``rms_log10``.
        loss_scale: that a ``backward`` gradient is still multiplied by.

    Returns:
        -inf when the whole gradient is zero; None when no gradient of the right phase was recorded.
    """
    phases = {block.phase: (block, logs) for block, logs in blocks}
    if "pre_clip" in phases:
        block, logs = phases["pre_clip"]
        offset = 0.0
    elif "backward" in phases and loss_scale is not None and loss_scale > 0.0:
        block, logs = phases["backward"]
        offset = -math.log10(loss_scale)
    else:
        return None
    count = _finite_counter(block)
    if count is None:
        return None
    squares = [
        squared_norm_log10(rms, count(index))
        for index, rms in enumerate(logs)
        if not math.isnan(rms)  # not observed, or without one finite element
    ]
    if not squares:
        return None
    top = max(squares)
    if top == -math.inf:
        return -math.inf
    return 0.5 * (top + math.log10(math.fsum(10.0 ** (each - top) for each in squares))) + offset


def _finite_counter(block: Block) -> Callable[[int], float] | None:
    rows, tensors = block.rows, block.tensors
    if "count" in block.columns:
        return lambda index: rows[index][0] - rows[index][2] - rows[index][3]
    if "l2_norm" in block.columns:
        return lambda index: element_count(tensors[index].shape) - rows[index][1] - rows[index][2]
    return None
