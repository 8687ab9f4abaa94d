"""The phase diagram against the formulas it is tabulated from, and against known lines."""

import math

import pytest
import torch
from torch import nn

from headwater.errors import InputError
from headwater.theory import critical_init, fixed_point
from headwater.theory.gaussian import ActivationMoments
from headwater.theory.moment_table import MomentTable
from headwater.theory.phase import activation_gains, critical_point, phase_diagram, phase_point

# A kink, a jump of the slope away from 0, an offset at 0, one that oscillates, and smooth ones.
NAMES = [
    "tanh",
    "gelu",
    "sigmoid",
    "hardtanh",
    "hardshrink",
    "elu",
    "softplus",
    pytest.param("sin", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_moments_agrees_with_adaptive_quadrature(name):
    moments = ActivationMoments(name)
    table = MomentTable(moments)
    for q in (3.3e-9, 1.7e-4, 0.31, 1.0, 7.7, 2.9e3, 4.4e6):
        at = torch.tensor([q], dtype=torch.float64)
        assert float(table.second_moment(at)) == pytest.approx(moments.second_moment(q), rel=3e-7, abs=1e-18)
        assert float(table.slope_second_moment(at)) == pytest.approx(
            moments.slope_second_moment(q), rel=3e-7, abs=1e-18
        )


@pytest.mark.parametrize("name", ["tanh", "gelu", "elu", "relu", "softplus"])
def test_every_cell_is_what_the_formulas_give(name):
    diagram = phase_diagram(name, resolution=9)
    for i in (0, 1, 4, 8):
        for j in (0, 3, 8):
            point = phase_point(name, diagram.weight_variances[j], diagram.bias_variances[i])
            q = diagram.preactivation_variances[i][j]
            if math.isfinite(point.preactivation_variance):
                assert q == pytest.approx(point.preactivation_variance, rel=1e-5, abs=1e-9)
            else:
                assert q == math.inf
            assert diagram.multipliers[i][j] == pytest.approx(point.multiplier, rel=1e-5)


def test_the_critical_line_of_tanh_is_the_published_one():
    # THEORY.md: σ_b² 0 → 1, 0.05 → 1.761, 0.1 → 1.986, 0.3 → 2.505
    line = {p.bias_variance: p for p in phase_diagram("tanh", resolution=61).critical}
    for bias, weight in ((0.0, 1.0), (0.05, 1.761), (0.1, 1.986), (0.3, 2.505)):
        near = min(line, key=lambda b: abs(b - bias))
        assert near == pytest.approx(bias, abs=1e-12)
        assert line[near].weight_variance == pytest.approx(weight, abs=6e-4)
        assert not line[near].jumps
    assert critical_point("tanh", 0.05).weight_variance == pytest.approx(critical_init("tanh", 0.05)[0], rel=1e-6)


def test_relu_is_critical_at_two_whatever_the_bias():
    diagram = phase_diagram("relu", resolution=20)
    assert {round(p.weight_variance, 9) for p in diagram.critical} == {2.0}
    # at the border every signal is kept without a bias and grows with one
    assert diagram.critical[0].preactivation_variance == 1.0
    assert diagram.critical[-1].preactivation_variance == math.inf


def test_gelu_jumps_from_one_phase_to_the_other_at_small_biases():
    # Without a bias a signal of variance 1 dies out where σ_w² E[gelu(z)²] < 1 and grows without end above: the border
    # is at 1/E[gelu²] = 1.5335² = 2.3517, where χ leaps from σ_w²/4 (slope 1/2 at 0) to σ_w²/2.
    point = critical_point("gelu", 0.0)
    assert point.weight_variance == pytest.approx(1.5335**2, abs=2e-4)
    assert point.jumps
    assert not critical_point("gelu", 0.2).jumps


def test_the_state_that_signals_settle_at_is_that_of_the_scalar_solver_near_the_critical_line():
    moments = ActivationMoments("tanh")
    weights = torch.tensor([1.0005, 1.01, 1.2, 3.0], dtype=torch.float64)
    for bias in (0.0, 1e-6, 0.01):
        found = MomentTable(moments).fixed_point(weights, torch.full_like(weights, bias))
        for w, q in zip(weights.tolist(), found.tolist(), strict=True):
            assert q == pytest.approx(fixed_point(moments, w, bias), rel=1e-4)


def test_the_axes_reach_a_point_that_is_to_be_included():
    diagram = phase_diagram("relu", resolution=5, include=(9.0, 2.0))
    assert diagram.weight_variances[-1] > 9.0
    assert diagram.bias_variances[-1] > 2.0
    given = phase_diagram("relu", resolution=5, weight_max=3.0, bias_max=1.0, include=(9.0, 2.0))
    assert (given.weight_variances[-1], given.bias_variances[-1]) == (3.0, 1.0)


def test_points_know_their_phase_depth_scale_and_decades():
    # relu: χ = σ_w²/2, ξ = 1/|ln χ|, decades ½ log10 χ
    low, middle, high = (phase_point("relu", w, 0.0) for w in (1.0, 2.0, 4.0))
    assert (low.phase, middle.phase, high.phase) == ("ordered", "critical", "chaotic")
    assert low.depth_scale == pytest.approx(1 / math.log(2))
    assert middle.depth_scale > 1e12  # χ = 1 to rounding
    assert high.decades_per_layer == pytest.approx(0.5 * math.log10(2))
    dead = phase_point(nn.Hardshrink(), 0.01, 0.0)
    assert (dead.depth_scale, dead.phase, dead.decades_per_layer) == (0.0, "ordered", -math.inf)


@pytest.mark.slow
def test_the_table_of_gains_holds_every_activation_and_critical_values_where_there_are_any():
    rows = {row.name: row for row in activation_gains()}
    assert len(rows) == 26
    assert rows["relu"].critical_weight_variance == pytest.approx(2.0)
    assert rows["tanh"].critical_weight_variance == pytest.approx(1.0, abs=1e-3)
    assert rows["gelu"].critical_weight_variance is None
    assert rows["gelu"].torch is None
    assert rows["tanh"].torch == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weight_max": 0.0}, "weight_max"), ({"bias_max": math.inf}, "bias_max"), ({"resolution": 1}, "resolution")],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        phase_diagram("tanh", **options)
