"""Expectations over Gaussian inputs, by quadrature that is right at kinks and jumps.

Gauss-Hermite quadrature is wrong where an activation has a kink at a node: E[relu'(z)²] comes out as 0.478 with a
node at 0, instead of 0.5. Here every integral is a sum of Gauss-Lobatto panels that are halved where they have not
converged, so that a kink or jump, wherever it is, ends up in a panel too narrow to matter. Lobatto's rule looks at the
ends of a panel: a jump that hides between an end and the first node of Gauss-Legendre's would go unseen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from headwater.errors import InputError
from headwater.theory.elementwise import Activation, Elementwise, derivative, elementwise

__all__ = ["ActivationMoments", "correlated_expectation", "derivative", "expectation"]

# Numerical settings, chosen by us; tests/theory/test_gaussian.py holds the results against closed forms.
_LIMIT = 12.0  # standard deviations; the density beyond is below 1e-32 of its peak
_FAR_LIMIT = 37.0  # where the density is still a normal double; used when 12 is not far enough
_STEP = 0.25  # standard deviations per panel away from special points
_FINEST_LOG2 = -40  # panels never start narrower than 2^-40 standard deviations
_TOLERANCE = 1e-13  # error of a panel relative to ∫|integrand|
_DEEPEST = 60  # halvings
_MOST_PANELS = 20_000
_MOST_KNOWN = 10_000  # remembered moments of one activation
_NOISE = 1e-6  # share of ∫|integrand| that may stay unresolved when panels stop helping
_BREAK_DEPTH = 20  # a panel halved this often holds a kink or jump


@functools.lru_cache(maxsize=4)
def _legendre(count: int) -> tuple[Tensor, Tensor]:
    # Golub & Welsch, Calculation of Gauss Quadrature Rules, Math. Comp. 1969: nodes are the eigenvalues of the
    # Jacobi matrix, weights are twice the squared first components of its eigenvectors.
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / torch.sqrt(4.0 * k * k - 1.0)
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, 2.0 * vectors[0] ** 2


@functools.lru_cache(maxsize=4)
def _lobatto(count: int) -> tuple[Tensor, Tensor]:
    # Interior nodes: zeros of P'_{n-1}, eigenvalues of the Jacobi matrix of the weight 1 - x²; weights
    # 2 / (n (n-1) P_{n-1}(x)²). Abramowitz & Stegun, Handbook of Mathematical Functions, 1964, section 25.4.
    k = torch.arange(1, count - 2, dtype=torch.float64)
    off = torch.sqrt(k * (k + 2.0) / ((2.0 * k + 1.0) * (2.0 * k + 3.0)))
    inside = torch.linalg.eigvalsh(torch.diag(off, 1) + torch.diag(off, -1))
    nodes = torch.cat([torch.tensor([-1.0]), inside, torch.tensor([1.0])])
    before, value = torch.ones_like(nodes), nodes.clone()
    for degree in range(2, count):
        before, value = value, ((2 * degree - 1) * nodes * value - (degree - 1) * before) / degree
    weights = 2.0 / (count * (count - 1) * value**2)
    # A hair inside, so that a jump exactly at an edge (where panels are made to meet) is not seen from the wrong side.
    return nodes * (1.0 - 1e-13), weights


def _density(z: Tensor) -> Tensor:
    return z.square().mul(-0.5).exp().mul(1.0 / math.sqrt(2.0 * math.pi))


def _graded(feature: float) -> Tensor:
    # Offsets that halve from 1/2 down to an eighth of the finest feature, on both sides of 0.
    finest = max(_FINEST_LOG2, min(-1, math.floor(math.log2(feature)) - 3))
    near = 2.0 ** torch.arange(finest, 0, dtype=torch.float64)
    return torch.cat([-near, torch.zeros(1, dtype=torch.float64), near])


def _edges(special: Iterable[float], limit: float, feature: float) -> Tensor:
    # An even grid, and panels that halve in width towards each special point from both sides.
    even = torch.linspace(-limit, limit, 2 * round(limit / _STEP) + 1, dtype=torch.float64)
    near = _graded(feature)
    parts = [even, *(near + point for point in special if abs(point) < limit)]
    edges: Tensor = torch.unique(torch.cat(parts).clamp(-limit, limit))
    return edges


def _integrate(
    integrand: Callable[[Tensor], Tensor], edges: Tensor, tolerance: float = _TOLERANCE
) -> tuple[float, list[float], float]:
    """∫ over the panels between ``edges``; also the places found to be kinks, and the share of the outermost panels."""
    nodes, weights = _lobatto(12)

    def panels(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        half = 0.5 * (right - left)
        points = 0.5 * (left + right)[:, None] + half[:, None] * nodes
        values = integrand(points.flatten()).reshape(points.shape) * weights
        return values.sum(1) * half, values.abs().sum(1) * half

    left, right = edges[:-1], edges[1:]
    whole, size = panels(left, right)
    rim = float(size[0] + size[-1])
    total, magnitude = 0.0, float(size.sum())
    breaks: list[float] = []
    if magnitude == 0.0:
        return 0.0, [], 0.0
    for depth in range(_DEEPEST):
        middle = 0.5 * (left + right)
        low, low_size = panels(left, middle)
        high, high_size = panels(middle, right)
        done = (low + high - whole).abs() <= tolerance * magnitude
        done |= (middle <= left) | (middle >= right)
        total += float((low + high)[done].sum())
        if depth == 0:
            magnitude = float((low_size + high_size).sum())
        open_ = ~done
        if depth >= _BREAK_DEPTH and bool(open_.any()):
            # Deeper panels know the place better: they replace what a shallower one said.
            near, width = middle[open_].tolist(), float((right - left).max())
            breaks = [x for x in breaks if all(abs(x - y) > 4.0 * width for y in near)] + near
        if not bool(open_.any()):
            return total, breaks, rim / magnitude
        if 2 * int(open_.sum()) > _MOST_PANELS:
            # Rounding noise of the function itself does not shrink with the panels; what matters is its share.
            if float((low + high - whole)[open_].abs().sum()) <= _NOISE * magnitude:
                return total + float((low + high)[open_].sum()), breaks, rim / magnitude
            raise InputError("the function varies too fast to be integrated; is it smooth between a few kinks?")
        left, right = torch.cat([left[open_], middle[open_]]), torch.cat([middle[open_], right[open_]])
        whole = torch.cat([low[open_], high[open_]])
    return total + float(whole.sum()), breaks, rim / magnitude


def _gaussian_integral(fn: Callable[[Tensor], Tensor], variance: float, mean: float, special: Iterable[float]) -> float:
    """E[fn(mean + √variance z)]; ``special`` holds places to refine at, in units of fn's argument."""
    if not (math.isfinite(variance) and variance >= 0.0 and math.isfinite(mean)):
        raise InputError(f"variance should be finite and not negative, mean finite; got {variance!r} and {mean!r}")
    scale = math.sqrt(variance)
    if scale == 0.0:
        return float(fn(torch.tensor([mean], dtype=torch.float64)))
    points = [(x - mean) / scale for x in special]
    for limit in (_LIMIT, _FAR_LIMIT):
        value, _, rim = _integrate(lambda z: fn(mean + scale * z) * _density(z), _edges(points, limit, 1.0 / scale))
        if rim <= 1e-12:
            return value
    raise InputError(
        f"E[f(x)] at standard deviation {scale:.3g} does not converge: the function grows as fast as the Gaussian falls"
    )


def expectation(fn: Activation, variance: float = 1.0, mean: float = 0.0) -> float:
    """E[fn(x)] for x ~ N(mean, variance).

    Adaptive composite Gauss-Legendre quadrature over ±12 standard deviations in float64; 0 is always a panel edge,
    and panels are refined around every kink and jump that is found. Relative accuracy about 1e-12 of E|fn(x)|.

    Args:
        fn: an elementwise function, module, module class or name.
        variance: of x; not negative. 0 gives ``fn(mean)``.
        mean: of x.

    Returns:
        The expectation.

    Raises:
        InputError: ``fn`` is not elementwise or not finite, or the expectation does not converge.

    Example:
        >>> round(expectation(lambda z: torch.relu(z) ** 2), 12)
        0.5
    """
    return _gaussian_integral(elementwise(fn), variance, mean, (0.0,))


class ActivationMoments:
    """The Gaussian moments of one activation as functions of the variance q of what enters it.

    Its kinks and jumps are found once and are panel edges of every integral, so that scans over q cost little.

    Args:
        fn: an elementwise function, module, module class or name.

    Attributes:
        activation: φ in float64.
        breaks: where φ or φ' jumps within ±40; 0 is always among them.
    """

    def __init__(self, fn: Activation) -> None:
        self.activation: Elementwise = elementwise(fn)
        self.breaks: tuple[float, ...] = _find_breaks(self.activation)
        self._known: dict[tuple[str, float], float] = {}  # scans of many layers meet the same variances

    def _expect(self, what: str, fn: Callable[[Tensor], Tensor], variance: float) -> float:
        key = what, variance
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = _gaussian_integral(fn, variance, 0.0, self.breaks)
        return self._known[key]

    @functools.cached_property
    def homogeneous_slope(self) -> float | None:
        """E[φ'²] when φ(cx) = cφ(x) for every c > 0 (to rounding): ReLU 1/2, linear 1; None for any other φ."""
        slopes = [self.slope_second_moment(q) for q in (1e-4, 1.0, 1e4)]
        values = slopes + [self.second_moment(q) / q for q in (1e-4, 1.0, 1e4)]
        same = max(values) - min(values) <= 1e-10 * max(values)
        return round(slopes[1], 14) if same and slopes[1] > 0.0 else None

    def mean(self, variance: float) -> float:
        """E[φ(√q z)].

        Args:
            variance: q.

        Returns:
            The mean of the activation.
        """
        return self._expect("mean", self.activation, variance)

    def second_moment(self, variance: float) -> float:
        """E[φ(√q z)²].

        Args:
            variance: q.

        Returns:
            The second moment of the activation.
        """
        return self._expect("second", lambda x: self.activation(x) ** 2, variance)

    def slope_second_moment(self, variance: float) -> float:
        """E[φ'(√q z)²], the factor by which the activation multiplies the squared gradient.

        Args:
            variance: q.

        Returns:
            The second moment of the derivative.
        """
        return self._expect("slope", lambda x: self.activation.slope(x) ** 2, variance)

    def product_moment(self, variance: float, correlation: float) -> float:
        """E[φ(u) φ(v)] for u, v of variance q and the given correlation.

        Args:
            variance: q.
            correlation: of u and v, -1 to 1.

        Returns:
            The moment.
        """
        return _correlated(self.activation, self.activation, variance, correlation, self.breaks)


def correlated_expectation(first: Activation, second: Activation, correlation: float, variance: float = 1.0) -> float:
    """E[f(u) g(v)] for a centred Gaussian pair with equal variances.

    Rotated to independent a, b: u = √q a, v = √q (c a + √(1-c²) b). For each a the inner integral has panel edges
    where v meets a kink of g; the outer one has them at the kinks of f.

    Args:
        first: f, an elementwise function, module, module class or name.
        second: g, likewise.
        correlation: c of u and v, -1 to 1.
        variance: q of u and of v.

    Returns:
        The expectation.

    Raises:
        InputError: a function is not elementwise or not finite, or the correlation is out of range.

    Example:
        >>> round(correlated_expectation("relu", "relu", 0.0), 12) == round(1 / (2 * torch.pi), 12)
        True

    References:
        Cho & Saul, *Kernel Methods for Deep Learning*, NeurIPS 2009 (the closed form for ReLU, in the tests).
    """
    f, g = elementwise(first), elementwise(second)
    return _correlated(f, g, variance, correlation, tuple({*_find_breaks(f), *_find_breaks(g)}))


@functools.lru_cache(maxsize=64)
def _find_breaks(fn: Elementwise) -> tuple[float, ...]:
    """0 and the kinks and jumps of a function within ±40, whatever their weight in some expectation."""
    # Panels of about 1/4 whose ends are no round numbers: a kink at an end would not be noticed. 0 is one anyway.
    even = torch.linspace(-39.873, 39.873, 320, dtype=torch.float64)
    edges = torch.cat([even[:160], torch.zeros(1, dtype=torch.float64), even[160:]])
    found = [0.0]
    for part in (fn, fn.slope):
        _, breaks, _ = _integrate(lambda x, part=part: part(x) / (1.0 + x * x), edges)  # type: ignore[misc]
        for x in breaks:
            if all(abs(x - known) > 1e-6 * (1.0 + abs(x)) for known in found) and len(found) < 32:
                found.append(x)
    return tuple(found)


def _correlated(
    f: Elementwise, g: Elementwise, variance: float, correlation: float, breaks: tuple[float, ...]
) -> float:
    if not -1.0 <= correlation <= 1.0:
        raise InputError(f"a correlation lies between -1 and 1, got {correlation!r}")
    scale, rest = math.sqrt(variance), math.sqrt((1.0 - correlation) * (1.0 + correlation))
    if scale == 0.0 or rest < 1e-9:  # below 1e-9 the difference is less than the quadrature's own error
        sign = -1.0 if correlation < 0.0 else 1.0
        return _gaussian_integral(lambda x: f(x) * g(sign * x), variance, 0.0, (*breaks, *(-b for b in breaks)))
    nodes, weights = _legendre(10)
    fractions = 0.5 * (nodes + 1.0)
    special = torch.tensor(sorted(x / scale for x in breaks), dtype=torch.float64)
    even = torch.arange(-_LIMIT, _LIMIT + 0.5, dtype=torch.float64)
    near = _graded(1.0 / (scale * rest))

    def inner(a: Tensor) -> Tensor:
        # ∫ g(√q (c a + r b)) density(b) db, one row of panels per a
        centres = (special[None, :] - correlation * a[:, None]) / rest
        edges = torch.cat(
            [even.expand(len(a), -1), (centres[:, :, None] + near).flatten(1).clamp(-_LIMIT, _LIMIT)], dim=1
        ).sort(dim=1)[0]
        width = edges[:, 1:] - edges[:, :-1]
        b = edges[:, :-1, None] + width[:, :, None] * fractions
        v = scale * (correlation * a[:, None, None] + rest * b)
        return ((g(v) * _density(b)) @ (0.5 * weights) * width).sum(1)

    def outer(a: Tensor) -> Tensor:
        return torch.cat([inner(part) for part in torch.split(a, 256)]) * f(scale * a) * _density(a)

    turned = special / correlation if abs(correlation) > 0.01 else special  # where the centre of v meets a kink
    points = torch.cat([special, -special, turned]).tolist()
    return _integrate(outer, _edges(points, _LIMIT, min(1.0 / scale, rest)), tolerance=1e-11)[0]
