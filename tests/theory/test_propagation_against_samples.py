"""Mean-field formulas against networks drawn at random; figures are those of the table in the theory notes."""

import math

import pytest
import torch
from torch import nn

from headwater.errors import InputError
from headwater.theory import (
    correlation_map,
    critical_init,
    default_linear_factor,
    depth_scale,
    fixed_point,
    gradient_multiplier,
    variance_map,
    weight_gradient_second_moment,
)
from headwater.theory.elementwise import ACTIVATIONS, elementwise


def sampled_chi(name, weight_variance, bias_variance, *, width=400, depth=24, draws=6, seed=0, start=1.0):
    """Geometric mean over layers of mean(δ_l²)/mean(δ_{l+1}²), and the last q, for plain networks of one width."""
    g = torch.Generator().manual_seed(seed)
    fn = elementwise(name)
    logs, last = [], []
    for _ in range(draws):
        weights = [torch.randn(width, width, generator=g) * math.sqrt(weight_variance / width) for _ in range(depth)]
        h = math.sqrt(start) * torch.randn(width, generator=g)
        slopes = []
        for w in weights:
            x = fn(h.double()).float()
            h = w @ x + torch.randn(width, generator=g) * math.sqrt(bias_variance)
            slopes.append(fn.slope(h.double()).float())
        delta = torch.randn(width, generator=g) * slopes[-1]
        sizes = [delta.square().mean()]
        for w, slope in zip(reversed(weights[1:]), reversed(slopes[:-1]), strict=True):
            delta = (w.t() @ delta) * slope
            sizes.append(delta.square().mean())
        # The first layers have not settled at the fixed point: leave out six at the input side.
        logs.append((sizes[-7].log() - sizes[0].log()) / (len(sizes) - 7))
        last.append(h.square().mean())
    return math.exp(torch.stack(logs).mean()), float(torch.stack(last).mean())


# Tolerance: per layer the log of the squared gradient fluctuates by about √(5/n) = 0.11 (n = 400); over 17 layers and 6
# draws the mean per layer is known to 0.11/√(17·6) = 0.011. Three of those, and 0.01 for finite-width bias.
CHI_TOLERANCE = 0.045


@pytest.mark.parametrize(
    ("weight_variance", "chi", "scale"), [(1.0, 0.759, 3.6), (1.76, 0.9998, 4912), (4.0, 1.342, 3.4)]
)
def test_tanh_gradient_multiplier_and_depth_scale(weight_variance, chi, scale):
    q = fixed_point("tanh", weight_variance, 0.05)
    value = gradient_multiplier("tanh", weight_variance, q)
    assert value == pytest.approx(chi, abs=6e-4)
    assert depth_scale(value) == pytest.approx(scale, rel=0.02)
    assert sampled_chi("tanh", weight_variance, 0.05)[0] == pytest.approx(value, rel=CHI_TOLERANCE)


@pytest.mark.parametrize(("weight_variance", "chi"), [(1.0, 0.5), (2.0, 1.0), (2.5, 1.25)])
def test_relu_halves_the_squared_gradient_whatever_the_signal(weight_variance, chi):
    for q in (1e-6, 1.0, 1e6):
        assert gradient_multiplier("relu", weight_variance, q) == pytest.approx(chi, rel=1e-12)
    assert sampled_chi("relu", weight_variance, 0.0)[0] == pytest.approx(chi, rel=CHI_TOLERANCE)


def test_tanh_settles_at_the_fixed_point():
    q = fixed_point("tanh", 1.5, 0.05)
    assert q == pytest.approx(0.418, abs=5e-4)
    assert variance_map("tanh", 1.5, 0.05, q) == pytest.approx(q, rel=1e-11)
    # One layer's mean square is known to √(2/n) = 7 %; neighbouring layers add to it. Six draws: 15 % is wide.
    assert sampled_chi("tanh", 1.5, 0.05)[1] == pytest.approx(q, rel=0.15)


def test_signals_that_die_or_grow_have_their_limits():
    assert fixed_point("tanh", 0.9) == 0.0
    assert fixed_point("relu", 1.0) == 0.0
    assert fixed_point("relu", 2.5) == math.inf
    assert fixed_point("relu", 2.0) == 1.0
    assert fixed_point("relu", 2.0, 0.1) == math.inf
    assert fixed_point("relu", 1.0, 0.05) == pytest.approx(0.1)  # q = q/2 + 0.05
    assert fixed_point("linear", 0.5, 0.25, start=9.0) == pytest.approx(0.5)
    assert fixed_point("gelu", 5.0) == math.inf


def test_the_fixed_point_does_not_depend_on_the_side_it_is_reached_from():
    low, high = (fixed_point("tanh", 2.0, 0.05, start=start) for start in (1e-3, 1e3))
    assert low == pytest.approx(high, rel=1e-10)


@pytest.mark.parametrize(
    ("bias_variance", "weight_variance"), [(0.0, 1.0), (2.01e-5, 1.050), (0.05, 1.761), (0.1, 1.986), (0.3, 2.505)]
)
def test_the_critical_line_of_tanh(bias_variance, weight_variance):
    found, q = critical_init("tanh", bias_variance)
    assert found == pytest.approx(weight_variance, abs=6e-4)
    if q > 0.0:
        assert gradient_multiplier("tanh", found, q) == pytest.approx(1.0, abs=1e-10)
        assert variance_map("tanh", found, bias_variance, q) == pytest.approx(q, rel=1e-9)


def test_critical_relu_is_he_and_its_signal_level_is_free():
    assert critical_init("relu") == (2.0, 1.0)
    assert critical_init("relu", 0.1) == (2.0, math.inf)
    assert critical_init("linear") == (1.0, 1.0)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "elu", "selu", "hardtanh", "hardswish", "sin", "softsign"])
def test_critical_points_with_a_bias_satisfy_both_equations(name):
    found, q = critical_init(name, 0.05)
    assert gradient_multiplier(name, found, q) == pytest.approx(1.0, abs=1e-9)
    assert variance_map(name, found, 0.05, q) == pytest.approx(q, rel=1e-8)


def test_a_critical_gelu_network_keeps_its_gradient_when_sampled():
    found, q = critical_init("gelu", 0.05)
    chi, sampled_q = sampled_chi("gelu", found, 0.05, start=q)  # it moves to q slowly: start there
    assert chi == pytest.approx(1.0, rel=CHI_TOLERANCE)
    assert sampled_q == pytest.approx(q, rel=0.3)  # near-marginal stability: the signal level wanders


def test_without_a_bias_a_function_through_zero_is_critical_at_its_slope():
    # σ_w² = 1/φ'(0)²: GELU and SiLU 1/2, tanh 1
    for name, slope in (("gelu", 0.5), ("silu", 0.5), ("tanh", 1.0), ("softsign", 1.0)):
        weight_variance, q = critical_init(name)
        assert weight_variance == pytest.approx(1 / slope**2, rel=1e-9)
        assert q == 0.0


def test_softplus_has_no_critical_point():
    with pytest.raises(InputError, match="no critical point"):
        critical_init("softplus")


def test_torch_default_linear_loses_a_known_factor_per_layer():
    assert default_linear_factor("linear") == pytest.approx(3**-0.5)
    assert default_linear_factor("tanh") == pytest.approx(3**-0.5, rel=1e-9)
    assert default_linear_factor("relu") == pytest.approx(6**-0.5)
    for name, width in (("linear", 200), ("relu", 200), ("sigmoid", 100)):
        torch.manual_seed(1)
        rates = []
        for _ in range(8):
            layers = [nn.Linear(width, width) for _ in range(14)]
            x = torch.randn(1, width)
            outputs = []
            for layer in layers:
                x = layer(x)
                x.retain_grad()
                outputs.append(x)
                x = ACTIVATIONS[name](x)
            (x * torch.randn_like(x)).sum().backward()
            first, last = (float(outputs[i].grad.square().mean()) for i in (3, 13))
            rates.append(0.5 * math.log(first / last) / 10)
        # 10 layers, 8 draws: √(5/200)/2/√80 = 0.9 % (1.3 % at width 100); three of those.
        assert math.exp(sum(rates) / 8) == pytest.approx(default_linear_factor(name, width), rel=0.04)


def decades_of_deep_sigmoid():
    # x ~ N(0, 1) enters the first layer: its q is σ_w² + σ_b²; the next ones follow the map.
    weight_variance, bias_variance = 1 / 3, 1 / 300
    q, total = weight_variance + bias_variance, 0.0
    for _ in range(19):  # from ∂L/∂h_20 back to ∂L/∂h_1: 19 weights, each with the slope at h_l below it
        total += 0.5 * math.log10(gradient_multiplier("sigmoid", weight_variance, q))
        q = variance_map("sigmoid", weight_variance, bias_variance, q)
    return total


def test_the_deep_sigmoid_study_loses_sixteen_decades():
    predicted = decades_of_deep_sigmoid()
    assert predicted == pytest.approx(-16.17, abs=0.01)
    torch.manual_seed(0)
    sampled = []
    for _ in range(20):
        x = torch.randn(1, 100)
        pre = []
        for layer in [nn.Linear(100, 100) for _ in range(20)]:
            x = layer(x)
            x.retain_grad()
            pre.append(x)
            x = torch.sigmoid(x)
        (x * torch.randn_like(x)).sum().backward()
        sampled.append(0.5 * math.log10(float(pre[0].grad.square().mean() / pre[-1].grad.square().mean())))
    # One draw scatters by √(5·19/100)/2/ln 10 ≈ 0.2 decades, 20 draws by 0.05; half the variance of the log lies below.
    assert sum(sampled) / 20 == pytest.approx(predicted, abs=0.2)


@pytest.mark.parametrize(("depth", "power"), [(22, 11), (30, 15)])
def test_xavier_on_relu_loses_the_square_root_of_two_per_layer(depth, power):
    # He 2015: σ_w² = 1 instead of 2.
    ratio = math.sqrt(gradient_multiplier("relu", 1.0, 1.0) / gradient_multiplier("relu", 2.0, 1.0)) ** depth
    assert ratio == pytest.approx(2.0**-power, rel=1e-10)
    chi, _ = sampled_chi("relu", 1.0, 0.0, depth=depth)
    assert 0.5 * depth * math.log2(chi) == pytest.approx(-power, rel=0.05)


def test_the_vgg_of_he_2015_loses_four_decades_at_std_001():
    # Kernels 3×3, 64 to 512 channels out of conv2 to conv10; the gradient's n̂ is 9 · channels.
    channels = [64, 128, 128, 256, 256, 512, 512, 512, 512]
    factor = 1.0
    for c in channels:
        factor *= math.sqrt(gradient_multiplier("relu", 9 * c * 0.01**2, 1.0))
    assert 1 / factor == pytest.approx(1.67e4, rel=0.01)


def test_inputs_merge_in_the_ordered_phase_and_separate_in_the_chaotic_one():
    ordered = chaotic = 0.6
    for _ in range(12):
        ordered = correlation_map("tanh", ordered, 1.0, 0.05)
        chaotic = correlation_map("tanh", chaotic, 4.0, 0.05)
    assert ordered > 0.98
    assert chaotic < 0.35
    # Chaos has a fixed point of its own between: from above the correlation falls, from below it rises.
    assert correlation_map("tanh", chaotic, 4.0, 0.05) < chaotic
    assert correlation_map("tanh", 0.0, 4.0, 0.05) > 0.0


def test_the_correlation_map_agrees_with_samples():
    # Width 2,000: a correlation is known to (1 - c²)/√n ≈ 0.017 per draw; four draws, three of those: 0.026.
    g = torch.Generator().manual_seed(0)
    n, c, q, weight_variance = 2000, 0.5, 1.3, 2.0
    found = []
    for _ in range(4):
        a, b = torch.randn(2, n, generator=g)
        u, v = math.sqrt(q) * a, math.sqrt(q) * (c * a + math.sqrt(1 - c * c) * b)
        w = torch.randn(n, n, generator=g) * math.sqrt(weight_variance / n)
        bias = torch.randn(n, generator=g) * math.sqrt(0.1)
        x, y = w @ torch.tanh(u) + bias, w @ torch.tanh(v) + bias
        found.append(float((x * y).sum() / (x.norm() * y.norm())))
    expected = correlation_map("tanh", c, weight_variance, 0.1, q)
    assert sum(found) / 4 == pytest.approx(expected, abs=0.026)


def test_identical_inputs_stay_identical():
    assert correlation_map("gelu", 1.0, 2.0, 0.05, 1.0) == pytest.approx(1.0, abs=1e-9)


def test_the_correlation_map_needs_a_signal():
    with pytest.raises(InputError, match="give the one to evaluate at"):
        correlation_map("relu", 0.5, 3.0)


def test_the_weight_gradient_of_a_batch_adds_up_over_correlated_samples():
    # Samples share a common part: covariance c between any two. 400 × 300 elements: the mean square is known to 1 %.
    g = torch.Generator().manual_seed(0)
    samples, q_a, c_a, q_d, c_d = 16, 1.0, 0.3, 2.0, 0.5
    a = math.sqrt(q_a - c_a) * torch.randn(samples, 400, generator=g) + math.sqrt(c_a) * torch.randn(400, generator=g)
    d = math.sqrt(q_d - c_d) * torch.randn(samples, 300, generator=g) + math.sqrt(c_d) * torch.randn(300, generator=g)
    found = float((d.t() @ a).square().mean())
    # The shared parts are single vectors: their mean squares are known to √(2/300), √(2/400), 11 % together.
    assert found == pytest.approx(weight_gradient_second_moment(samples, q_a, q_d, c_a, c_d), rel=0.25)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_negative_and_infinite_variances_are_refused(bad):
    with pytest.raises(InputError, match="weight_variance"):
        fixed_point("tanh", bad)
    with pytest.raises(InputError, match="bias_variance"):
        critical_init("tanh", bad)


def test_the_depth_scale_needs_a_positive_multiplier():
    assert depth_scale(1.0) == math.inf
    with pytest.raises(InputError, match="above 0"):
        depth_scale(0.0)
