"""Which parameters make up the norm of a gradient."""

from __future__ import annotations

import math

from headwater.records.statistics import LOG10_2, Statistics
from headwater.records.step import Block

__all__ = ["shares"]


def shares(block: Block) -> tuple[tuple[str, float], ...]:
    """Share of every tensor in the sum of squares of all of them, Σx² of one over Σx² of all.

    Args:
        block: of whole statistics or norms.

    Returns:
        (name, share), largest first, summing to 1. Where there are NaN or infinite elements: the share of these. Empty
        when everything is zero, or nothing was observed.
    """
    squares: dict[str, float] = {}
    broken: dict[str, float] = {}
    for tensor, row in zip(block.tensors, block.rows, strict=True):
        values = dict(zip(block.columns, row, strict=True))
        broken[tensor.name] = _number(values.get("nan_count")) + _number(values.get("inf_count"))
        squares[tensor.name] = _squared_norm_log10(values)
    if sum(broken.values()):
        total = math.fsum(broken.values())
        parts = {name: count / total for name, count in broken.items()}
    else:
        # Relative to the largest, so that squares outside the range of a double do no harm.
        top = max(squares.values(), default=-math.inf)
        if top == -math.inf:
            return ()
        relative = {name: 10.0 ** (value - top) for name, value in squares.items()}
        total = math.fsum(relative.values())
        parts = {name: value / total for name, value in relative.items()}
    return tuple(sorted(parts.items(), key=lambda part: -part[1]))


def _number(value: float | None) -> float:
    return 0.0 if value is None or math.isnan(value) else value


def _squared_norm_log10(values: dict[str, float]) -> float:
    if "count" in values:
        row = [*values.values()]
        found = Statistics(*(int(_number(value)) for value in row[:5]), *row[5:])
        squares, exponent = found.scaled_sum_squares, 2 * found.scale_log2
    else:
        # A norm of 1e-200 has no square in a double.
        norm = values.get("l2_norm", 0.0)
        return 2.0 * math.log10(norm) if norm > 0.0 else -math.inf
    return math.log10(squares) + exponent * LOG10_2 if squares > 0.0 else -math.inf
