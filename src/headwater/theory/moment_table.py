"""Second moments of an activation and of its slope over the whole range of variances, for many at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from headwater.theory.gaussian import ActivationMoments, _legendre

__all__ = ["MomentTable"]

# Chosen by us: variances that activations can have, and steps so fine that cubic interpolation is right to about 1e-8.
_LOW, _HIGH = 1e-10, 1e8
_PER_DECADE = 40
_PANELS_PER_DECADE = 12
_WIDEST = 0.5  # panels on |x| <= 60, where a smooth function may still bend or oscillate
_FAR = 12.0  # standard deviations
_HALVINGS = 14  # of a step of the table, before the last linear one
_ACCURACY = 1e-7  # relative; where the table misses it, the adaptive quadrature fills it
_NOTHING = 1e-18  # moments below this, of functions that are zero around 0, may be anything small
_CHECKED = 80  # one entry in so many is compared with the adaptive quadrature: two decades


class MomentTable:
    """E[φ(√q z)²] and E[φ'(√q z)²] tabulated over q, with vectorised interpolation.

    All integrals share their nodes: ∫ φ(x)² N(x; 0, q) dx on panels that are even in log|x| and meet at the kinks, so
    that φ is evaluated once. Against the adaptive quadrature of :class:`ActivationMoments` the table is right to 1e-7 at
    sampled variances; where it is not (a function that oscillates far out), that quadrature fills it.

    Args:
        moments: of the activation.

    Attributes:
        variances: q of the table, float64, even in log q.
        second: E[φ²] there.
        slope: E[φ'²] there.
    """

    def __init__(self, moments: ActivationMoments) -> None:
        decades = round(math.log10(_HIGH / _LOW))
        self.variances = torch.logspace(
            math.log10(_LOW), math.log10(_HIGH), decades * _PER_DECADE + 1, dtype=torch.float64
        )
        x, weights = _nodes(moments.breaks)
        values, slopes = moments.activation(x).square() * weights, moments.activation.slope(x).square() * weights
        density = (
            torch.exp(-0.5 * x.square() / self.variances[:, None]) / (2 * math.pi * self.variances[:, None]).sqrt()
        )
        self.second, self.slope = density @ values, density @ slopes
        for table, exact in ((self.second, moments.second_moment), (self.slope, moments.slope_second_moment)):
            self._correct(table, exact)
        self._at_zero = moments.second_moment(0.0)
        # Bounded and smooth in log q: what is interpolated.
        self._ratio = self.second / (self.variances + self._at_zero)

    def _correct(self, table: Tensor, exact: Callable[[float], float]) -> None:
        """Fill the neighbourhood of every sampled entry that is off by adaptive quadrature."""
        for i in range(_CHECKED // 2, len(table), _CHECKED):
            value = exact(float(self.variances[i]))
            if abs(float(table[i]) - value) > _ACCURACY * abs(value) + _NOTHING:
                for k in range(max(0, i - _CHECKED), min(len(table), i + _CHECKED)):
                    table[k] = exact(float(self.variances[k]))  # remembered, so that overlaps cost nothing

    def second_moment(self, q: Tensor) -> Tensor:
        """E[φ(√q z)²].

        Args:
            q: float64, any shape; outside of the table the value at its end is continued in proportion to q.

        Returns:
            The second moment, the same shape.
        """
        return self._interpolated(self._ratio, q) * (q + self._at_zero)

    def slope_second_moment(self, q: Tensor) -> Tensor:
        """E[φ'(√q z)²].

        Args:
            q: float64, any shape; outside of the table the value at its end is taken.

        Returns:
            The second moment of the slope, the same shape.
        """
        return self._interpolated(self.slope, q)

    def _interpolated(self, table: Tensor, q: Tensor) -> Tensor:
        """Cubic through four neighbours (Lagrange) in log q."""
        place = (q.clamp(_LOW, _HIGH).log10() - math.log10(_LOW)) * _PER_DECADE
        index = place.floor().long().clamp(1, len(table) - 3)
        t = place - index
        a, b, c, d = (table[index + k] for k in (-1, 0, 1, 2))
        return (
            -t * (t - 1) * (t - 2) / 6 * a
            + (t + 1) * (t - 1) * (t - 2) / 2 * b
            - (t + 1) * t * (t - 2) / 2 * c
            + (t + 1) * t * (t - 1) / 6 * d
        )

    def fixed_point(self, weight_variance: Tensor, bias_variance: Tensor, start: float = 1.0) -> Tensor:
        """q* of many (σ_w², σ_b²) at once, as :func:`headwater.theory.fixed_point` defines it.

        Args:
            weight_variance: σ_w², float64, one-dimensional.
            bias_variance: σ_b², the same length.
            start: q of the first layer.

        Returns:
            q*; 0 and ``inf`` where the signal dies out or grows without end.
        """
        # q' - q on the whole table; the first change of sign from the start in the direction of the drift.
        drift = weight_variance[:, None] * self.second + bias_variance[:, None] - self.variances
        first = int((self.variances - start).abs().argmin())
        up = drift[:, first] > 0.0
        above, below = drift[:, first:] <= 0.0, (drift[:, : first + 1] >= 0.0).flip(1)
        found = torch.where(up, above.any(1), below.any(1))
        right = torch.where(up, first + above.int().argmax(1), first - below.int().argmax(1) + 1)
        right = right.clamp(1, len(self.variances) - 1)
        low, high = self.variances[right - 1].log(), self.variances[right].log()

        def change(log_q: Tensor) -> Tensor:
            q = log_q.exp()
            return (weight_variance * self.second_moment(q) + bias_variance) / q - 1.0

        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            rises = change(middle) > 0.0
            low, high = torch.where(rises, middle, low), torch.where(rises, high, middle)
        # One step of false position: what is left of the panel is straight to rounding.
        at_low, at_high = change(low), change(high)
        share = torch.where(at_low > at_high, at_low / (at_low - at_high), 0.5).clamp(0.0, 1.0)
        limit = torch.where(up, math.inf, 0.0).to(low)
        return torch.where(found, (low + share * (high - low)).exp(), limit)


def _nodes(breaks: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on panels that are even in log|x| and have every kink at an edge."""
    low, high = 1e-3 * math.sqrt(_LOW), _FAR * math.sqrt(_HIGH)
    count = round(math.log10(high / low) * _PANELS_PER_DECADE) + 1
    side = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)
    even = torch.arange(_WIDEST, 60.0, _WIDEST, dtype=torch.float64)
    kinks = torch.tensor([b for b in breaks if b != 0.0], dtype=torch.float64)
    edges: Tensor = torch.unique(torch.cat([-side, side, -even, even, kinks, torch.zeros(1, dtype=torch.float64)]))
    nodes, weights = _legendre(10)
    width = edges[1:] - edges[:-1]
    x = edges[:-1, None] + width[:, None] * (0.5 * (nodes + 1.0))
    return x.flatten(), (width[:, None] * 0.5 * weights).flatten()
