"""The law of a sample's squared length at finite width, and what it makes of the gradient along a path of such lengths.

Without normalisation, the second moment q of one sample's pre-activations is itself random: x = ln q makes a random walk
with drift from layer to layer. Where the map q → σ_w² E φ(√q z)² is unstable (GELU, SiLU and Mish below their critical
weights), the steps are amplified instead of forgotten: after 20 layers of width 256, GELU under He's initialisation has
Var x ≈ 5, and the moments at the mean of q say little. Three things follow, all of relative order 1/width per layer and all
amplified alike:

- E q' is the mean of the map over the law of x, not the map at the mean;
- the gradient of a sample depends on the same x: its second moment is followed as a function b(x), backwards;
- the part of the gradient along u itself, r = (u·δ)²/|u|², is multiplied by e² E φ²/q with e = d ln E φ²/d ln q, not by
  E φ'²: equal for ReLU (e = 1, the part stays 1/width), larger below criticality.

The closure takes x as Gaussian. Dense layers without positions and without a bias; elsewhere moments are taken at the mean.

References:
    Hanin and Nica, *Products of many large random matrices and gradients in deep neural networks*, Communications in
    Mathematical Physics 2020 (log-normal lengths). Schoenholz et al., ICLR 2017 (two susceptibilities, of angles and of
    lengths). The recursions for b and r: derived here, see ``_passed``; against samples in tests/theory.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.theory.forecast.pointwise import Function

__all__ = ["GradientProfile", "LengthLaw", "pooled_variance", "weight_moments"]

# Chosen by us: an even grid, so that functions on it can be interpolated; finer or wider changes 0.001 decades.
_NODES, _REACH = 41, 4.0
_STEPS, _STEP_REACH = 13, 3.0
_LARGEST_VARIANCE = 30.0  # of a logarithm: above it a second moment says nothing about a typical draw


@functools.cache
def _grid(count: int, reach: float) -> tuple[Tensor, Tensor]:
    z = torch.linspace(-reach, reach, count, dtype=torch.float64)
    weight = torch.exp(-0.5 * z * z)
    return z, weight / weight.sum()


@functools.cache
def _cells() -> tuple[Tensor, Tensor]:
    """Cells of z by the midpoint rule on ±9 standard deviations, none at 0, and the probability of each."""
    count, limit = 1800, 9.0
    z = -limit + 2.0 * limit / count * (torch.arange(count, dtype=torch.float64) + 0.5)
    weight = torch.exp(-0.5 * z * z)
    return z, weight / weight.sum()


def pooled_variance(own: float, common: float, samples: int) -> float:
    """Variance between draws of the logarithm of a mean over samples.

    Args:
        own: variance of the logarithm of one sample.
        common: covariance of two samples' logarithms.
        samples: B.

    Returns:
        What samples share counts in full, the rest over B.
    """
    return common + (own - common) / samples


@dataclass(frozen=True, eq=False)
class LengthLaw:
    """The Gaussian law of x = ln q of one sample, q the variance of its pre-activations given the layer below.

    Attributes:
        mean: E x.
        variance: Var x, over samples and draws.
        common: Cov x of two samples of one draw, over draws.
        features: how many pre-activations.
        parent: of the layer below; None for the first.
        function: φ, what was applied to the layer below; None for the first.
        image: at the nodes of the parent, E of x given the parent's.
        noise: at the nodes of the parent, Var of x given the parent's.
    """

    mean: float
    variance: float
    common: float
    features: int
    parent: LengthLaw | None = None
    function: Function | None = None
    image: Tensor | None = None
    noise: Tensor | None = None

    @property
    def nodes(self) -> Tensor:
        """Values of x at which functions of it are kept."""
        return self.mean + math.sqrt(self.variance) * _grid(_NODES, _REACH)[0]

    @staticmethod
    def average(values: Tensor) -> float:
        """E of a function of x given at the nodes."""
        return float(values @ _grid(_NODES, _REACH)[1])

    def arguments(self) -> tuple[Tensor, Tensor]:
        """√q z for every node and cell of z, and the probabilities of the cells."""
        z, weight = _cells()
        return (0.5 * self.nodes).exp()[:, None] * z[None, :], weight

    def at(self, values: Tensor, points: Tensor) -> Tensor:
        """A function given at the nodes, at other values of x; constant beyond the last node."""
        deviation = math.sqrt(max(self.variance, 1e-18))
        place = (((points - self.mean) / deviation + _REACH) * ((_NODES - 1) / (2.0 * _REACH))).clamp(0, _NODES - 1)
        left = place.floor().clamp(max=_NODES - 2)
        share, index = place - left, left.long()
        return values[index] * (1.0 - share) + values[index + 1] * share

    def next(self, fn: Function, gain: float, entering: int, features: int, pair: float) -> LengthLaw | None:
        """The law behind φ and a matrix with independent entries.

        Given x, ln of (1/n) Σ φ(u_i)² has mean ln E φ² - ν/2 and variance ν = (κ - 1)/n, κ = E φ⁴/(E φ²)².

        Args:
            fn: φ.
            gain: σ_w², so that q' = gain · mean φ².
            entering: n, entries of φ(u).
            features: entries of what comes out.
            pair: ν between two samples instead of one.

        Returns:
            The law; None where φ has no second moment or the law no longer describes a draw.
        """
        u, weight = self.arguments()
        square = fn(u) ** 2
        second, fourth = square @ weight, square**2 @ weight
        if not bool((second > 0.0).all()) or not bool(torch.isfinite(fourth).all()):
            return None
        noise = (fourth / second**2 - 1.0).clamp_min(0.0) / entering
        image = (gain * second).log() - 0.5 * noise
        mean = self.average(image)
        moved = self.average((image - mean) ** 2)
        variance = moved + self.average(noise)
        if not math.isfinite(mean) or variance > _LARGEST_VARIANCE:
            return None
        common = min(variance, (self.common * moved / self.variance if self.variance > 0.0 else 0.0) + max(0.0, pair))
        return LengthLaw(mean, variance, common, features, self, fn, image, noise)

    def mean_square(self) -> float:
        """E q."""
        return self.average(self.nodes.exp())


@dataclass(frozen=True, eq=False)
class GradientProfile:
    """The squared gradient of one sample as a function of x, at the place whose lengths ``law`` describes.

    Attributes:
        law: of x there.
        total: b(x) = E[|δ|² | x] over its mean, at the nodes.
        radial: r(x) = E[(u·δ)²/|u|² | x] in the same unit, at the nodes.
        logarithm: E[ln |δ|² | x] in the same unit, without what a draw adds at given lengths.
        common: covariance of two samples' logarithms over the variance of one.
    """

    law: LengthLaw
    total: Tensor
    radial: Tensor
    logarithm: Tensor
    common: float

    def variance(self, samples: int) -> float:
        """Twice what the mean of the logarithm of the batch's squared gradient lies below that of its mean.

        Args:
            samples: B.

        Returns:
            The variance of a log-normal law of which that is true; what samples share counts in full, the rest over B.
        """
        below = max(0.0, -LengthLaw.average(self.logarithm))
        return 2.0 * pooled_variance(below, self.common * below, samples)

    @staticmethod
    def behind_slope(
        arriving: GradientProfile | None, law: LengthLaw, slope: Function
    ) -> tuple[GradientProfile, float]:
        """The profile of φ'(u) · Wᵀδ'.

        Args:
            arriving: of δ', at the layer above; None, or of elsewhere, where nothing is known of it.
            law: of u.
            slope: φ'.

        Returns:
            The profile, and E|δ|²/E|δ'|² without the factor of Wᵀ.
        """
        u, weight = law.arguments()
        steep = slope(u) ** 2
        if arriving is not None and arriving.law.parent is law:
            total, radial, logarithm = _passed(arriving, law, u, steep, weight)
            common = arriving.common
        else:
            total = steep @ weight
            radial = (steep * u * u) @ weight / law.nodes.exp() / law.features
            logarithm = total.clamp_min(1e-300).log()
            common = law.common / law.variance if law.variance > 0.0 else 1.0
        mean = LengthLaw.average(total)
        scale = 1.0 / mean if mean > 0.0 else 0.0
        logarithm = logarithm + math.log(scale) if scale > 0.0 else torch.zeros_like(total)
        return GradientProfile(law, total * scale, radial * scale, logarithm, common), mean


def _passed(
    arriving: GradientProfile, law: LengthLaw, u: Tensor, steep: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """b, r and the mean of the logarithm behind one layer.

    With h = φ(u), u' = W h: Wᵀδ' = h (u'·δ')/|h|² + W₊ᵀδ', W₊ independent of u'. Hence, in units of the factor of Wᵀ,
    b = E φ'² [b' (1 - κ/n) + κ r' n'/n] with κ = E φ'²φ²/(E φ'² E φ²), and, with u·δ = (u'·δ') e + noise,
    r = r' (n'/n) e² E φ²/q + b' (E u²φ'² - (E uφ'φ)²/E φ²)/(n q). Both b' and r' are means over x' given x. The noise of
    mean φ² that moves x' has the covariance (κ - 1)/n with that of mean φ'², which shifts x' where it is weighted by φ'².
    """
    above = arriving.law
    assert above.function is not None
    assert above.image is not None
    assert above.noise is not None
    h, q, n = above.function(u), law.nodes.exp(), law.features
    second = (h * h) @ weight
    flat = steep @ weight
    kappa = torch.where(flat > 0.0, (steep * h * h) @ weight / (flat * second).clamp_min(1e-300), 0.0)
    # u φ' φ: the slope's sign is that of φ', which its square has lost; E u φ φ' = ½ dE φ²/d ln √q, by differences.
    radial_mean = _log_derivative(second, law, u, above.function, weight) * second
    wide = ((steep * u * u) @ weight - radial_mean**2 / second).clamp_min(0.0) / (n * q)
    z, probability = _grid(_STEPS, _STEP_REACH)
    shift = (kappa - 1.0) / n

    def expected(values: Tensor, shifts: float) -> Tensor:
        points = (above.image + shifts * shift)[:, None] + above.noise.sqrt()[:, None] * z[None, :]  # type: ignore[operator, union-attr]
        return above.at(values, points) @ probability

    b, r = expected(arriving.total, 1.0), expected(arriving.radial, 1.0)
    ratio = above.features / n
    elastic = radial_mean / second  # e
    total = flat * (b * (1.0 - kappa / n) + kappa * r * ratio)
    radial = r * ratio * elastic**2 * second / q + b * wide
    # What the radial part adds is spread like the rest.
    added = torch.where(b > 0.0, total / b.clamp_min(1e-300), flat).clamp_min(1e-300)
    return total, radial, added.log() + expected(arriving.logarithm, 0.0)


def _log_derivative(second: Tensor, law: LengthLaw, u: Tensor, fn: Function, weight: Tensor) -> Tensor:
    """The elasticity e = d ln E φ(√q z)² / d ln q."""
    step = 1e-4
    up, down = ((fn(u * math.exp(0.5 * s)) ** 2) @ weight for s in (step, -step))
    return (up - down) / (2.0 * step * second)


def weight_moments(profile: GradientProfile, samples: int) -> tuple[float, float, float]:
    """What the lengths make of ∂L/∂W = Σ_n δ_n a_nᵀ: a sample's own term has |δ_n|² |a_n|², and |a_n|² is e^x up to a factor.

    Args:
        profile: of δ.
        samples: B.

    Returns:
        The factors E[δ²a²]/(E δ² E a²) of one sample with itself and of two, and the variance of the logarithm.
    """
    length = (profile.law.nodes - profile.law.mean).exp()
    average = LengthLaw.average
    together = average(length * profile.total)
    own = together / average(length)
    below = max(0.0, math.log(together) - average(profile.logarithm)) if together > 0.0 else 0.0
    return own, own**profile.common, 2.0 * pooled_variance(below, profile.common * below, samples)
