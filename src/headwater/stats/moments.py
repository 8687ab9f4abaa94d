"""Additive statistics of tensors, without overflow, underflow or a copy of the tensor.

In main memory compiled code reads a tensor once (:mod:`headwater.stats.kernels`). Where there is none, and on an
accelerator, a tensor is read as rows of at most 65,536 elements by torch's own functions. In main memory a row is then
summed in float32 (float64 for float64 input), divided by a power of two where its fourth powers would leave the range;
on an accelerator it is summed in float64 where there is one. Short rows and torch's pairwise ``sum`` keep the rounding
error of a row near 1e-6. Rows are merged in double precision.

References:
    Higham, *The accuracy of floating point summation*, SIAM J. Sci. Comput. 1993 (pairwise summation).
    Chan, Golub, LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1982
    (the merge of squared deviations, and the corrected two-pass variance).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace

import torch
from torch import Tensor

from headwater.records.statistics import Statistics
from headwater.stats import kernels
from headwater.stats.elements import as_computable, flat_view, implicit_zero_count, stored_pieces
from headwater.stats.rows_on_accelerator import COLUMNS, has_float64, merged, rows_on_accelerator
from headwater.stats.rows_on_host import rows_on_host

__all__ = [
    "fused_table",
    "moment_row",
    "moment_rows",
    "statistics_from_rows",
    "summarize",
    "summarize_many",
    "table_of",
    "table_on_accelerator",
]

ROW = 65_536
"""Longest row, in elements: chosen by us; a float32 row and its temporary fit in a 512 KiB cache."""

# Elements of a block of rows, and so the size of a temporary: inside the cache of a processor core, and large enough
# to keep an accelerator busy. Chosen by us.
_BLOCK_ON_HOST = 2**18
_BLOCK_ON_ACCELERATOR = 2**21


@torch.no_grad()
def moment_rows(rows: Tensor) -> Tensor:
    """Additive statistics of each row, left on the device.

    Args:
        rows: shape (k, n), real, of any dtype. n should not exceed 65,536 (precision of float32 sums).

    Returns:
        Shape (k, 11), float64 on the same device (float32 where the device has no float64): the fields of
        :class:`~headwater.records.statistics.Statistics` in their order.
    """
    double = has_float64(rows.device)
    if rows.numel() == 0:
        return torch.zeros((rows.shape[0], COLUMNS), dtype=torch.float64 if double else torch.float32).to(rows.device)
    if rows.device.type == "cpu":
        return table_of(_records_of_rows(rows))
    return rows_on_accelerator(rows, double=double)


def table_of(records: Sequence[Statistics]) -> Tensor:
    """The inverse of :func:`statistics_from_rows`: shape (k, 11), float64, in main memory."""
    return torch.tensor([astuple(record) for record in records], dtype=torch.float64)


@torch.no_grad()
def moment_row(tensor: Tensor) -> Tensor:
    """Additive statistics of a tensor, left on its device: to be copied later, together with others.

    Args:
        tensor: of any shape, dtype and layout, as for :func:`summarize`.

    Returns:
        Shape (11,), as a row of :func:`moment_rows`. (Where the device has no float64, several rows are merged in
        main memory.)
    """
    if tensor.device.type == "cpu":
        return table_of([_summarize_on_host(tensor)])[0]
    tables: list[Tensor] = []
    stored = 0
    for piece, repeats in stored_pieces(tensor, _BLOCK_ON_ACCELERATOR):
        stored += piece.numel() * repeats
        for rows in _rows(piece):
            table = moment_rows(rows)
            tables.append(table if repeats == 1 else _repeated(table, repeats))
    implicit_zeros = implicit_zero_count(tensor, stored)
    if implicit_zeros or not tables:
        zeros = table_of([_zeros(implicit_zeros)])
        tables.append(zeros.to(tables[0].dtype if tables else torch.float32).to(tensor.device))
    table = torch.cat(tables)
    if table.shape[0] == 1:
        return table[0]
    return merged(table if table.dtype == torch.float64 else table.cpu().double())


def statistics_from_rows(rows: Tensor) -> list[Statistics]:
    """Records from rows of moments, with one copy from the device.

    Args:
        rows: shape (k, 11), as :func:`moment_rows` returns them.

    Returns:
        One record per row.
    """
    return [
        Statistics(int(count), int(zeros), int(nan), int(inf), int(scale), *sums)
        for count, zeros, nan, inf, scale, *sums in rows.tolist()
    ]


def summarize(tensor: Tensor) -> Statistics:
    """Additive statistics of a tensor.

    Args:
        tensor: of any shape, dtype, layout and device. An expanded tensor counts every repetition, a sparse one its
            implicit zeros, a complex one its real and imaginary parts. No temporary grows with the tensor, other
            than the coalesced copy of an uncoalesced sparse one.

    Returns:
        Its statistics; those of no element for an empty tensor.

    Example:
        >>> s = summarize(torch.tensor([3.0, -4.0, 0.0, float("nan")]))
        >>> s.max_abs, s.zero_count, s.nan_count
        (4.0, 1, 1)
    """
    if tensor.is_cpu:
        return _fused(tensor) or _summarize_on_host(tensor)
    return statistics_from_rows(moment_row(tensor)[None])[0]


def _fused(tensor: Tensor) -> Statistics | None:
    """The statistics by compiled code, where there is some and it takes the tensor as it lies."""
    compiled = kernels.load()
    entry = None if compiled is None else kernels.entry(tensor)
    if compiled is None or entry is None:
        return None
    count, zeros, nan, inf, scale, *sums = compiled.moments_of_one(entry)
    return Statistics(int(count), int(zeros), int(nan), int(inf), int(scale), *sums)


@torch.no_grad()
def fused_table(tensors: Sequence[Tensor]) -> Tensor | None:
    """:func:`~headwater.stats.moment_table` of tensors in main memory by compiled code.

    Args:
        tensors: of any shape, dtype and layout, in main memory.

    Returns:
        Shape (k, 11), or None where there is no compiled code. Tensors that it does not take as they lie are read
        piece by piece.
    """
    compiled = kernels.load()
    if compiled is None:
        return None
    entries: list[int] = []
    others: list[int] = []
    for index, tensor in enumerate(tensors):
        entry = kernels.entry(tensor)
        entries += entry or (0, 0, 0)
        if entry is None:
            others.append(index)
    table = compiled.moments(entries)
    if others:
        table[others] = table_of([_summarize_on_host(tensors[index]) for index in others])
    return table


@torch.no_grad()
def summarize_many(tensors: Sequence[Tensor]) -> list[Statistics]:
    """Additive statistics of several tensors; small ones of equal size are read together.

    Args:
        tensors: of any shapes, dtypes, layouts and devices.

    Returns:
        Their statistics, in order. One copy from each accelerator.
    """
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        by_device[tensor.device].append(index)
    done: dict[int, Statistics] = {}
    for device, indices in by_device.items():
        members = [tensors[index] for index in indices]
        if device.type == "cpu":
            table = fused_table(members)
            records = _records_in_torch(members) if table is None else statistics_from_rows(table)
        else:
            records = statistics_from_rows(table_on_accelerator(members))
        done.update(zip(indices, records, strict=True))
    return [done[index] for index in range(len(tensors))]


def _records_in_torch(tensors: Sequence[Tensor]) -> list[Statistics]:
    """Without compiled code: of tensors in main memory."""
    done: dict[int, Statistics] = {}
    alike: dict[tuple[torch.dtype, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        flat = _flat_view_up_to(tensor, ROW // 2)
        if flat is None:
            done[index] = _summarize_on_host(tensor)
        else:
            alike[flat.dtype, flat.numel()].append((index, flat))
    for (_, numel), members in alike.items():
        for batch in _batches(members, _BLOCK_ON_HOST // numel):
            done.update(zip([index for index, _ in batch], rows_on_host(_stacked(batch)), strict=True))
    return [done[index] for index in range(len(tensors))]


@torch.no_grad()
def table_on_accelerator(tensors: Sequence[Tensor]) -> Tensor:
    """:func:`~headwater.stats.moment_table` of tensors on one accelerator.

    Tensors of equal size and dtype are read together, so that the number of kernels that start does not grow with
    theirs (but with that of the elements: 2,097,152 at a time).

    Args:
        tensors: one or more, of any shape, dtype and layout.

    Returns:
        Shape (k, 11). Nothing waits for the device.
    """
    done: dict[int, Tensor] = {}
    alike: dict[tuple[torch.dtype, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        flat = _flat_view_up_to(tensor, _BLOCK_ON_ACCELERATOR if has_float64(tensor.device) else ROW // 2)
        if flat is None or _equal_rows(flat.numel()) is None:
            done[index] = moment_row(tensor)
        else:
            alike[flat.dtype, flat.numel()].append((index, flat))
    for (_, numel), members in alike.items():
        rows = _equal_rows(numel) or 1
        for batch in _batches(members, _BLOCK_ON_ACCELERATOR // numel):
            table = moment_rows(_stacked(batch).view(len(batch) * rows, -1))
            table = table if rows == 1 else merged(table.view(len(batch), rows, COLUMNS))
            done.update(zip([index for index, _ in batch], table.unbind(), strict=True))
    return torch.stack([done[index] for index in range(len(tensors))])


def _batches(members: list[tuple[int, Tensor]], size: int) -> Iterator[list[tuple[int, Tensor]]]:
    size = max(1, size)
    for start in range(0, len(members), size):
        yield members[start : start + size]


def _stacked(batch: list[tuple[int, Tensor]]) -> Tensor:
    return batch[0][1][None] if len(batch) == 1 else torch.stack([flat for _, flat in batch])


def _flat_view_up_to(tensor: Tensor, limit: int) -> Tensor | None:
    """A flat view of real numbers of a tensor of at most ``limit`` elements, if there is one."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type == "meta":
        return None
    flat = flat_view(tensor.detach()) if 0 < tensor.numel() <= limit else None
    return as_computable(flat).view(-1) if flat is not None and flat.is_complex() else flat


# -------------------------------------------------------------------- rows of a tensor


def _equal_rows(n: int) -> int | None:
    """Into how many rows of at most 65,536 elements n of them split evenly, where that takes hardly more than need be."""
    fewest = -(-n // ROW)
    return next((rows for rows in range(fewest, fewest + 4) if n % rows == 0), None)


def _rows(piece: Tensor) -> Iterator[Tensor]:
    """A flat piece as (k, n) rows of at most 65,536 elements."""
    n = piece.numel()
    # Rows of equal length need one call; otherwise full rows, and the remainder as a row of its own.
    equal = _equal_rows(n)
    if equal is not None:
        yield piece.view(equal, -1)
    else:
        full = n - n % ROW
        yield piece[:full].view(-1, ROW)
        yield piece[full:].view(1, -1)


def _records_of_rows(rows: Tensor) -> list[Statistics]:
    """Rows in main memory, by compiled code where there is some."""
    table = fused_table(rows.unbind())
    return rows_on_host(rows) if table is None else statistics_from_rows(table)


@torch.no_grad()
def _summarize_on_host(tensor: Tensor) -> Statistics:
    """Piece by piece: any layout and dtype, with or without compiled code."""
    parts: list[Statistics] = []
    stored = 0
    for piece, repeats in stored_pieces(tensor, _BLOCK_ON_HOST):
        stored += piece.numel() * repeats
        whole = _fused(piece)
        for rows in _rows(piece) if whole is None else ():
            parts += _repeated_records(rows_on_host(rows), repeats)
        if whole is not None:
            parts += _repeated_records([whole], repeats)
    implicit_zeros = implicit_zero_count(tensor, stored)
    if implicit_zeros:
        parts.append(_zeros(implicit_zeros))
    return parts[0] if len(parts) == 1 else Statistics.merge(parts)


def _zeros(count: int) -> Statistics:
    return replace(Statistics.empty(), count=count, zero_count=count)


def _repeated(table: Tensor, repeats: int) -> Tensor:
    """Rows of moments of elements that each occur ``repeats`` times: sums and counts grow, extremes do not."""
    factors = [float(repeats)] * 4 + [1.0] + [float(repeats)] * 4 + [1.0, 1.0]
    return table * torch.tensor(factors, dtype=table.dtype).to(table.device)


def _repeated_records(records: list[Statistics], repeats: int) -> list[Statistics]:
    return records if repeats == 1 else [_repeated_record(record, repeats) for record in records]


def _repeated_record(record: Statistics, repeats: int) -> Statistics:
    return replace(
        record,
        count=record.count * repeats,
        zero_count=record.zero_count * repeats,
        nan_count=record.nan_count * repeats,
        inf_count=record.inf_count * repeats,
        scaled_sum=record.scaled_sum * repeats,
        scaled_sum_abs=record.scaled_sum_abs * repeats,
        scaled_sum_squared_deviations=record.scaled_sum_squared_deviations * repeats,
        scaled_sum_fourth_powers=record.scaled_sum_fourth_powers * repeats,
    )
