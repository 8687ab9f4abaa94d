"""Repeated blocks of layers folded into one row each, so that a deep network fits on a screen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["MAX_ROWS", "Fold", "block_name", "fold_rows"]

T = TypeVar("T")

MAX_ROWS = 60
"""Layers that a table lists one by one before it folds; about one tall terminal. Chosen by us."""
_LONGEST_PERIOD = 8  # blocks that make one repetition, such as (Linear, Sigmoid); chosen by us
_FEWEST_REPEATS = 4  # the first and the last stay open, so fewer would fold a single block; chosen by us
_INDEX = re.compile(r"(?:(?<=\.)|^)(\d+)(?=[.:#\[]|$)|(?<=#)(\d+)")


@dataclass(frozen=True, slots=True)
class Fold(Generic[T]):
    """Consecutive rows that are shown as one.

    Attributes:
        label: their names in short, such as ``blocks.3-7``.
        type: what repeats, such as ``5 × Block``.
        rows: what was folded, in its order.
    """

    label: str
    type: str
    rows: tuple[T, ...]


@dataclass(frozen=True, slots=True)
class _Row(Generic[T]):
    name: str
    type: str
    record: T


@dataclass(frozen=True, slots=True)
class _Unit(Generic[T]):
    """The rows of one numbered block, or one row without a number at this level."""

    prefix: str | None
    index: str
    rows: tuple[_Row[T], ...]
    signature: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Run(Generic[T]):
    """Groups of blocks that repeat one after another."""

    groups: tuple[tuple[_Unit[T], ...], ...]


def block_name(name: str) -> str:
    """The numbered block that a layer belongs to.

    Args:
        name: of a layer.

    Returns:
        The name up to its first number, the whole name when it has none.

    Example:
        >>> block_name("transformer.h.3.attn.c_proj"), block_name("fc1")
        ('transformer.h.3', 'fc1')
    """
    found = _INDEX.search(name)
    return name[: found.end()] if found else name


def fold_rows(
    records: Sequence[T], name: Callable[[T], str], type: Callable[[T], str], max_rows: int | None = MAX_ROWS
) -> list[T | Fold[T]]:
    """List records one by one, repeated blocks folded when there are more than ``max_rows``.

    The first and the last block of every repetition stay open; those between are folded into as many rows as fit,
    each for a few neighbouring blocks, so that the trend along the depth stays visible.

    Args:
        records: of layers or parameters, in the order of the table.
        name: the dotted name of a record.
        type: what it is; blocks are repetitions when names (but for their number) and types agree.
        max_rows: the number of rows to aim at; None lists everything.

    Returns:
        Records and folds in the same order; together they hold every record exactly once.
    """
    if max_rows is None or len(records) <= max_rows:
        return list(records)
    rows = [_Row(name(r), type(r), r) for r in records]
    plan = list(_plan(rows, 0))
    runs = [entry for entry in plan if isinstance(entry, _Run)]
    middles = sum(len(run.groups) - 2 for run in runs)
    open_rows = len(plan) - len(runs)
    open_rows += sum(len(u.rows) for run in runs for group in (run.groups[0], run.groups[-1]) for u in group)
    budget = max_rows - open_rows
    result: list[T | Fold[T]] = []
    for entry in plan:
        if isinstance(entry, _Row):
            result.append(entry.record)
            continue
        between = entry.groups[1:-1]
        chunks = min(len(between), max(1, budget * len(between) // middles))
        result += [row.record for unit in entry.groups[0] for row in unit.rows]
        result += [_fold(between[i * len(between) // chunks : (i + 1) * len(between) // chunks]) for i in range(chunks)]
        result += [row.record for unit in entry.groups[-1] for row in unit.rows]
    return result if len(result) <= 2 * max_rows else _fold_evenly(rows, max_rows)


def _plan(rows: Sequence[_Row[T]], level: int) -> Iterator[_Row[T] | _Run[T]]:
    units = list(_units(rows, level))
    start = 0
    while start < len(units):
        period, repeats = _repetition(units, start)
        if repeats:
            stop = start + period * repeats
            yield _Run(tuple(tuple(units[i : i + period]) for i in range(start, stop, period)))
            start = stop
            continue
        unit = units[start]
        if unit.prefix is not None and len(unit.rows) > _FEWEST_REPEATS:
            yield from _plan(unit.rows, level + 1)
        else:
            yield from unit.rows
        start += 1


def _units(rows: Sequence[_Row[T]], level: int) -> Iterator[_Unit[T]]:
    start = 0
    while start < len(rows):
        key = _key(rows[start].name, level)
        stop = start + 1
        while key is not None and stop < len(rows) and _key(rows[stop].name, level) == key:
            stop += 1
        group = tuple(rows[start:stop])
        if key is None:
            yield _Unit(None, "", group, ((group[0].name, group[0].type),))
        else:
            prefix, index = key
            cut = len(prefix) + len(index)
            yield _Unit(prefix, index, group, tuple((row.name[cut:], row.type) for row in group))
        start = stop


def _key(name: str, level: int) -> tuple[str, str] | None:
    for depth, found in enumerate(_INDEX.finditer(name)):
        if depth == level:
            return name[: found.start()], found.group()
    return None


def _repetition(units: Sequence[_Unit[T]], start: int) -> tuple[int, int]:
    """Period and number of repeats of the longest repetition that begins at ``start``; (0, 0) when there is none."""
    best = (0, 0)
    if units[start].prefix is None:
        return best
    for period in range(1, _LONGEST_PERIOD + 1):
        stop = start + period
        while (
            stop < len(units)
            and units[stop].prefix == units[start].prefix
            and units[stop].signature == units[stop - period].signature
        ):
            stop += 1
        if any(unit.prefix != units[start].prefix for unit in units[start : start + period]):
            break
        repeats = (stop - start) // period
        if repeats >= _FEWEST_REPEATS and repeats * period > best[0] * best[1]:
            best = (period, repeats)
    return best


def _fold(groups: Sequence[Sequence[_Unit[T]]]) -> Fold[T]:
    units = [unit for group in groups for unit in group]
    rows = tuple(row for unit in units for row in unit.rows)
    first, last = units[0], units[-1]
    label = f"{first.prefix}{first.index}" + (f"-{last.index}" if last is not first else "")
    inner = [row for unit in groups[0] for row in unit.rows]
    whole = [unit.rows[-1].type for unit in groups[0] if unit.rows[-1].name == f"{unit.prefix}{unit.index}"]
    if len(whole) == len(groups[0]) and len(whole) <= 3:
        what = "+".join(whole)
    elif len(inner) <= 3:
        what = "+".join(row.type for row in inner)
    else:
        what = f"{len(inner)} layers"
    records = tuple(row.record for row in rows)
    return Fold(label, f"{len(groups)} × {what}", records)


def _fold_evenly(layers: Sequence[_Row[T]], max_rows: int) -> list[T | Fold[T]]:
    """Where no repetition is found: neighbours folded, whatever they are."""
    result: list[T | Fold[T]] = []
    for i in range(max_rows):
        part = tuple(layers[i * len(layers) // max_rows : (i + 1) * len(layers) // max_rows])
        if len(part) == 1:
            result.append(part[0].record)
        else:
            result.append(
                Fold(f"{part[0].name} … {part[-1].name}", f"{len(part)} layers", tuple(row.record for row in part))
            )
    return result
