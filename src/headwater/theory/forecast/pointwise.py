"""Functions of Gaussian signals: moments and covariances of φ(u) for every position and pair, by Hermite expansion."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from headwater.theory.forecast.axes import NoRuleError
from headwater.theory.forecast.stats import Stats

__all__ = ["Function", "function_fourth_ratio", "function_stats", "hermite_expansion"]

Function: TypeAlias = Callable[[Tensor], Tensor]

# Midpoint rule on ±9 standard deviations: no node at 0, so that a step there is integrated exactly by symmetry; a kink
# elsewhere is off by at most one cell of 0.005 · density. Chosen by us.
_CELLS, _LIMIT = 3600, 9.0
_DEGREE = 96  # of the expansion; what is left beyond is put at the next degree, so that correlation 1 is exact
_LEVELS = 9  # standard deviations at which the expansion is tabulated when positions differ
_RANGE = 1e-3  # relative range of standard deviations that counts as one level


@functools.cache
def _nodes() -> tuple[Tensor, Tensor, Tensor]:
    """z, probability of each cell, and the orthonormal Hermite polynomials at z, (degree + 1, cells)."""
    step = 2.0 * _LIMIT / _CELLS
    z = -_LIMIT + step * (torch.arange(_CELLS, dtype=torch.float64) + 0.5)
    weight = torch.exp(-0.5 * z * z)
    weight = weight / weight.sum()
    rows = [torch.ones_like(z), z]
    for k in range(1, _DEGREE):
        # he_{k+1} = (z he_k - √k he_{k-1}) / √(k+1), orthonormal
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1.0))
    return z, weight, torch.stack(rows)


@functools.cache
def _correlations() -> Tensor:
    """Correlations at which covariances are tabulated: dense near ±1, where a kink makes them steep."""
    angle = torch.linspace(0.0, math.pi, 1601, dtype=torch.float64)
    return -torch.cos(angle)


@functools.cache
def _powers() -> Tensor:
    """ρ^k of the tabulated correlations, (degree + 2, correlations)."""
    rho = _correlations()
    return torch.stack([rho**k for k in range(_DEGREE + 2)])


def _evaluated(fn: Function, mean: Tensor, deviation: Tensor) -> Tensor:
    z, _, _ = _nodes()
    values = fn(mean[:, None] + deviation[:, None] * z[None, :])
    if not bool(torch.isfinite(values).all()):
        # Only far out in the tails, where the probability is below 1e-7, may a function have no value.
        rows = fn(mean[:, None] + (deviation[:, None] * z[None, :]).clamp(min=-0.9 * mean.abs()[:, None]))
        if not bool(torch.isfinite(rows).all()):
            raise NoRuleError("a function without a finite value under a Gaussian")
        return rows
    return values


def function_stats(fn: Function, stats: Stats) -> Stats:
    """Statistics of φ(u) for a Gaussian signal u.

    E[φ(u_i)²] by quadrature per position. Covariances through Mehler's expansion E[φ(u)φ(v)] = Σ_k a_k² ρ^k with
    a_k = E[φ(m + s z) he_k(z)], tabulated over ρ and over the levels of s that occur.

    Args:
        fn: φ, elementwise, on float64 tensors.
        stats: of u.

    Returns:
        Statistics of φ(u); its mean is E φ(u).
    """
    mean, deviation = stats.mean, (stats.square - stats.mean**2).clamp_min(0.0).sqrt()
    _, weight, _ = _nodes()
    key = torch.stack([mean, deviation], dim=1)
    scale = float(deviation.max())
    rounded = (key / (scale if scale > 0.0 else 1.0) * 1e7).round()
    _, inverse = torch.unique(rounded, dim=0, return_inverse=True)
    count = int(inverse.max()) + 1
    first = torch.zeros(count, dtype=torch.long).scatter_(0, inverse, torch.arange(len(inverse)))
    moments = [(v @ weight, (v * v) @ weight) for v in _blocks(fn, mean[first], deviation[first])]
    new_mean = torch.cat([m for m, _ in moments])[inverse]
    new_square = torch.cat([s for _, s in moments])[inverse]
    table = _Table(fn, mean, deviation)
    within = table.covariance(stats.within)
    between = table.covariance(stats.between)
    aligned = table.covariance_diagonal(stats.aligned)
    return replace(
        stats, mean=new_mean, square=new_square, within=within, aligned=aligned, between=between
    ).fixed_diagonals()


def hermite_expansion(fn: Function, mean: Tensor, deviation: Tensor) -> Tensor:
    """Coefficients a_k = E φ(m + s z) he_k(z): E φ(u) φ(v) = Σ_k a_k b_k ρ^k (Mehler).

    Args:
        fn: φ, elementwise, on float64 tensors.
        mean: m, (G,).
        deviation: s, (G,).

    Returns:
        (G, degree + 2), orthonormal he_k; the last column holds what the expansion leaves out of E φ², so that ρ = 1 is
        exact.
    """
    _, weight, hermite = _nodes()
    values = _evaluated(fn, mean, deviation)
    coefficients = (values * weight) @ hermite.T
    rest = ((values * values) @ weight - (coefficients**2).sum(1)).clamp_min(0.0).sqrt()
    return torch.cat([coefficients, rest[:, None]], dim=1)


def _blocks(fn: Function, mean: Tensor, deviation: Tensor) -> list[Tensor]:
    return [_evaluated(fn, m, d) for m, d in zip(mean.split(256), deviation.split(256), strict=True)]


class _Table:
    """E[φ(u)φ(v)] over correlation, at a few levels of the standard deviation."""

    def __init__(self, fn: Function, mean: Tensor, deviation: Tensor) -> None:
        self.mean, self.deviation = mean, deviation
        low, high = float(deviation.min()), float(deviation.max())
        one = high <= 0.0 or low <= 0.0 or high / low - 1.0 <= _RANGE
        self.single = one
        if one:
            levels = torch.tensor([high], dtype=torch.float64)
        else:
            levels = torch.exp(torch.linspace(math.log(low), math.log(high), _LEVELS, dtype=torch.float64))
        centre = self.mean.mean().expand(len(levels))
        _z, weight, hermite = _nodes()
        values = _evaluated(fn, centre, levels)
        coefficients = (values * weight) @ hermite.T  # (levels, degree + 1)
        rest = ((values * values) @ weight - (coefficients**2).sum(1)).clamp_min(0.0)
        # (levels, ρ): what the expansion leaves out is put at the next degree
        self.values = torch.cat([coefficients**2, rest[:, None]], dim=1) @ _powers()
        self.log_levels = levels.clamp_min(1e-300).log()

    def _correlation(self, covariance: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        positive = scale > 0.0
        return torch.where(positive, (covariance - mean) / torch.where(positive, scale, 1.0), 1.0).clamp(-1.0, 1.0)

    def covariance(self, raw: Tensor) -> Tensor:
        outer = self.mean[:, None] * self.mean[None, :]
        scale = self.deviation[:, None] * self.deviation[None, :]
        return self._look_up(self._correlation(raw, outer, scale), scale)

    def covariance_diagonal(self, raw: Tensor) -> Tensor:
        scale = self.deviation**2
        return self._look_up(self._correlation(raw, self.mean**2, scale), scale)

    def _look_up(self, rho: Tensor, scale: Tensor) -> Tensor:
        cells = self.values.shape[1] - 1
        place = torch.acos(-rho) * (cells / math.pi)
        left = place.floor().clamp(0, cells - 1)
        part = place - left
        index = left.long()
        if self.single:
            row = self.values[0]
            return row[index] * (1.0 - part) + row[index + 1] * part
        low, high = float(self.log_levels[0]), float(self.log_levels[-1])
        level = ((0.5 * scale.clamp_min(1e-300).log() - low) / (high - low) * (_LEVELS - 1)).clamp(0, _LEVELS - 1)
        below = level.floor().clamp(0, _LEVELS - 2)
        share = level - below
        row = below.long()
        lower = self.values[row, index] * (1.0 - part) + self.values[row, index + 1] * part
        upper = self.values[row + 1, index] * (1.0 - part) + self.values[row + 1, index + 1] * part
        return lower * (1.0 - share) + upper * share


def function_fourth_ratio(fn: Function, stats: Stats, samples: int, weights: Stats | None = None) -> float:
    """How unevenly φ(u)² is spread: the average over all pairs of (1 + 2ρ²)(κ - 1), κ = E[φ²φ'²]/(E φ²)².

    ρ is the correlation of the factor that φ(u) multiplies. For ReLU' and one sample 3·(2 - 1) = 3.

    Args:
        fn: φ.
        stats: of u.
        samples: B.
        weights: statistics of the factor, over the same positions; None for a constant factor, (κ - 1) alone.

    Returns:
        The average, over pairs of samples and positions, each with itself included.
    """
    pooled = function_stats(lambda x: fn(x) ** 2, stats)
    norm = pooled.mean.clamp_min(1e-300)
    excess = pooled.times(1.0 / norm)
    excess = replace(
        excess,
        square=excess.square - 1.0,
        within=excess.within - 1.0,
        aligned=excess.aligned - 1.0,
        between=excess.between - 1.0,
    )
    if weights is None:
        factor = excess.ones()
    else:
        unit = weights.normalised()
        factor = unit.product(unit)
        factor = Stats(
            factor.atoms,
            factor.mean,
            1.0 + 2.0 * factor.square,
            1.0 + 2.0 * factor.within,
            1.0 + 2.0 * factor.aligned,
            1.0 + 2.0 * factor.between,
        )
    one, two = excess.pair_sums(factor)
    n = stats.positions
    return float((one + (samples - 1) * two) / (samples * n * n))
