"""The phase diagram of deep random networks: where gradients vanish, where they explode, and the line between."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwater.errors import InputError
from headwater.records.phase import ActivationGains, CriticalPoint, PhaseDiagram, PhasePoint
from headwater.theory.elementwise import ACTIVATIONS, Activation
from headwater.theory.gain import gain_table
from headwater.theory.gaussian import ActivationMoments
from headwater.theory.moment_table import MomentTable
from headwater.theory.propagation import fixed_point, gradient_multiplier

__all__ = ["activation_gains", "critical_point", "phase_diagram", "phase_point"]

# Chosen by us.
_BIAS_MAX = 0.3  # the published diagrams of tanh end here
_WEIGHT_MAX = 4.0  # where there is no critical point to choose the range by
_SEARCHED = 400.0  # largest σ_w² at which a critical point is looked for
_SMALLEST, _LARGEST = 1e-12, 1e8  # where a signal that dies out or grows without end is evaluated
_JUMP = 0.01  # of χ across the border
_HALVINGS = 30  # of a column's width, for the border
_RANGE_ROWS = 7  # bias variances that the right end is chosen by


def phase_point(fn: Activation | ActivationMoments, weight_variance: float, bias_variance: float) -> PhasePoint:
    """One place of the diagram, by adaptive quadrature.

    Args:
        fn: the activation φ.
        weight_variance: σ_w².
        bias_variance: σ_b².

    Returns:
        q*, χ and what follows from them. Where the signal dies out or grows without end, χ is its limit.

    Example:
        >>> point = phase_point("tanh", 1.0, 0.05)
        >>> round(point.multiplier, 3), round(point.depth_scale, 1), point.phase
        (0.759, 3.6, 'ordered')

    References:
        Poole et al., NeurIPS 2016. Schoenholz et al., ICLR 2017.
    """
    moments = fn if isinstance(fn, ActivationMoments) else ActivationMoments(fn)
    q = fixed_point(moments, weight_variance, bias_variance)
    chi = gradient_multiplier(moments, weight_variance, min(max(q, _SMALLEST), _LARGEST))
    return PhasePoint(
        weight_variance=weight_variance, bias_variance=bias_variance, preactivation_variance=q, multiplier=chi
    )


def phase_diagram(
    fn: Activation,
    *,
    weight_max: float | None = None,
    bias_max: float | None = None,
    resolution: int = 81,
    include: tuple[float, float] | None = None,
) -> PhaseDiagram:
    """The phases of deep networks with one activation, over weight and bias variance.

    For every (σ_w², σ_b²): the variance q* that a signal of variance 1 settles at, and χ = σ_w² E[φ'(√q* z)²] there.
    χ < 1 is the ordered phase, in which gradients vanish, χ > 1 the chaotic one, in which they explode.

    Args:
        fn: the activation φ.
        weight_max: right end of the σ_w² axis; None takes twice the largest critical value.
        bias_max: upper end of the σ_b² axis; None takes 0.3.
        resolution: columns and rows, 2 to 500.
        include: (σ_w², σ_b²) of a point that the axes must reach where their ends are not given.

    Returns:
        The diagram, without a network.

    Raises:
        InputError: no elementwise activation, or a bad number.

    Example:
        >>> diagram = phase_diagram("tanh", resolution=11)
        >>> round(diagram.critical[0].weight_variance, 2)
        1.0

    References:
        Poole et al., *Exponential expressivity in deep neural networks through transient chaos*, NeurIPS 2016.
        Schoenholz et al., *Deep Information Propagation*, ICLR 2017.
    """
    from headwater import __version__

    for name, value in {"weight_max": weight_max, "bias_max": bias_max}.items():
        if value is not None and not (isinstance(value, int | float) and 0.0 < value < math.inf):
            raise InputError(f"{name} should be a finite number above 0, got {value!r}")
    if not (isinstance(resolution, int) and 2 <= resolution <= 500):
        raise InputError(f"resolution should be an integer from 2 to 500, got {resolution!r}")
    moments = ActivationMoments(fn)
    solve = _Solver(moments)
    wanted = (0.0, 0.0) if include is None else include
    top = bias_max if bias_max is not None else max(_BIAS_MAX, 1.15 * wanted[1])
    biases = torch.linspace(0.0, top, resolution, dtype=torch.float64)
    if weight_max is None:
        some = torch.linspace(0.0, top, _RANGE_ROWS, dtype=torch.float64)
        known = solve.border(_searched_weights(), some)
        largest = max((point.weight_variance for point in known), default=0.5 * _WEIGHT_MAX)
        weight_max = max(2.0 * largest, 1.15 * wanted[0])
    weights = torch.linspace(weight_max / resolution, weight_max, resolution, dtype=torch.float64)
    q, chi = solve(weights.repeat(resolution), biases.repeat_interleave(resolution))
    return PhaseDiagram(
        activation=moments.activation.name,
        weight_variances=tuple(weights.tolist()),
        bias_variances=tuple(biases.tolist()),
        multipliers=tuple(map(tuple, chi.view(resolution, resolution).tolist())),
        preactivation_variances=tuple(map(tuple, q.view(resolution, resolution).tolist())),
        critical=tuple(solve.border(weights, _border_biases(top, resolution))),
        headwater_version=__version__,
    )


def critical_point(fn: Activation | ActivationMoments, bias_variance: float) -> CriticalPoint | None:
    """The border between the phases at one bias variance, for signals that start at variance 1.

    Args:
        fn: the activation φ.
        bias_variance: σ_b².

    Returns:
        The smallest σ_w² up to 400 at which χ passes or jumps over 1; None where there is none.
    """
    moments = fn if isinstance(fn, ActivationMoments) else ActivationMoments(fn)
    found = _Solver(moments).border(_searched_weights(), torch.tensor([bias_variance], dtype=torch.float64))
    return found[0] if found else None


def _searched_weights() -> Tensor:
    return torch.logspace(-2, math.log10(_SEARCHED), 120, dtype=torch.float64)


def _border_biases(top: float, count: int) -> Tensor:
    """Bias variances for the border: even ones in a round number of steps, and ever closer ones towards 0."""
    even = torch.linspace(0.0, top, 6 * max(1, count // 6) + 1, dtype=torch.float64)
    near = torch.logspace(math.log10(1e-6 * top), math.log10(float(even[1])), 24, dtype=torch.float64)
    return torch.cat([even[:1], near[:-1], even[1:]])


class _Solver:
    """q* and χ of many (σ_w², σ_b²) at once."""

    def __init__(self, moments: ActivationMoments) -> None:
        self.slope = moments.homogeneous_slope
        self.table = MomentTable(moments) if self.slope is None else None

    def __call__(self, weights: Tensor, biases: Tensor) -> tuple[Tensor, Tensor]:
        if self.table is not None:
            q = self.table.fixed_point(weights, biases)
            return q, weights * self.table.slope_second_moment(q.clamp(_SMALLEST, _LARGEST))
        # Positively homogeneous: q' = σ_w² slope q + σ_b², and χ = σ_w² slope whatever q.
        chi = weights * (self.slope or 0.0)
        ordered = biases / (1.0 - chi).clamp_min(1e-300)
        still = torch.where(biases == 0.0, 1.0, math.inf).to(chi)
        return torch.where(chi < 1.0, ordered, torch.where(chi == 1.0, still, math.inf)), chi

    def border(self, weights: Tensor, biases: Tensor) -> list[CriticalPoint]:
        """The first σ_w² of every bias variance at which χ passes 1 from below, by bisection between the columns."""
        weights = torch.cat([1e-3 * weights[:1], weights])  # the border may lie before the first column
        _, chi = self(weights.repeat(len(biases)), biases.repeat_interleave(len(weights)))
        over = chi.view(len(biases), len(weights)) >= 1.0
        right = over.int().argmax(1)
        found = over.any(1) & (right > 0)
        low, high = weights[(right - 1).clamp_min(0)], weights[right]
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            above = self(middle, biases)[1] >= 1.0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        (q, before), (_, after) = self(low, biases), self(high, biases)
        if self.slope is not None:  # by the convention of critical_init: every q is a fixed point, 1 stands for them
            q = torch.where(biases == 0.0, 1.0, math.inf)
        return [
            CriticalPoint(
                bias_variance=float(biases[i]),
                weight_variance=float(high[i]),
                preactivation_variance=float(q[i]),
                jumps=bool(after[i] - before[i] > _JUMP),
            )
            for i in range(len(biases))
            if bool(found[i])
        ]


def activation_gains() -> tuple[ActivationGains, ...]:
    """The gains and the critical σ_w² (without a bias) of every elementwise activation in torch.

    Returns:
        One row per activation, in the order of :data:`headwater.theory.elementwise.ACTIVATIONS`.
    """
    rows = []
    for row in gain_table():
        point = critical_point(ACTIVATIONS[row.name], 0.0)
        if point is not None and (point.jumps or math.isinf(point.preactivation_variance)):
            point = None
        rows.append(
            ActivationGains(
                name=row.name,
                forward=row.forward,
                backward=row.backward,
                std=row.std,
                torch=row.torch,
                critical_weight_variance=None if point is None else point.weight_variance,
                critical_preactivation_variance=None if point is None else point.preactivation_variance,
            )
        )
    return tuple(rows)
