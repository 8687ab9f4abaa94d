"""One statistic of many tensors over a whole run, without loading the run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headwater.records.run import StatisticMatrix
from headwater.records.step import WatchedTensor
from headwater.store.derived import Reading, Readings
from headwater.store.history import History, StoredBlock

__all__ = ["ROWS_READ", "statistic_matrix"]

ROWS_READ = 1_000_000
"""Rows of numbers that a matrix reads at most, a second or two (chosen by us; see benchmarks/run_file.py)."""


def statistic_matrix(
    history: History,
    readings: Readings,
    blocks: Sequence[StoredBlock],
    tensors: dict[int, WatchedTensor],
    max_columns: int,
) -> StatisticMatrix:
    """A heatmap's numbers.

    Steps are put together, ``stride`` neighbouring ones to a column. A column is the median over its steps; where all
    of them would be more than :data:`ROWS_READ` rows, over as many evenly spaced ones as fit, at least one.

    Args:
        history: of the run.
        readings: how the statistic is read from each kind of block.
        blocks: one per recorded step and group.
        tensors: the rows, by id.
        max_columns: how many columns there may be.

    Returns:
        The matrix; a tensor that was never observed has a row of None.
    """
    by_step: dict[int, list[StoredBlock]] = {}
    for block in blocks:
        if readings(block.form, block.columns) is not None:
            by_step.setdefault(block.at.row.step, []).append(block)
    steps = sorted(by_step)
    stride = max(1, math.ceil(len(steps) / max(1, max_columns)))
    columns = [steps[first : first + stride] for first in range(0, len(steps), stride)]
    per_column = max(1, ROWS_READ // max(1, len(columns) * max(1, len(tensors))))
    values: dict[int, list[float | None]] = {number: [None] * len(columns) for number in tensors}
    for place, column in enumerate(columns):
        cells: dict[int, list[float]] = {number: [] for number in tensors}
        for step in evenly_spaced(column, per_column):
            for block in by_step[step]:
                reading = readings(block.form, block.columns)
                assert reading is not None  # by_step has no other blocks
                _collect(history, block, reading, tensors, cells)
        for number, found in cells.items():
            if found:
                values[number][place] = _middle(found)
    return StatisticMatrix(
        tensors=tuple(tensors.values()),
        steps=tuple(column[0] for column in columns),
        values=tuple(tuple(values[number]) for number in tensors),
        stride=stride,
    )


def evenly_spaced(items: Sequence[int], count: int) -> Sequence[int]:
    """At most ``count`` of the items, at even distances, the middle one when there is one.

    Args:
        items: in order.
        count: at least 1.

    Returns:
        The chosen ones, in order.

    Example:
        >>> evenly_spaced(range(10), 1), list(evenly_spaced(range(9), 3))
        ([5], [1, 4, 7])
    """
    if len(items) <= count:
        return items
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def _collect(
    history: History,
    block: StoredBlock,
    reading: Reading,
    tensors: dict[int, WatchedTensor],
    cells: dict[int, list[float]],
) -> None:
    rows = history.cells(block, reading.columns, tensors)
    if reading.is_column:
        nan = math.nan
        for number, (value,) in rows:
            if number in cells:
                cells[number].append(nan if value is None else value)
        return
    derive = reading.value
    for number, row in rows:
        if number in cells:
            cells[number].append(derive(row, tensors[number].shape))


def _middle(found: list[float]) -> float:
    """The median; values that are no number count only when there is nothing else."""
    known = sorted([value for value in found if value == value])
    if not known:
        return math.nan
    half = len(known) // 2
    return known[half] if len(known) % 2 or known[half - 1] == known[half] else (known[half - 1] + known[half]) / 2.0
