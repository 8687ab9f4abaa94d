"""Rows that are equal, rows that are zero: units that compute the same, units that learn nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.stats import kernels
from headwater.stats.elements import as_computable
from headwater.stats.rows_on_accelerator import has_float64

__all__ = ["duplicate_row_count", "zero_column_count", "zero_columns", "zero_row_count"]

# Elements of a temporary (chosen by us).
_BLOCK = 2**18

# Gradients of two units are equal up to the order in which a matrix product sums (chosen by us).
_GRADIENT_RTOL = 1e-6

# Entries up to which a set is faster than a sort (chosen by us).
_SHORT_COLUMN = 4096

# Columns that a first look compares: enough to tell random rows apart.
_SAMPLED_COLUMNS = 4

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def duplicate_row_count(weight: Tensor, gradient: Tensor | None) -> int:
    """Units that repeat another: same incoming weights, same gradient, and so the same forever.

    Args:
        weight: shape (R, ...); a row is everything behind one index of dimension 0.
        gradient: of the same shape, dense or sparse, or None to compare the weights alone.

    Returns:
        The number of rows that equal an earlier row bit for bit and whose gradient equals that row's to 1e-6 of the
        largest entry of the two: a group of m equal rows counts m - 1. All rows of a weight that is entirely zero
        are equal.
    """
    if weight.dim() < 1 or weight.shape[0] < 2 or weight.numel() == 0:
        return 0
    rows = weight.detach().flatten(1) if weight.dim() > 1 else weight.detach()[:, None]
    if _all_differ(rows[:, rows.shape[1] // 2]):
        return 0  # most weights are random: one column tells all rows apart
    # Second look: a few columns.
    sampled = torch.linspace(0, rows.shape[1] - 1, min(_SAMPLED_COLUMNS, rows.shape[1])).long().to(rows.device)
    candidates = _occurring_twice(_hash_rows(rows.index_select(1, sampled)))
    if candidates.numel() == 0:
        return 0
    hashes = torch.cat([_hash_rows(rows[part]) for part in _chunks(candidates, rows.shape[1])])
    # Equal rows become neighbours: ordered by the weights, and among equal weights by the gradient.
    order = torch.arange(candidates.numel(), device=rows.device)
    gradients = _gradient_rows(gradient, candidates) if gradient is not None else None
    if gradients is not None:
        order = torch.argsort(_projection(gradients), stable=True)
    order = order[torch.argsort(hashes[order], stable=True)]
    repeated = torch.zeros((), dtype=torch.int64, device=rows.device)
    for here in _chunks(torch.arange(1, order.numel(), device=rows.device), rows.shape[1]):
        one, other = order[here - 1], order[here]
        equal = (_bits(rows[candidates[one]]) == _bits(rows[candidates[other]])).flatten(1).all(1)
        if gradients is not None:
            a, b = as_computable(gradients[one]).flatten(1), as_computable(gradients[other]).flatten(1)
            largest = torch.maximum(a.abs().amax(1), b.abs().amax(1))
            equal &= (a - b).abs().amax(1) <= _GRADIENT_RTOL * largest
        repeated += equal.sum()
    return int(repeated)


def _all_differ(column: Tensor) -> bool:
    """Whether no two entries have the same bits."""
    if not column.is_complex() and column.is_cpu and column.shape[0] <= _SHORT_COLUMN:
        # A set of Python numbers needs fewer steps than a sort in torch.
        same = column.resolve_neg().view(_BITS[column.element_size()]).tolist()
        return len(set(same)) == len(same)
    bits = _bits(column[:, None]).flatten(1)
    if bits.shape[1] > 1:
        return False  # complex: two integers an entry
    ordered = bits[:, 0].sort().values
    return not bool((ordered[1:] == ordered[:-1]).any())


def _chunks(indices: Tensor, row_length: int) -> tuple[Tensor, ...]:
    return torch.split(indices, max(1, _BLOCK // row_length))


def _gradient_rows(gradient: Tensor, candidates: Tensor) -> Tensor:
    """The candidates' gradient rows: shape (k, F)."""
    gradient = gradient.detach()
    if gradient.layout is not torch.strided or candidates.numel() < gradient.shape[0]:
        gradient = gradient.index_select(0, candidates)
    dense = gradient if gradient.layout is torch.strided else gradient.to_dense()
    return dense.flatten(1) if dense.dim() > 1 else dense[:, None]


def _bits(rows: Tensor) -> Tensor:
    """The elements' bits as integers, so that NaN equals itself and -0.0 is not 0.0."""
    real = torch.view_as_real(rows.resolve_conj()) if rows.is_complex() else rows
    return real.resolve_neg().contiguous().view(_BITS[real.element_size()])


def _mixing_integers(count: int, device: torch.device) -> Tensor:
    """Fixed 64-bit integers without visible structure (splitmix64: Steele, Lea, Flood, OOPSLA 2014): shape (count,).

    The shifts are arithmetic ones, which changes the integers and not their use.
    """
    z = torch.arange(1, count + 1, device=device) * -0x61C8864680B583EB
    z = (z ^ (z >> 30)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27)) * -0x6B2FB644ECCEEE15
    return z ^ (z >> 31)


def _hash_rows(rows: Tensor) -> Tensor:
    """A 64-bit hash of each row's bits, the same wherever the row stands: shape (k,)."""
    bits = _bits(rows).flatten(1)
    return (bits.long() * (_mixing_integers(bits.shape[1], rows.device) | 1)).sum(1)


def _occurring_twice(keys: Tensor) -> Tensor:
    """Indices, ascending, of the entries whose value another entry has too."""
    _, inverse, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    return torch.nonzero(counts[inverse] > 1).flatten()


def _projection(rows: Tensor) -> Tensor:
    """One number per row that differs where rows differ: the product with a fixed vector of range (-1, 1)."""
    dtype = torch.float64 if has_float64(rows.device) else torch.float32
    parts = torch.split(rows, max(1, _BLOCK // rows.shape[1]))
    flat = (as_computable(part).flatten(1).to(dtype) for part in parts)
    length = rows.shape[1] * (2 if rows.is_complex() else 1)
    direction = (_mixing_integers(length, rows.device) >> 11).to(dtype) / 2.0**52
    return torch.cat([(part * direction).sum(1) for part in flat])


@torch.no_grad()
def zero_row_count(g: Tensor) -> int:
    """Rows of which every entry is exactly zero.

    Args:
        g: shape (R, ...), dense or sparse; an element of a vector is a row.

    Returns:
        Their number, 0 to R; 0 for an empty tensor.
    """
    return _zero_slices(g, 0)


@torch.no_grad()
def zero_column_count(g: Tensor) -> int:
    """Columns of which every entry is exactly zero.

    Args:
        g: shape (R, C, ...), dense or sparse.

    Returns:
        Their number, 0 to C; 0 for an empty tensor and for one without a second dimension.
    """
    return _zero_slices(g, 1)


@torch.no_grad()
def zero_columns(g: Tensor) -> list[int]:
    """Indices of the columns of which every entry is exactly zero.

    Args:
        g: shape (R, C, ...), strided; R at least 1.

    Returns:
        Ascending indices, each 0 to C - 1. Reads the result on the host; an accelerator waits.
    """
    compiled = kernels.load() if g.is_cpu and g.numel() else None
    nonzero = None if compiled is None else compiled.nonzero_slices(g, 1)
    if nonzero is not None:
        return [index for index, found in enumerate(nonzero) if not found] if 0 in nonzero else []
    real = torch.view_as_real(g.detach().resolve_conj()) if g.is_complex() else g.detach()
    others = [d for d in range(real.dim()) if d != 1]
    indices: list[int] = ((real.amax(others) == 0) & (real.amin(others) == 0)).nonzero().flatten().tolist()
    return indices


def _zero_slices(g: Tensor, dim: int) -> int:
    """How many slices along ``dim`` hold nothing but zeros."""
    if g.dim() <= dim or g.numel() == 0:
        return 0
    compiled = kernels.load() if g.is_cpu and g.dim() >= 2 else None
    nonzero = None if compiled is None else compiled.nonzero_slices(g, dim)
    if nonzero is not None:
        return nonzero.count(0)
    g = g.detach()
    if g.layout is torch.sparse_coo and g.sparse_dim() == 1:
        # Rows that are not stored are zero; in a column they change nothing.
        values = g.coalesce().values()
        if dim == 0:
            return g.shape[0] - values.shape[0] + _zero_slices(values, 0)
        return _zero_slices(values, 1) if values.shape[0] else g.shape[1]
    if g.layout is not torch.strided:
        g = g.to_dense()
    if g.is_complex():
        g = torch.view_as_real(g.resolve_conj())
    others = [d for d in range(g.dim()) if d != dim]
    if not others:
        return int((g == 0).sum())
    # A slice of zeros begins with a zero: most are ruled out by their first entry.
    first = g[tuple(slice(None) if d == dim else 0 for d in range(g.dim()))]
    candidates = (first == 0).nonzero().flatten()
    if candidates.numel() == 0:
        return 0
    if candidates.numel() <= g.shape[dim] // 4:
        g = g.index_select(dim, candidates)
    # The largest and the smallest are zero: two passes without a temporary. NaN is neither.
    return int(((g.amax(others) == 0) & (g.amin(others) == 0)).sum())
