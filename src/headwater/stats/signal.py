"""What is left of the signal: differences between samples, and between the positions of a sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from headwater.records.statistics import Statistics
from headwater.stats import kernels
from headwater.stats.elements import as_computable
from headwater.stats.moments import summarize
from headwater.stats.rows_on_accelerator import divided_by_power, has_float64

__all__ = [
    "between_sample_fraction",
    "between_sample_fraction_on_device",
    "position_cosine",
    "position_cosine_on_device",
]

# Elements of a temporary (chosen by us: in the cache of a processor core; enough work for an accelerator).
_BLOCK_ON_HOST = 2**18
_BLOCK_ON_ACCELERATOR = 2**21

# Below this fraction E[x²] - E[mean²] has lost two digits and the deviations are summed instead (chosen by us).
_CANCELLATION = 1e-2

_LONGEST_DOT = 2**16

# Magnitudes (largest of the tensor, or norms of vectors) whose squares and sums stay in range without a scale.
_SAFE = {torch.float32: (2.0**-40, 2.0**40), torch.float64: (2.0**-400, 2.0**400)}


# -------------------------------------------------------------------- between samples


def between_sample_fraction(x: Tensor, statistics: Statistics | None = None) -> float | None:
    """How much of a signal differs from sample to sample.

    Σ_f Var_b(x_bf) / Σ_f E_b[x_bf²], with the population variance over the samples b of each feature f: 1 when the
    features have mean zero over the batch, 0 when every sample carries the same values and the layers behind cannot
    tell them apart. (Definition chosen by us; it is 1 - (correlation between samples) of a mean-field treatment.)

    Args:
        x: shape (B, ...), any floating or complex dtype. Samples with a non-finite element are left out
            (which copies the others).
        statistics: those of ``x``, where they are known already; they save a pass over the data.

    Returns:
        The fraction, 0 to 1, or None for fewer than two samples (finite ones) and for a signal of zeros.
        Differences far below the rounding error of a mean square are still found: where a first estimate is below
        1e-2 the deviations from the mean sample are summed. Reads the result on the host; an accelerator waits
        (see :func:`between_sample_fraction_on_device`).
    """
    if x.dim() < 1 or x.shape[0] < 2 or x.numel() == 0:
        return None
    if not x.is_cpu:
        fraction = float(between_sample_fraction_on_device(x))
        return None if math.isnan(fraction) else fraction
    known = statistics if statistics is not None else summarize(x)
    if known.nonfinite_count:
        x = x[_finite_samples(x)]
        known = summarize(x)
    if x.shape[0] < 2 or known.scaled_max_abs == 0.0:
        return None
    compiled = kernels.load()
    double_low, double_high = _SAFE[torch.float64]
    if compiled is not None and double_low <= known.max_abs <= double_high:
        parts = compiled.between_samples(x)
        if parts is not None:
            return parts[0] / (parts[0] + parts[1])
    return _between_samples_in_torch(x, known)


@torch.no_grad()
def _between_samples_in_torch(x: Tensor, known: Statistics) -> float:
    """The same for any layout: x finite, in main memory, of two samples at least, and not all zero."""
    low, high = _SAFE[torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32]
    if low <= known.max_abs <= high:
        means = _sample_mean(x)
        fraction = 1.0 - float(means.mul_(means).mean()) / known.rms**2
        if fraction >= _CANCELLATION:
            return min(fraction, 1.0)
    scale = 0 if low <= known.max_abs <= high else math.frexp(known.max_abs)[1]
    squares = math.ldexp(known.scaled_sum_squares, 2 * (known.scale_log2 - scale))
    return min(_sum_of_squared_deviations(x, scale) / squares, 1.0)


def _finite_samples(x: Tensor) -> Tensor:
    """Which samples are finite throughout: shape (B,), bool."""
    parts = torch.split(x, max(1, _BLOCK_ON_HOST * x.shape[0] // x.numel()))
    return torch.cat([torch.isfinite(part).flatten(1).all(1) for part in parts])


def _sample_mean(x: Tensor) -> Tensor:
    """The mean sample, flat, in float64."""
    if x.dtype in (torch.float32, torch.float64):
        total = x.sum(0)
    else:
        # A sum of a shorter float would copy the whole tensor, or round to the shorter float.
        parts = torch.split(x, max(1, _BLOCK_ON_HOST * x.shape[0] // x.numel()))
        total = as_computable(parts[0]).sum(0).double()
        for part in parts[1:]:
            total += as_computable(part).sum(0)
    return total.double().div_(x.shape[0]).flatten()


def _feature_tiles(x: Tensor, limit: int, dim: int = 1) -> Iterator[Tensor]:
    """Views of shape (B, ...) that together hold every feature, each with at most ``limit`` features."""
    features = x[0].numel()
    if features <= limit or dim >= x.dim():
        yield x
        return
    for part in torch.split(x, max(1, limit * x.shape[dim] // features), dim):
        yield from _feature_tiles(part, limit, dim + 1)


def _scaled(x: Tensor, scale_log2: int) -> Tensor:
    """``x / 2**scale_log2`` in the floating type of sums, in two steps that are both in range."""
    if scale_log2 == 0:
        return as_computable(x)
    half = scale_log2 // 2
    return as_computable(x) * 2.0**-half * 2.0 ** (half - scale_log2)


def _sum_of_squared_deviations(x: Tensor, scale_log2: int) -> float:
    """Σ_f Σ_b (y_bf - mean_b y_bf)² for y = x / 2**scale_log2.

    The first sample is subtracted before anything is averaged: the difference of two nearly equal numbers is exact
    (Sterbenz), so samples that agree to the last digit still show how they differ.
    """
    total = 0.0
    samples = x.shape[0]
    for tile in _feature_tiles(x, _BLOCK_ON_HOST // 4):
        origin = _scaled(tile[:1], scale_log2)
        parts = torch.split(tile, max(1, _BLOCK_ON_HOST // tile[0].numel()))
        if len(parts) == 1:
            deviation = _scaled(tile, scale_log2) - origin
            total += _sum_of_squares(deviation.sub_(deviation.mean(0, keepdim=True)))
            continue
        mean = torch.zeros_like(origin, dtype=torch.float64)
        for part in parts:
            mean += (_scaled(part, scale_log2) - origin).sum(0, dtype=torch.float64)
        mean = (mean / samples).to(origin.dtype)
        for part in parts:
            deviation = (_scaled(part, scale_log2) - origin).sub_(mean)
            total += _sum_of_squares(deviation)
    return total


def _sum_of_squares(values: Tensor) -> float:
    """Σ v² with partial sums of at most 65,536 terms in the type of the values (a dot product needs no temporary)."""
    flat = values.reshape(-1)
    return math.fsum(float(torch.dot(part, part)) for part in torch.split(flat, _LONGEST_DOT))


@torch.no_grad()
def between_sample_fraction_on_device(x: Tensor) -> Tensor:
    """:func:`between_sample_fraction` without a look at any value.

    Args:
        x: shape (B, ...), B at least 1 and not empty.

    Returns:
        The fraction as a 0-dimensional tensor on the device of ``x``; NaN where it is undefined.
    """
    double = has_float64(x.device)
    dtype = torch.float64 if double else torch.float32
    samples = x.shape[0]
    keep = torch.ones(samples, dtype=dtype, device=x.device)
    largest = torch.zeros((), dtype=dtype, device=x.device)
    tiles = list(_feature_tiles(x, max(1, _BLOCK_ON_ACCELERATOR // samples)))
    for tile in tiles:
        y = as_computable(tile).to(dtype).reshape(samples, -1)
        keep *= torch.isfinite(y).all(1)
        largest = torch.maximum(largest, torch.nan_to_num(y, nan=0.0, posinf=0.0, neginf=0.0).abs().amax())
    exponent = torch.frexp(largest).exponent
    count = keep.sum()
    deviations = torch.zeros((), dtype=dtype, device=x.device)
    squares = torch.zeros((), dtype=dtype, device=x.device)
    for tile in tiles:
        y = as_computable(tile).to(dtype).reshape(samples, -1)
        y = divided_by_power(torch.nan_to_num(y, nan=0.0, posinf=0.0, neginf=0.0), exponent) * keep[:, None]
        squares += y.square().sum()
        mean = y.sum(0) / count.clamp(min=1.0)
        deviation = (y - mean).mul_(keep[:, None])
        # Once more: the mean of the deviations is the rounding error of the mean.
        deviation = (deviation - deviation.sum(0) / count.clamp(min=1.0)).mul_(keep[:, None])
        deviations += deviation.mul_(deviation).sum()
    defined = (count >= 2.0) & (squares > 0.0)
    return torch.where(defined, (deviations / squares).clamp(max=1.0), torch.nan)


# -------------------------------------------------------------------- between positions


@torch.no_grad()
def position_cosine(x: Tensor) -> float | None:
    """Mean cosine between different positions of the same sequence: 1 when attention can tell none apart.

    With unit vectors u_t, Σ_{s≠t} u_s·u_t = |Σ_t u_t|² - n over the n positions of a sample; the mean is over the
    n (n - 1) ordered pairs of every sample. (Rank collapse: Dong, Cordonnier, Loukas, *Attention is not all you need*,
    ICML 2021.)

    Args:
        x: shape (B, T, D), any floating or complex dtype. Positions whose vector is zero or not finite are left out.

    Returns:
        The mean cosine, -1 to 1, or None where there is no pair of positions (T < 2, another number of dimensions,
        zeros). Reads the result on the host; an accelerator waits (see :func:`position_cosine_on_device`).
    """
    if x.dim() != 3 or x.shape[1] < 2 or x.numel() == 0:
        return None
    cosine = float(position_cosine_on_device(x))
    return None if math.isnan(cosine) else cosine


@torch.no_grad()
def position_cosine_on_device(x: Tensor) -> Tensor:
    """:func:`position_cosine` without a look at the result.

    Args:
        x: shape (B, T, D), not empty.

    Returns:
        The mean cosine as a 0-dimensional tensor on the device of ``x``; NaN where there is no pair.
    """
    block = _BLOCK_ON_HOST if x.device.type == "cpu" else _BLOCK_ON_ACCELERATOR
    samples, positions, features = x.shape
    dtype = torch.float64 if has_float64(x.device) else torch.float32
    excess = torch.zeros((), dtype=dtype, device=x.device)
    pairs = torch.zeros((), dtype=dtype, device=x.device)
    length = max(1, min(positions, block // features))
    for batch in torch.split(x, max(1, min(samples, block // (features * length)))):
        resultant: Tensor | None = None
        count: Tensor | None = None
        for part in torch.split(batch, length, 1):
            total, kept = _sum_of_unit_vectors(as_computable(part).flatten(2))
            resultant = total if resultant is None else resultant + total
            count = kept if count is None else count + kept
        if resultant is None or count is None:  # an empty batch has no part
            continue
        resultant, count = resultant.to(dtype), count.to(dtype)
        excess += (resultant.square().sum(1) - count).sum()
        pairs += (count * (count - 1.0)).sum()
    return torch.where(pairs > 0.0, (excess / pairs).clamp(-1.0, 1.0), torch.nan)


def _sum_of_unit_vectors(y: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_t y_t / |y_t| (B, D) and the number of vectors in it (B,), without those that are zero or not finite."""
    norm = torch.linalg.vector_norm(y, dim=2, keepdim=True)
    low, high = _SAFE[y.dtype]
    if y.device.type == "cpu" and low <= float(norm.amin()) and float(norm.amax()) <= high:
        return (y / norm).sum(1), torch.full((y.shape[0],), float(y.shape[1]), dtype=y.dtype)
    largest = y.abs().amax(2, keepdim=True)
    keep = (largest > 0.0) & torch.isfinite(largest)
    exponent = torch.frexp(torch.where(keep, largest, 1.0)).exponent
    y = divided_by_power(torch.where(keep, y, 0.0), exponent)
    norm = torch.where(keep, torch.linalg.vector_norm(y, dim=2, keepdim=True), 1.0)
    return (y / norm).sum(1), keep.sum((1, 2)).to(y.dtype)
