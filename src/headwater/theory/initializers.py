"""Which law and which initialiser a set of weights could have been drawn from, judged from its moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Candidate",
    "Law",
    "ValueMoments",
    "fitting_laws",
    "matching_initializers",
    "plain_candidates",
    "standard_candidates",
]

Law = Literal["uniform", "normal", "truncated normal"]

# Standard errors that a moment may be off before a law is ruled out (two-sided chance 6e-5). Chosen by us.
_Z = 4.0
# The largest of n uniform draws falls short of the bound by more than the share 12/n with probability e^-12.
_SHORTFALL = 12.0


@dataclass(frozen=True, slots=True)
class _Shape:
    """A law with variance 1: its kurtosis, n·Var of a sample kurtosis, and its largest value (inf when unbounded)."""

    kurtosis: float
    kurtosis_variance: float
    bound: float


def _kurtosis_variance(mu4: float, mu6: float, mu8: float) -> float:
    # Delta method on m4/m2² at unit variance: Var(x⁴) - 4κ Cov(x⁴, x²) + 4κ² Var(x²).
    return (mu8 - mu4**2) - 4.0 * mu4 * (mu6 - mu4) + 4.0 * mu4**2 * (mu4 - 1.0)


def _truncated_shape(cut: float) -> _Shape:
    # E[z^k; |z| < c] by parts: (k-1) E[z^(k-2)] - 2 c^(k-1) φ(c), over the mass inside.
    mass = math.erf(cut / math.sqrt(2.0))
    density = math.exp(-0.5 * cut * cut) / math.sqrt(2.0 * math.pi)
    raw = [1.0]
    for k in (2, 4, 6, 8):
        raw.append((k - 1) * raw[-1] - 2.0 * cut ** (k - 1) * density / mass)
    variance = raw[1]
    mu4, mu6, mu8 = (raw[i] / variance**i for i in (2, 3, 4))
    return _Shape(mu4, _kurtosis_variance(mu4, mu6, mu8), cut / math.sqrt(variance))


_SHAPES: dict[Law, _Shape] = {
    # U(-√3, √3): E x^k = 3^(k/2)/(k+1)
    "uniform": _Shape(9.0 / 5.0, _kurtosis_variance(9.0 / 5.0, 27.0 / 7.0, 9.0), math.sqrt(3.0)),
    "normal": _Shape(3.0, _kurtosis_variance(3.0, 15.0, 105.0), math.inf),
    # Cut at two standard deviations, as JAX, TensorFlow and timm's callers do. torch's trunc_normal_ cuts at -2 and 2
    # whatever the standard deviation, which for std = 0.02 is no cut at all.
    "truncated normal": _truncated_shape(2.0),
}


@dataclass(frozen=True, slots=True)
class ValueMoments:
    """What the laws are judged from.

    Attributes:
        count: n, number of values.
        mean: of the values.
        variance: central, divided by n.
        kurtosis: E[(w - mean)⁴] / variance²; NaN when the variance is 0.
        low: smallest value.
        high: largest value.
        resolution: relative rounding of the dtype that holds the values (2^-7 for bfloat16).
    """

    count: int
    mean: float
    variance: float
    kurtosis: float
    low: float
    high: float
    resolution: float = 0.0

    @property
    def max_abs(self) -> float:
        """Largest |w|."""
        return max(abs(self.low), abs(self.high))

    @property
    def max_deviation(self) -> float:
        """Largest |w - mean|."""
        return max(self.high - self.mean, self.mean - self.low)

    @property
    def second_moment(self) -> float:
        """E[w²]."""
        return self.variance + self.mean**2

    @property
    def mean_is_zero(self) -> bool:
        """Whether the mean is within its standard error of 0."""
        return abs(self.mean) <= _Z * math.sqrt(self.second_moment / self.count)


def fitting_laws(moments: ValueMoments) -> tuple[Law, ...]:
    """The laws whose kurtosis and extremes fit, the most likely one first.

    A law fits when the sample kurtosis is within four standard errors (delta method) and no value lies beyond its
    bound. They are ordered by their likelihood at the sample variance.

    Args:
        moments: of the values, at least two of them different.

    Returns:
        The laws; empty when none fits.
    """
    if moments.count < 2 or not moments.variance > 0.0:
        return ()
    std = math.sqrt(moments.variance)
    ratio = moments.max_deviation / std
    fitting: dict[Law, float] = {}
    for law, shape in _SHAPES.items():
        error = _Z * math.sqrt(shape.kurtosis_variance / moments.count)
        # A small sample's kurtosis is biased and skewed at order κ/n; the last term allows for it (chosen by us).
        error += 8.0 * shape.kurtosis / moments.count + 2.0 * moments.resolution
        slack = 1.0 + _Z * math.sqrt((shape.kurtosis - 1.0) / moments.count) / 2.0  # of the standard deviation
        slack += _Z / math.sqrt(moments.count) / shape.bound + moments.resolution  # of the mean
        if abs(moments.kurtosis - shape.kurtosis) <= error and ratio <= shape.bound * slack:
            fitting[law] = _log_likelihood(law, moments)
    return tuple(sorted(fitting, key=lambda law: -fitting[law]))


def _log_likelihood(law: Law, moments: ValueMoments) -> float:
    # Per value, in units of the sample's own standard deviation.
    ratio = moments.max_deviation / math.sqrt(moments.variance)
    if law == "uniform":
        return -math.log(2.0 * ratio)
    if law == "normal":
        return -0.5 * math.log(2.0 * math.pi) - 0.5
    # Truncated at ±2σ₀; σ₀ is as large as the variance says, and large enough to hold every value.
    scale = max(_SHAPES[law].bound, ratio) / 2.0
    return -0.5 * math.log(2.0 * math.pi) - math.log(scale * math.erf(math.sqrt(2.0))) - 0.5 / scale**2


@dataclass(frozen=True, slots=True)
class Candidate:
    """An initialiser: what it is called, its law and its variance.

    Attributes:
        label: how it is written.
        law: uniform or normal.
        variance: of a weight.
    """

    label: str
    law: Law
    variance: float


def standard_candidates(fan_in: int, fan_out: int) -> list[Candidate]:
    """The initialisers of ``torch.nn.init`` for one pair of fans, the common ones first.

    Xavier: Var = g²·2/(fan_in + fan_out). Kaiming: Var = g²/fan. A uniform law U(-b, b) has b = √(3 Var).

    Args:
        fan_in: as torch counts it for this tensor.
        fan_out: as torch counts it for this tensor.

    Returns:
        Candidates.

    References:
        Glorot & Bengio, AISTATS 2010 (Xavier). He et al., ICCV 2015 (Kaiming).
    """
    found = []
    laws: tuple[tuple[str, Law], ...] = (("uniform", "uniform"), ("normal", "normal"))
    for short, law in laws:
        found.append(Candidate(f"xavier_{short}_()", law, 2.0 / (fan_in + fan_out)))
    for short, law in laws:
        for fan, mode in ((fan_in, "fan_in"), (fan_out, "fan_out")):
            found.append(Candidate(f"kaiming_{short}_({mode}, relu)", law, 2.0 / fan))
            found.append(Candidate(f"kaiming_{short}_({mode}, linear)", law, 1.0 / fan))
    for short, law in laws:
        for gain, what in ((math.sqrt(2.0), "√2"), (5.0 / 3.0, "5/3")):
            found.append(Candidate(f"xavier_{short}_(gain={what})", law, gain**2 * 2.0 / (fan_in + fan_out)))
        for fan, mode in ((fan_in, "fan_in"), (fan_out, "fan_out")):
            found.append(Candidate(f"kaiming_{short}_({mode}, tanh)", law, 25.0 / 9.0 / fan))
            found.append(Candidate(f"kaiming_{short}_({mode}, selu)", law, 9.0 / 16.0 / fan))
    found.append(Candidate("truncated normal, Var = 1/fan_in", "truncated normal", 1.0 / fan_in))
    found.append(Candidate("truncated normal, Var = 2/fan_in", "truncated normal", 2.0 / fan_in))
    return found


def plain_candidates() -> list[Candidate]:
    """What people write by hand: a few values cannot pin down a plain law, but they can agree with one of these."""
    return [Candidate(f"normal_(std={std:g})", "normal", std**2) for std in (0.02, 0.01, 0.1, 1.0, 0.001)]


def matching_initializers(
    moments: ValueMoments, laws: Sequence[Law], candidates: Sequence[Candidate]
) -> tuple[tuple[str, Law], ...]:
    """Every candidate that could have drawn these values, and plain laws with round parameters.

    A candidate fits when the second moment is within 1 ± 4·√((κ-1)/n) of its variance (κ the law's kurtosis), and, for
    a uniform law, the largest value lies inside its bound by no more than the share 12/n.

    Args:
        moments: of the values.
        laws: those that fit, the most likely one first.
        candidates: initialisers in order of preference.

    Returns:
        Label and law, in order of preference; empty when nothing fits.
    """
    found: dict[str, Law] = {}
    if moments.mean_is_zero:
        for candidate in candidates:
            if candidate.law in laws and _fits(moments, candidate):
                found.setdefault(candidate.label, candidate.law)
    plain = _round_law(moments, laws[0]) if laws else None
    if plain is not None:
        found.setdefault(plain, laws[0])
    return tuple(found.items())


def _variance_error(moments: ValueMoments, law: Law) -> float:
    return _Z * math.sqrt((_SHAPES[law].kurtosis - 1.0) / moments.count) + 2.0 * moments.resolution


def _fits(moments: ValueMoments, candidate: Candidate) -> bool:
    ratio = moments.second_moment / candidate.variance
    if abs(ratio - 1.0) > _variance_error(moments, candidate.law):
        return False
    if candidate.law != "uniform":
        return True
    reach = moments.max_abs / math.sqrt(3.0 * candidate.variance)
    return 1.0 - _SHORTFALL / moments.count - moments.resolution <= reach <= 1.0 + 1e-6 + moments.resolution


def _round_law(moments: ValueMoments, law: Law) -> str | None:
    """The law with parameters of one or two significant digits, where the values pin them down that well."""
    if law == "uniform":
        error = _SHORTFALL / moments.count + moments.resolution
        if moments.mean_is_zero:
            bound = _round(moments.max_abs, error)
            return None if bound is None else f"uniform_({-bound:g}, {bound:g})"
        half = (moments.high - moments.low) / 2.0
        ends = [
            0.0 if abs(x) <= error * half else _round(x, error * half / abs(x)) for x in (moments.low, moments.high)
        ]
        return None if None in ends else f"uniform_({ends[0]:g}, {ends[1]:g})"
    std = _round(math.sqrt(moments.variance), _variance_error(moments, law) / 2.0)
    if std is None:
        return None
    mean = "" if moments.mean_is_zero else f"mean={moments.mean:.3g}, "
    return f"{'normal_' if law == 'normal' else 'trunc_normal_'}({mean}std={std:g})"


def _round(value: float, error: float) -> float | None:
    """The round number within a relative error of a value, when the error is too small for a chance hit."""
    for digits in (1, 2):
        rounded = float(f"{value:.{digits - 1}e}")
        # The error must be well below the steps between round values, or every value would look round. People choose
        # 0.01, 0.02 and 0.05 more often than the rest. Chosen by us.
        common = f"{abs(rounded):e}"[0] in "125"
        enough = 0.002 if digits == 2 else 0.05 if common else 0.01
        if error <= enough and abs(value / rounded - 1.0) <= error:
            return rounded
    return None
