"""Quadrature against closed forms, at kinks, at jumps, and for tiny and huge variances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import InputError
from headwater.theory import ActivationMoments, correlated_expectation, derivative, expectation


def density(x):
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def upper_tail(x):
    return 0.5 * math.erfc(x / math.sqrt(2))


@given(st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_a_jump_anywhere_is_integrated_exactly(place):
    # E[1{z > a}] = Q(a)
    assert expectation(lambda x: (x > place).double()) == pytest.approx(upper_tail(place), abs=1e-12)


@given(st.floats(-5, 5), st.floats(-8, 8), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_a_kink_anywhere_is_integrated_exactly(place, variance_log10, mean):
    # x ~ N(m, s²): E[relu(x - a)] = s density(t) - (a - m) Q(t), t = (a - m)/s
    s = 10 ** (variance_log10 / 2)
    t = (place - mean) / s
    expected = s * density(t) - (place - mean) * upper_tail(t)
    assert expectation(lambda x: torch.relu(x - place), s * s, mean) == pytest.approx(expected, rel=1e-9, abs=1e-12 * s)


def test_relu_slope_is_one_half_where_a_node_at_zero_would_give_less():
    assert expectation(lambda x: derivative("relu")(x) ** 2) == pytest.approx(0.5, abs=1e-14)


def test_hardtanh_moments_equal_their_closed_form_at_every_scale():
    # x = s z, cut at ±1, t = 1/s: E φ² = s²(1 - 2Q(t) - 2 t density(t)) + 2 Q(t); E φ'² = 1 - 2 Q(t)
    moments = ActivationMoments("hardtanh")
    for s in (1e-4, 0.1, 1.0, 30.0, 1e2, 1e4):
        t = 1 / s
        inside = math.erf(t / math.sqrt(2)) - 2 * t * density(t) if s < 30 else None
        if inside is not None:
            assert moments.second_moment(s * s) == pytest.approx(s * s * inside + 2 * upper_tail(t), rel=1e-11)
        assert moments.slope_second_moment(s * s) == pytest.approx(math.erf(t / math.sqrt(2)), rel=1e-11)


@pytest.mark.parametrize("s", [1e2, 1e3, 1e4])
def test_a_saturating_function_of_a_huge_input_keeps_its_narrow_slope(s):
    # s large: the density is flat over tanh's bend, ∫(1 - tanh²) = 2 and ∫ sech⁴ = 4/3; the next term is O(1/s³).
    moments = ActivationMoments("tanh")
    assert 1 - moments.second_moment(s * s) == pytest.approx(2 * density(0) / s, rel=2 / s**2 + 1e-9)
    assert moments.slope_second_moment(s * s) == pytest.approx(4 / 3 * density(0) / s, rel=2 / s**2 + 1e-9)


@pytest.mark.parametrize("q", [1e-16, 1e-8, 1e-4])
def test_a_tiny_input_sees_the_taylor_series(q):
    # tanh² = x² - 2x⁴/3 + ..., E = q - 2q² + O(q³); tanh'² = 1 - 2x² + ..., E = 1 - 2q
    moments = ActivationMoments("tanh")
    assert moments.second_moment(q) == pytest.approx(q - 2 * q * q, rel=20 * q * q + 1e-12)
    assert moments.slope_second_moment(q) == pytest.approx(1 - 2 * q, rel=20 * q * q + 1e-12)


def test_polynomials_and_exponentials_have_their_known_moments():
    # E z⁸ = 105; E e^{s z} = e^{s²/2}, whose mass lies near z = s
    assert expectation(lambda x: x**8) == pytest.approx(105, rel=1e-12)
    for s in (1.0, 5.0, 12.0):
        assert expectation(torch.exp, s * s) == pytest.approx(math.exp(s * s / 2), rel=1e-10)


def test_an_expectation_that_diverges_is_refused():
    with pytest.raises(InputError, match="grows as fast as the Gaussian falls"):
        expectation(lambda x: torch.exp(x * x / 2))


def test_zero_variance_gives_the_value_at_the_mean():
    assert expectation("tanh", variance=0.0, mean=0.5) == pytest.approx(math.tanh(0.5))


@pytest.mark.parametrize("variance", [-1.0, math.nan, math.inf])
def test_a_bad_variance_is_refused(variance):
    with pytest.raises(InputError, match="variance"):
        expectation("tanh", variance)


@pytest.mark.parametrize("c", [-1.0, -0.7, 0.0, 0.3, 0.9, 0.999, 0.9999999, 1.0])
@pytest.mark.parametrize("q", [1e-4, 1.0, 1e4])
def test_two_relus_of_correlated_inputs_give_the_arc_cosine_kernel(c, q):
    # Cho & Saul 2009: E[relu(u) relu(v)] = q (sin θ + (π - θ) cos θ) / 2π with cos θ = c
    theta = math.acos(c)
    expected = q * (math.sin(theta) + (math.pi - theta) * c) / (2 * math.pi)
    assert correlated_expectation("relu", "relu", c, q) == pytest.approx(expected, rel=1e-8, abs=1e-9 * q)


@pytest.mark.parametrize("c", [-0.7, 0.0, 0.9, 0.999])
def test_two_steps_of_correlated_inputs_give_the_orthant_probability(c):
    # P(u > 0, v > 0) = (π - arccos c) / 2π
    def step(x):
        return (x > 0).double()

    assert correlated_expectation(step, step, c) == pytest.approx((math.pi - math.acos(c)) / (2 * math.pi), rel=1e-9)


@pytest.mark.parametrize("c", [-0.7, 0.0, 0.5, 0.999])
@pytest.mark.parametrize("q", [0.1, 1.0, 100.0, 1e4])
def test_two_erfs_of_correlated_inputs_give_the_arc_sine_kernel(c, q):
    # Williams 1998: E[erf(u) erf(v)] = 2/π arcsin(2cq / (1 + 2q))
    expected = 2 / math.pi * math.asin(2 * c * q / (1 + 2 * q))
    assert correlated_expectation("erf", "erf", c, q) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_different_functions_may_be_correlated_and_order_does_not_matter():
    # E[u · relu(v)] = c · q · E[relu'] = c q / 2 (Stein)
    assert correlated_expectation("linear", "relu", 0.3, 2.0) == pytest.approx(0.3, rel=1e-9)
    one = correlated_expectation("hardtanh", "relu6", 0.4, 2.0)
    assert correlated_expectation("relu6", "hardtanh", 0.4, 2.0) == pytest.approx(one, rel=1e-9)


def test_a_correlation_out_of_range_is_refused():
    with pytest.raises(InputError, match="between -1 and 1"):
        correlated_expectation("relu", "relu", 1.2)
