"""The law of a sum φ(t) + f of which one part is no Gaussian: as an increasing function of a Gaussian."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headwater.theory.forecast.pointwise import Function, hermite_expansion
from headwater.theory.forecast.stats import Stats

__all__ = ["Transport", "transported"]

# Chosen by us: nodes of the Gaussian below, points of the tables, and how many standard deviations they reach.
_NODES, _POINTS, _REACH = 801, 801, 8.0
_ROUNDS = 12  # of a fixed point that halves its error in each; chosen by us
_GAUSSIAN = 1e-3  # largest departure from a Gaussian, in standard deviations (rms), that is left out


class Transport:
    """u = T(w) for a Gaussian w with u's mean and variance, T increasing: the marginal law of u is exact.

    Where the values of two positions or samples are jointly u and u', w and w' are taken as jointly Gaussian.

    Args:
        points: values of w, increasing.
        values: T at them, increasing.
    """

    def __init__(self, points: Tensor, values: Tensor) -> None:
        self._points, self._values = points, values

    def forward(self, w: Tensor) -> Tensor:
        """T(w)."""
        return _interpolated(w, self._points, self._values)

    def inverse(self, u: Tensor) -> Tensor:
        """The w of which u is the value."""
        return _interpolated(u, self._values, self._points)


def _interpolated(x: Tensor, points: Tensor, values: Tensor) -> Tensor:
    """Linear between the points, and on with the last slope beyond them."""
    right = torch.searchsorted(points, x.contiguous()).clamp(1, len(points) - 1)
    low, high = points[right - 1], points[right]
    share = (x - low) / (high - low)
    return values[right - 1] * (1.0 - share) + values[right] * share


def transported(function: Function, base: Stats, other: Stats, total: Stats) -> tuple[Transport, Stats] | None:
    """The sum of φ(t) and an independent Gaussian f as a function of a Gaussian.

    P(u < x) = E_t Φ((x - φ(t) - E f)/√Var f), and T = P⁻¹ ∘ Φ. Derived by us; positions share the shape of the law, taken at
    the averages over them.

    Args:
        function: φ.
        base: of t.
        other: of f.
        total: of u, over its positions.

    Returns:
        T and the statistics of w, whose covariances make those of T(w) the ones of u; None where u is as good as Gaussian or
        has no spread.
    """
    centre, deviation = _average(base)
    middle, width = _average(other)
    if not (deviation > 0.0 and width > 0.0):
        return None
    z = torch.linspace(-_REACH, _REACH, _NODES, dtype=torch.float64)
    weight = torch.exp(-0.5 * z * z)
    weight = weight / weight.sum()
    values = function(centre + deviation * z) + middle
    if not bool(torch.isfinite(values).all()):
        return None
    mean = float((values * weight).sum())
    spread = (float((values * values * weight).sum()) - mean**2 + width**2) ** 0.5
    # Equally dense in units of the sum's own spread, out to where both its parts are far out.
    low, high = float(values.min()) - _REACH * width, float(values.max()) + _REACH * width
    low, high = max(low, mean - 2.0 * _REACH * spread), min(high, mean + 2.0 * _REACH * spread)
    u = torch.linspace(low, high, _POINTS, dtype=torch.float64)
    place = (u[:, None] - values[None, :]) / width
    below, above = torch.special.ndtr(place) @ weight, torch.special.ndtr(-place) @ weight
    gauss = torch.where(below < 0.5, torch.special.ndtri(below), -torch.special.ndtri(above))
    inside = torch.isfinite(gauss) & (gauss.abs() < _REACH)
    u, gauss = u[inside], gauss[inside]
    rising = torch.cat([torch.ones(1, dtype=torch.bool), gauss[1:] > gauss[:-1]])
    u, gauss = u[rising], gauss[rising]
    if len(u) < 3:
        return None
    whole_centre, whole_deviation = _average(total)
    # The shape alone: mean and spread are those of the sum.
    law = Transport(whole_centre + whole_deviation * gauss, whole_centre + whole_deviation * (u - mean) / spread)
    unit = torch.tensor([whole_centre], dtype=torch.float64), torch.tensor([whole_deviation], dtype=torch.float64)
    shape = hermite_expansion(law.forward, *unit)[0, 1:] / whole_deviation
    if float((shape[1:] ** 2).sum()) < _GAUSSIAN**2:
        return None
    return law, _below(law, total, shape**2 / (shape**2).sum())


def _average(stats: Stats) -> tuple[float, float]:
    mean = float(stats.mean.mean())
    return mean, max(0.0, float((stats.square - stats.mean**2).mean())) ** 0.5


def _below(law: Transport, total: Stats, powers: Tensor) -> Stats:
    """Statistics of w: moments that make those of T(w) the sum's at every position, and covariances that do.

    The correlation ρ of w is the one with Σ_k a_k² ρ^k = that of the sum (Mehler).
    """
    angle = torch.linspace(0.0, torch.pi, 2001, dtype=torch.float64)
    rho = -torch.cos(angle)
    table = torch.zeros_like(rho)
    for power in reversed(powers):  # Horner
        table = (table + power) * rho
    table = torch.cummax(table, 0).values + 1e-15 * torch.arange(len(rho), dtype=torch.float64)
    deviation = (total.square - total.mean**2).clamp_min(0.0).sqrt()
    mean, scale = _moments_below(law, total.mean, deviation)

    def solved(raw: Tensor, means: Tensor, spread: Tensor, new_means: Tensor, new_spread: Tensor) -> Tensor:
        positive = spread > 0.0
        target = torch.where(positive, (raw - means) / torch.where(positive, spread, 1.0), 1.0)
        found = _interpolated(target.clamp(float(table[0]), float(table[-1])), table, rho)
        return new_means + new_spread * found.clamp(-1.0, 1.0)

    pairs = [v[:, None] * v[None, :] for v in (total.mean, deviation, mean, scale)]
    return replace(
        total,
        mean=mean,
        square=mean**2 + scale**2,
        within=solved(total.within, *pairs),
        aligned=solved(total.aligned, total.mean**2, deviation**2, mean**2, scale**2),
        between=solved(total.between, *pairs),
    ).fixed_diagonals()


def _moments_below(law: Transport, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of w that give T(w) these, position by position."""
    z = torch.linspace(-_REACH, _REACH, 401, dtype=torch.float64)
    weight = torch.exp(-0.5 * z * z)
    weight = weight / weight.sum()
    centre, scale = mean.clone(), deviation.clone()
    for _ in range(_ROUNDS):
        values = law.forward(centre[:, None] + scale[:, None] * z[None, :])
        found = values @ weight
        spread = ((values - found[:, None]) ** 2 @ weight).sqrt()
        slope = ((values * z) @ weight / scale.clamp_min(1e-300)).clamp_min(1e-3)
        centre = centre + (mean - found) / slope
        scale = scale * (deviation / spread.clamp_min(1e-300)).clamp(0.5, 2.0)
    return centre, scale
