"""A line of blocks over the steps of a run, with a mark where a number is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headwater.records.run_matrix import is_nonfinite
from headwater.reports.notation import scientific, sparkline

__all__ = ["BROKEN", "bad_text", "number_text", "trend_line"]

BROKEN = "×"
"""Stands for a moment at which an element was NaN or infinite."""


def trend_line(values_log10: Sequence[float | None], width: int) -> str:
    """A row of blocks, as :func:`~headwater.reports.notation.sparkline` draws it.

    Args:
        values_log10: log10 values: -inf for an exact zero, NaN or inf where an element was, None where nothing was
            observed.
        width: the largest number of characters.

    Returns:
        Blocks; ``×`` wherever one of the values that a block stands for is NaN or infinite, a space for nothing.

    Example:
        >>> trend_line([math.nan, -3.0, None, -2.0, -1.0, -math.inf], 10)
        '×▁ ▅█0'
        >>> trend_line([-1.0, -1.0, -1.0, math.inf], 2)
        '▄×'
    """
    count = len(values_log10)
    cells = min(width, count)
    broken = [
        any(is_nonfinite(v) for v in values_log10[i * count // cells : (i + 1) * count // cells]) for i in range(cells)
    ]
    line = sparkline([math.nan if v is None or v == math.inf else v for v in values_log10], width)
    return "".join(BROKEN if mark else block for mark, block in zip(broken, line, strict=True))


def bad_text(value_log10: float) -> str:
    """``NaN`` or ``inf``, for a log10 that stands for one of them."""
    return "NaN" if math.isnan(value_log10) else "inf"


def number_text(value: float) -> str:
    """A number with four digits; ``NaN``, ``inf`` and ``-inf`` as they are written everywhere."""
    return f"{value:.4g}" if math.isfinite(value) else scientific(value)
