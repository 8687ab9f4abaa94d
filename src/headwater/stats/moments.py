"""Additive statistics of tensors, without overflow, underflow or a copy of the tensor.

A tensor is read as rows of at most 65,536 elements. Each row is summed in float32 (float64 for float64 input) after
a division by a power of two; the rows are merged in float64. Short rows and torch's pairwise ``sum`` keep the
rounding error of a row near 1e-6; the scale keeps its fourth powers in range.

References:
    Higham, *The accuracy of floating point summation*, SIAM J. Sci. Comput. 1993 (pairwise summation).
    Chan, Golub, LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1982
    (the merge of squared deviations, and the corrected two-pass variance).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.records.statistics import Statistics
from headwater.stats.elements import as_computable, flat_pieces, flat_view, stored_values, without_expanded_dimensions

__all__ = ["moment_rows", "moments", "statistics_from_rows", "summarize", "summarize_many"]

# Columns of a row of moments: the fields of records.Statistics, in their order.
_COUNT, _ZERO, _NAN, _INF, _EXPONENT, _SUM, _SUM_ABS, _DEVIATIONS, _FOURTH, _MAX, _MIN = range(11)
_WIDTH = 11

ROW = 65_536
"""Longest row, in elements: chosen by us; one float32 row of it fits in a 512 KiB cache beside its temporary."""

# Elements per block of rows, and so the size of a temporary: inside the cache of a processor core, and large
# enough to keep an accelerator busy. Chosen by us.
_BLOCK = {"cpu": 2**18}
_BLOCK_ON_ACCELERATOR = 2**22

# Largest magnitudes of a row between which fourth powers of 65,536 elements need no scale: neither the sum of the
# large ones overflows, nor do the small ones that fall below the normal range matter beside the largest.
_NEEDS_NO_SCALE = {torch.float32: (2.0**-20, 2.0**26), torch.float64: (2.0**-200, 2.0**200)}

# Σy² - (Σy)²/n loses at most two bits while mean² stays below this share of the mean square (chosen by us).
_CANCELLATION_SHARE = 0.75


@torch.no_grad()
def moment_rows(rows: Tensor) -> Tensor:
    """Additive statistics of each row.

    Args:
        rows: shape (k, n), real, of any dtype. n should not exceed 65,536 (precision of float32 sums).

    Returns:
        Shape (k, 11), float64 on the same device (float32 where the device has no float64): the fields of
        :class:`~headwater.records.statistics.Statistics` in their order.
    """
    x = as_computable(rows)
    k, n = x.shape
    out = torch.zeros((k, _WIDTH), dtype=_wide(x.device), device=x.device)
    if k == 0 or n == 0:
        return out
    out[:, _COUNT] = n
    # A branch on a value is free on the host and stalls an accelerator: there every step is taken.
    on_host = x.device.type == "cpu"
    magnitude = x.abs()
    largest = magnitude.amax(1)
    tops = largest.tolist() if on_host else None
    finite: Tensor | None = None
    if tops is None or not all(map(math.isfinite, tops)):
        finite, x = _without_nonfinite(x, magnitude, out)
        torch.abs(x, out=magnitude)
        largest = magnitude.amax(1)
        tops = largest.tolist() if on_host else None
    _fill_zeros_and_smallest(magnitude, largest, out, look_first=on_host)
    low, high = _NEEDS_NO_SCALE[x.dtype]
    if tops is None or not all(low <= top <= high or top == 0.0 for top in tops):
        exponent = torch.frexp(largest).exponent
        x, largest = _divided_by_power(x, exponent[:, None]), _divided_by_power(largest, exponent)
        torch.abs(x, out=magnitude)
        out[:, _EXPONENT] = exponent
    out[:, _MAX] = largest
    _fill_sums(x, magnitude, finite, out, look_first=on_host)
    return out


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _without_nonfinite(x: Tensor, magnitude: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Count what is not finite; return a mask (1.0 where finite) and the rows with 0 in its place."""
    # A comparison written into a float tensor is several times faster on a CPU than a boolean one.
    infinite = torch.eq(magnitude, math.inf, out=torch.empty_like(x))
    nan = torch.ne(x, x, out=torch.empty_like(x))
    out[:, _INF] = infinite.sum(1)
    out[:, _NAN] = nan.sum(1)
    finite = infinite.add_(nan).neg_().add_(1.0)
    return finite, torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def _fill_zeros_and_smallest(magnitude: Tensor, largest: Tensor, out: Tensor, *, look_first: bool) -> None:
    """The number of exact zeros, and the smallest magnitude that is not one (0 where all are)."""
    if look_first:
        smallest = magnitude.amin(1)
        if 0.0 not in smallest.tolist():
            out[:, _MIN] = smallest
            return
    zero = torch.eq(magnitude, 0.0, out=torch.empty_like(magnitude))
    # Elements that were not finite are zeros by now, and are no zeros.
    out[:, _ZERO] = zero.sum(1)
    out[:, _ZERO] -= out[:, _NAN] + out[:, _INF]
    # Zeros step aside to the largest number; the others stay as they are, since 0 * max is 0.
    smallest = torch.add(magnitude, zero, alpha=torch.finfo(magnitude.dtype).max, out=zero).amin(1)
    out[:, _MIN] = torch.where(largest > 0.0, smallest, 0.0)


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """``2**exponent``, exact, for exponents of normal numbers: the bits of the number are written directly."""
    if dtype == torch.float64:
        return ((exponent.long() + 1023) << 52).view(torch.float64)
    return ((exponent.int() + 127) << 23).view(torch.float32)


def _divided_by_power(x: Tensor, exponent: Tensor) -> Tensor:
    """``x / 2**exponent`` in two steps, since 2**149 (for the smallest float32) is itself out of range."""
    half = exponent // 2
    return x * _power_of_two(-half, x.dtype) * _power_of_two(half - exponent, x.dtype)


def _fill_sums(x: Tensor, magnitude: Tensor, finite: Tensor | None, out: Tensor, *, look_first: bool) -> None:
    """The sums over scaled rows; ``magnitude`` is overwritten."""
    out[:, _SUM_ABS] = magnitude.sum(1)
    out[:, _SUM] = x.sum(1)
    squares = magnitude.mul_(magnitude)
    out[:, _DEVIATIONS] = squares.sum(1)
    out[:, _FOURTH] = squares.mul_(squares).sum(1)
    total, mean_square = out[:, _SUM], out[:, _DEVIATIONS]
    count = (out[:, _COUNT] - out[:, _NAN] - out[:, _INF]).clamp_(min=1.0)
    square_of_mean = total * total / count
    if look_first and not (square_of_mean > _CANCELLATION_SHARE * mean_square).any():
        out[:, _DEVIATIONS] -= square_of_mean
        return
    # Corrected two-pass: the deviations from a rounded mean, and what their sum says about that rounding.
    mean = (total / count).to(x.dtype)
    deviation = torch.sub(x, mean[:, None], out=magnitude)
    if finite is not None:
        deviation.mul_(finite)
    rest = deviation.sum(1).to(out.dtype)
    out[:, _DEVIATIONS] = (deviation.mul_(deviation).sum(1) - rest * rest / count).clamp_(min=0.0)
    out[:, _SUM] = mean * count + rest


# -------------------------------------------------------------------- tensors


def _rows_of_piece(piece: Tensor) -> list[Tensor]:
    """Moments of a 1-D piece, as rows: (k, 11) tensors."""
    piece = as_computable(piece).view(-1)
    n = piece.numel()
    k = -(-n // ROW)
    # Equal rows need one call; otherwise full rows and a remainder.
    for equal in range(k, k + 4):
        if n % equal == 0:
            return [moment_rows(piece.view(equal, -1))]
    full = n - n % ROW
    return [moment_rows(piece[:full].view(-1, ROW)), moment_rows(piece[full:].view(1, -1))]


@torch.no_grad()
def moments(tensor: Tensor) -> Tensor:
    """Additive statistics of a tensor, left on its device.

    Args:
        tensor: of any shape, dtype and layout. An expanded tensor counts every repetition; a sparse one its implicit
            zeros; a complex one its real and imaginary parts.

    Returns:
        Shape (11,), as a row of :func:`moment_rows`. No temporary grows with the tensor, other than a coalesced copy
        of an uncoalesced sparse one. (On a device without float64 the rows are merged on the host.)
    """
    values, implicit_zeros = stored_values(tensor)
    rows: list[Tensor] = []
    for value in values:
        single, repeats = without_expanded_dimensions(value)
        block = _BLOCK.get(value.device.type, _BLOCK_ON_ACCELERATOR)
        parts = [row for piece in flat_pieces(single, block) for row in _rows_of_piece(piece)]
        rows += parts if repeats == 1 else [_repeated(part, repeats) for part in parts]
    if implicit_zeros:
        zeros = torch.zeros((1, _WIDTH), dtype=_wide(tensor.device), device=tensor.device)
        zeros[:, : _ZERO + 1] = implicit_zeros * (2 if tensor.is_complex() else 1)
        rows.append(zeros)
    if not rows:
        return torch.zeros(_WIDTH, dtype=_wide(tensor.device), device=tensor.device)
    table = torch.cat(rows) if len(rows) > 1 else rows[0]
    return table[0] if table.shape[0] == 1 else _merged(table)


def _repeated(rows: Tensor, repeats: int) -> Tensor:
    """Every sum and count of elements that occur ``repeats`` times."""
    factors = torch.full((_WIDTH,), float(repeats), dtype=rows.dtype, device=rows.device)
    factors[_EXPONENT] = 1.0
    factors[_MAX:] = 1.0
    return rows * factors


def _merged(rows: Tensor) -> Tensor:
    """The moments of all rows together: ``Statistics.__add__``, for (k, 11) rows at once."""
    if rows.dtype != torch.float64:
        rows = rows.cpu().double()
    finite = rows[:, _COUNT] - rows[:, _NAN] - rows[:, _INF]
    # A row of zeros, or of nothing finite, has no scale of its own.
    has_scale = rows[:, _MAX] > 0.0
    lowest = torch.where(has_scale, rows[:, _EXPONENT], -math.inf).amax()
    scale = torch.where(has_scale.any(), lowest, 0.0)
    factor = torch.exp2(torch.where(has_scale, rows[:, _EXPONENT] - scale, 0.0))
    sums = rows[:, _SUM] * factor
    means = sums / finite.clamp(min=1.0)
    mean = sums.sum() / finite.sum().clamp(min=1.0)
    between = (finite * (means - mean).square()).sum()
    squared = factor * factor
    smallest = torch.where(rows[:, _MIN] > 0.0, rows[:, _MIN], math.inf).amin()
    out = rows.sum(0)
    out[_EXPONENT] = scale
    out[_SUM] = sums.sum()
    out[_SUM_ABS] = (rows[:, _SUM_ABS] * factor).sum()
    out[_DEVIATIONS] = (rows[:, _DEVIATIONS] * squared).sum() + between
    out[_FOURTH] = (rows[:, _FOURTH] * squared * squared).sum()
    out[_MAX] = (rows[:, _MAX] * factor).amax()
    out[_MIN] = torch.where(smallest < math.inf, smallest, 0.0)
    return out


# -------------------------------------------------------------------- records


def statistics_from_rows(rows: Tensor) -> list[Statistics]:
    """Records from rows of moments, with one copy from the device.

    Args:
        rows: shape (k, 11), as :func:`moment_rows` returns them.

    Returns:
        One record per row.
    """
    return [Statistics(*map(int, row[: _EXPONENT + 1]), *row[_SUM:]) for row in rows.tolist()]


def summarize(tensor: Tensor) -> Statistics:
    """Additive statistics of a tensor.

    Args:
        tensor: of any shape, dtype, layout and device.

    Returns:
        Its statistics; those of no element for an empty tensor.

    Example:
        >>> summarize(torch.tensor([3.0, -4.0, 0.0, float("nan")])).to_dict()["zero_count"]
        1
    """
    return statistics_from_rows(moments(tensor)[None])[0]


@torch.no_grad()
def summarize_many(tensors: Sequence[Tensor]) -> list[Statistics]:
    """Additive statistics of several tensors; equal small ones are read together.

    Args:
        tensors: of any shapes, dtypes, layouts and devices.

    Returns:
        Their statistics, in order. One copy from each device.
    """
    rows: dict[int, Tensor] = {}
    alike: dict[tuple[torch.device, torch.dtype, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        flat = flat_view(tensor.detach()) if _is_small_and_strided(tensor) else None
        if flat is None:
            rows[index] = moments(tensor)
        else:
            alike[flat.device, flat.dtype, flat.numel()].append((index, flat))
    for (device, _, numel), members in alike.items():
        step = max(1, _BLOCK.get(device.type, _BLOCK_ON_ACCELERATOR) // numel)
        for start in range(0, len(members), step):
            batch = members[start : start + step]
            stacked = torch.stack([flat for _, flat in batch]) if len(batch) > 1 else batch[0][1][None]
            table = moment_rows(as_computable(stacked).flatten(1))
            rows.update(zip((index for index, _ in batch), table.unbind(), strict=True))
    return _records(rows)


def _is_small_and_strided(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type != "meta"
        and 0 < tensor.numel() <= ROW
    )  # fmt: skip


def _records(rows: dict[int, Tensor]) -> list[Statistics]:
    """Records in the order of their index, copied once per device."""
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, row in rows.items():
        by_device[row.device].append(index)
    records: dict[int, Statistics] = {}
    for indices in by_device.values():
        records.update(zip(indices, statistics_from_rows(torch.stack([rows[i] for i in indices])), strict=True))
    return [records[index] for index in range(len(rows))]
