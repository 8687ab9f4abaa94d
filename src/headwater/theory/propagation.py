"""How second moments travel through wide, deep networks of random weights: the mean-field theory of signals.

Notation: σ_w² = fan_in · Var(W), σ_b² = Var(b), φ the activation, q the second moment of a pre-activation h,
z ~ N(0, 1). Assumed throughout: independent zero-mean weights, zero-mean independent biases, width → ∞, and gradients
independent of the weights they pass.

References:
    Poole et al., *Exponential expressivity in deep neural networks through transient chaos*, NeurIPS 2016.
    Schoenholz et al., *Deep Information Propagation*, ICLR 2017. He et al., *Delving Deep into Rectifiers*, ICCV 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from headwater.errors import InputError
from headwater.theory.elementwise import Activation
from headwater.theory.gaussian import ActivationMoments

__all__ = [
    "correlation_map",
    "critical_init",
    "default_linear_factor",
    "depth_scale",
    "fixed_point",
    "gradient_multiplier",
    "variance_map",
    "weight_gradient_second_moment",
]

# Search ranges, chosen by us: second moments that float32 activations can have.
_SMALLEST, _LARGEST = 1e-12, 1e12
_ZERO = 1e-10  # below this, without a bias, the map has no other fixed point than 0 that rounding could show
_SAME = 1e-12  # relative accuracy of the quadrature


def _non_negative(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not (0.0 <= value < math.inf):
            raise InputError(f"{name} should be a finite number, not negative; got {value!r}")


def _moments(fn: Activation | ActivationMoments) -> ActivationMoments:
    return fn if isinstance(fn, ActivationMoments) else ActivationMoments(fn)


def variance_map(
    fn: Activation | ActivationMoments,
    weight_variance: float,
    bias_variance: float = 0.0,
    preactivation_variance: float = 1.0,
) -> float:
    """The next layer's pre-activation variance: q' = σ_w² E[φ(√q z)²] + σ_b².

    Args:
        fn: the activation φ.
        weight_variance: σ_w², fan_in times the variance of a weight.
        bias_variance: σ_b².
        preactivation_variance: q of this layer.

    Returns:
        q' of the next layer.

    References:
        Poole et al., NeurIPS 2016.
    """
    _non_negative(
        weight_variance=weight_variance, bias_variance=bias_variance, preactivation_variance=preactivation_variance
    )
    return weight_variance * _moments(fn).second_moment(preactivation_variance) + bias_variance


def gradient_multiplier(
    fn: Activation | ActivationMoments, weight_variance: float, preactivation_variance: float
) -> float:
    """By what a layer multiplies the squared gradient on its way back: χ = σ_w² E[φ'(√q z)²].

    Args:
        fn: the activation φ.
        weight_variance: σ_w² = fan_in · Var(W), equal widths assumed; use fan_out · Var(W) for unequal ones.
        preactivation_variance: q.

    Returns:
        χ: below 1 the gradient vanishes with depth, above 1 it explodes. The factor on the RMS is √χ.

    Example:
        >>> round(gradient_multiplier("relu", weight_variance=2.0, preactivation_variance=7.0), 12)
        1.0

    References:
        Schoenholz et al., ICLR 2017; Poole et al., NeurIPS 2016.
    """
    _non_negative(weight_variance=weight_variance, preactivation_variance=preactivation_variance)
    return weight_variance * _moments(fn).slope_second_moment(preactivation_variance)


def depth_scale(multiplier: float) -> float:
    """Over how many layers the squared gradient changes e-fold: ξ = 1/|ln χ|.

    Args:
        multiplier: χ, above 0.

    Returns:
        ξ in layers; ``inf`` at χ = 1.

    Raises:
        InputError: χ is not above 0.

    References:
        Schoenholz et al., ICLR 2017.
    """
    if not multiplier > 0.0:
        raise InputError(f"the gradient multiplier should be above 0, got {multiplier!r}")
    rate = abs(math.log(multiplier))
    return 1.0 / rate if rate > 0.0 else math.inf


def fixed_point(
    fn: Activation | ActivationMoments, weight_variance: float, bias_variance: float = 0.0, start: float = 1.0
) -> float:
    """The pre-activation variance q* = σ_w² E[φ(√q* z)²] + σ_b² that a deep network settles at.

    From ``start`` the variance moves up or down; the first fixed point in that direction is the answer. This is where
    the map leads when it is increasing, as it is for every monotone activation.

    Args:
        fn: the activation φ.
        weight_variance: σ_w².
        bias_variance: σ_b².
        start: q of the first layer, above 0.

    Returns:
        q*; 0 when the signal dies out, ``inf`` when it grows without end, ``start`` when every q is a fixed point
        (ReLU at σ_w² = 2).

    Raises:
        InputError: an argument is negative or not finite, or ``start`` is 0.

    Example:
        >>> round(fixed_point("tanh", 1.5, 0.05), 3)
        0.418

    References:
        Poole et al., NeurIPS 2016.
    """
    _non_negative(weight_variance=weight_variance, bias_variance=bias_variance, start=start)
    if start == 0.0:
        raise InputError("start should be above 0: without a bias, 0 always stays 0")
    moments = _moments(fn)
    slope = moments.homogeneous_slope
    if slope is not None:  # q' = σ_w² slope q + σ_b²
        grows = weight_variance * slope - 1.0
        if abs(grows) <= _SAME:
            return start if bias_variance == 0.0 else math.inf
        return math.inf if grows > 0.0 else bias_variance / -grows
    rest = bias_variance + weight_variance * moments.second_moment(0.0)  # q' at q = 0

    def drift(q: float) -> float:
        return weight_variance * moments.second_moment(q) + bias_variance - q

    q, change = start, drift(start)
    if abs(change) <= _SAME * q:
        return start
    up, step = change > 0.0, 1.25
    while True:
        previous, q = q, q * step if up else q / step
        step = min(4.0, step * 1.25)
        if up and q > _LARGEST:
            return math.inf
        if not up and q < _ZERO and rest == 0.0:
            return 0.0
        if (drift(q) > 0.0) != up:
            break
    return _root(drift, min(previous, q), max(previous, q))


def _root(fn: Callable[[float], float], low: float, high: float) -> float:
    """Where ``fn`` changes sign between two positive numbers: false position in log x, Illinois variant.

    References:
        Dowell & Jarratt, *A modified regula falsi method for computing the root of an equation*, BIT 1971.
    """
    a, b = math.log(low), math.log(high)
    at_a, at_b = fn(low) / low, fn(high) / high
    side = 0
    for step in range(120):
        if b - a <= 1e-15 * max(1.0, abs(a)) or 0.0 in (at_a, at_b):
            break
        finite = math.isfinite(at_a) and math.isfinite(at_b)
        middle = (a * at_b - b * at_a) / (at_b - at_a) if finite and step % 8 != 7 else 0.5 * (a + b)
        if not a < middle < b:
            break
        x = math.exp(middle)
        value = fn(x) / x
        if abs(value) <= _SAME:  # the quadrature cannot tell it from 0
            return x
        if (value > 0.0) == (at_b > 0.0):
            b, at_b = middle, value
            at_a = at_a / 2.0 if side == -1 else at_a
            side = -1
        else:
            a, at_a = middle, value
            at_b = at_b / 2.0 if side == 1 else at_b
            side = 1
    return math.exp(a if at_a == 0.0 else b if at_b == 0.0 else 0.5 * (a + b))


def critical_init(fn: Activation | ActivationMoments, bias_variance: float = 0.0) -> tuple[float, float]:
    """The weight variance at which a deep network keeps its gradient, and the signal level it then has.

    Solves χ = σ_w² E[φ'(√q z)²] = 1 together with q = σ_w² E[φ(√q z)²] + σ_b².

    - Positively homogeneous φ (ReLU, LeakyReLU, linear): σ_w² does not depend on q. Without a bias every q is a fixed
      point and q = 1 is returned by convention; with one, q grows by σ_b² per layer and ``inf`` is returned.
    - σ_b² = 0 and φ(0) = 0: if no q > 0 solves both, the solution is the limit q → 0, σ_w² = 1/E[φ'²] there (tanh: 1).
      The signal then drifts slowly. For activations that grow faster than linearly near 0 (GELU, SiLU: σ_w² = 4) it
      drifts upward and this solution repels.
    - A small bias does not help those: below a bias variance of 0.17 (GELU), 0.09 (Mish), 0.51 (Hardswish) or 0.56
      (SiLU) the signal runs away from every critical point. Above, there is a stable one, at a large q (GELU at 0.2:
      σ_w² = 1.97, q = 4.5). Or take :func:`headwater.gain`, normalise, or add shortcuts.
    - Several solutions: the first (in q) whose variance map is stable, else the first.

    Args:
        fn: the activation φ.
        bias_variance: σ_b².

    Returns:
        ``(weight_variance, preactivation_variance)``: σ_w² = fan_in · Var(W), and q*.

    Raises:
        InputError: there is no solution with this bias variance, or φ is no elementwise activation.

    Example:
        >>> weight_variance, q = critical_init("tanh", bias_variance=0.05)
        >>> round(weight_variance, 3), critical_init("relu")
        (1.761, (2.0, 1.0))

    References:
        Schoenholz et al., ICLR 2017 (the critical line); He et al., ICCV 2015 (ReLU).
    """
    _non_negative(bias_variance=bias_variance)
    moments = _moments(fn)
    scale = moments.homogeneous_slope
    if scale is not None:
        return 1.0 / scale, 1.0 if bias_variance == 0.0 else math.inf
    at_zero = moments.second_moment(0.0)

    def excess(q: float) -> float:
        # What q' exceeds q by when σ_w² is set to keep the gradient at q.
        slopes = moments.slope_second_moment(q)
        return moments.second_moment(q) / slopes + bias_variance - q if slopes > 0.0 else math.inf

    def solution(q: float) -> tuple[float, float]:
        return 1.0 / moments.slope_second_moment(q), q

    roots: list[tuple[float, float]] = []
    # Without a bias, rounding decides the sign of the excess at small q: start where it no longer does.
    q = max(bias_variance, at_zero, _SMALLEST) if bias_variance > 0.0 or at_zero > 0.0 else 1e-3
    value = excess(q)
    while q < 1e6:
        following = q * 1.3
        next_value = excess(following)
        significant = min(abs(value), abs(next_value)) > 1e-9 * q or bias_variance > 0.0
        if (value > 0.0) != (next_value > 0.0) and math.isfinite(value) and significant:
            root = solution(_root(excess, q, following))
            roots.append(root)
            if _is_stable(moments, *root):
                return root
        q, value = following, next_value
    if roots:
        return roots[0]
    slope = _slope_at_zero(moments)
    if bias_variance == 0.0 and at_zero == 0.0 and slope > 0.0:
        return 1.0 / slope, 0.0
    raise InputError(
        f"{moments.activation.name} has no critical point at bias variance {bias_variance:g}: no weight variance keeps "
        "both the gradient and the signal; try another bias variance"
    )


def _slope_at_zero(moments: ActivationMoments) -> float:
    """The limit of E[φ'(√q z)²] for q → 0: the mean of φ'² on the two sides of 0."""
    sides = moments.activation.slope(torch.tensor([-1e-12, 1e-12], dtype=torch.float64))
    return float((sides**2).mean())


def _is_stable(moments: ActivationMoments, weight_variance: float, q: float) -> bool:
    low, high = (weight_variance * moments.second_moment(q * f) for f in (0.999, 1.001))
    return (high - low) / (0.002 * q) < 1.0


def correlation_map(
    fn: Activation | ActivationMoments,
    correlation: float,
    weight_variance: float,
    bias_variance: float = 0.0,
    preactivation_variance: float | None = None,
) -> float:
    """The correlation of two inputs' pre-activations one layer on.

    c' = (σ_w² E[φ(u)φ(v)] + σ_b²) / q' for u, v of variance q and correlation c. In the ordered phase (χ < 1) it moves
    to 1: the inputs merge. In the chaotic phase they separate.

    Args:
        fn: the activation φ.
        correlation: c, -1 to 1.
        weight_variance: σ_w².
        bias_variance: σ_b².
        preactivation_variance: q; None for the fixed point.

    Returns:
        c'.

    Raises:
        InputError: the signal dies out or grows without end, so that there is no q to evaluate at.

    References:
        Poole et al., NeurIPS 2016.
    """
    moments = _moments(fn)
    q = preactivation_variance
    if q is None:
        q = fixed_point(moments, weight_variance, bias_variance)
        if not 0.0 < q < math.inf:
            raise InputError(f"the pre-activation variance goes to {q:g}: give the one to evaluate at")
    following = variance_map(moments, weight_variance, bias_variance, q)
    return (weight_variance * moments.product_moment(q, correlation) + bias_variance) / following


def default_linear_factor(fn: Activation | ActivationMoments, fan_in: int | None = None) -> float:
    """RMS factor per layer on the gradient under torch's default ``nn.Linear`` (U(±1/√n): n Var(W) = 1/3), deep inside.

    √χ = √(E[φ'(√q* z)²] / 3) at the fixed point q* of σ_w² = 1/3 and σ_b² = 1/(3 fan_in).

    Args:
        fn: the activation φ.
        fan_in: width; None for infinite width, where the default bias no longer counts.

    Returns:
        The factor: 0.408 for ReLU, 0.577 for linear and for tanh near 0.

    Example:
        >>> round(default_linear_factor("relu"), 4)
        0.4082

    References:
        Glorot & Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010
        (this initialisation, there called standard).
    """
    moments = _moments(fn)
    q = fixed_point(moments, 1.0 / 3.0, 1.0 / (3.0 * fan_in) if fan_in else 0.0)
    return math.sqrt(gradient_multiplier(moments, 1.0 / 3.0, min(max(q, _SMALLEST), _LARGEST)))


def weight_gradient_second_moment(
    samples: int, activation: float, gradient: float, activation_covariance: float, gradient_covariance: float
) -> float:
    """Second moment of an element of ∂L/∂W = Σ_n δ_n a_nᵀ over a batch: N q_a q_δ + N(N-1) c_a c_δ.

    Args:
        samples: N.
        activation: q_a, second moment of the layer's input.
        gradient: q_δ, second moment of one sample's ∂L/∂h.
        activation_covariance: c_a = E[a_n a_m] for two different samples.
        gradient_covariance: c_δ = E[δ_n δ_m] for two different samples.

    Returns:
        The second moment; independence of a and δ assumed.
    """
    return samples * (activation * gradient + (samples - 1) * activation_covariance * gradient_covariance)
