"""Every numeric row of the theory notes, and the test against sampled networks that holds it.

:data:`ROWS` is the list; the rows that have no test elsewhere are tested below (feed-forward networks, normalisation,
residual sums) and in ``test_sampled_architectures.py`` (attention, recurrence, orthogonality, shattered gradients).
"""

import ast
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from headwater.theory import (
    correlated_expectation,
    gradient_multiplier,
    log_gradient_variance,
    weight_gradient_second_moment,
)

PROPAGATION = "test_propagation_against_samples.py"
FINITE = "test_finite_width_against_samples.py"
HERE = "test_theory_rows.py"
ARCHITECTURES = "test_sampled_architectures.py"

ROWS = {
    "forward variance map, tanh: q* = 0.418": (PROPAGATION, "test_tanh_settles_at_the_fixed_point"),
    "backward multiplier χ, tanh: 0.759, 0.9998, 1.342": (
        PROPAGATION,
        "test_tanh_gradient_multiplier_and_depth_scale",
    ),
    "depth scale ξ: 3.6, 4,912, 3.4 layers": (PROPAGATION, "test_tanh_gradient_multiplier_and_depth_scale"),
    "critical line of tanh": (PROPAGATION, "test_the_critical_line_of_tanh"),
    "ReLU: χ = σ_w²/2 whatever q": (PROPAGATION, "test_relu_halves_the_squared_gradient_whatever_the_signal"),
    "torch's default Linear: 0.577, 0.408, 0.143": (
        PROPAGATION,
        "test_torch_default_linear_loses_a_known_factor_per_layer",
    ),
    "sigmoid 20 × 100: -16.17 decades": (PROPAGATION, "test_the_deep_sigmoid_study_loses_sixteen_decades"),
    "Xavier against He: 2^-11, 2^-15": (PROPAGATION, "test_xavier_on_relu_loses_the_square_root_of_two_per_layer"),
    "He 2015, conv std 0.01: 1/1.7e4": (HERE, "test_convolutions_of_std_001_lose_four_decades_against_he"),
    "correlation map": (PROPAGATION, "test_the_correlation_map_agrees_with_samples"),
    "ordered and chaotic inputs": (
        PROPAGATION,
        "test_inputs_merge_in_the_ordered_phase_and_separate_in_the_chaotic_one",
    ),
    "gradient through a batch": (HERE, "test_the_weight_gradient_of_a_batch_follows_from_four_moments"),
    "Var ln‖δ‖² = 5 β": (FINITE, "test_the_log_gradient_of_he_relu_networks_fluctuates_as_hanin_says"),
    "Var ln‖δ‖² at n = 20 lies above": (HERE, "test_narrow_networks_fluctuate_more_than_the_first_order_says"),
    "born dead": (FINITE, "test_narrow_deep_relu_networks_are_born_dead_as_often_as_predicted"),
    "weight gradients can hide it": (HERE, "test_weight_gradients_of_homogeneous_networks_hide_the_slope"),
    "the weight gradient is three things": (HERE, "test_the_weight_gradient_is_signal_times_gradient_times_alignment"),
    "BatchNorm + ReLU: π/(π-1)": (HERE, "test_batch_normalised_relu_networks_explode_whatever_the_weight_scale"),
    "He residual branch doubles": (HERE, "test_unscaled_residual_branches_double_signal_and_gradient"),
    "scaled branch (1 + η²)": (HERE, "test_scaled_residual_branches_stay_below_e"),
    "ReZero": (HERE, "test_rezero_starts_as_the_identity_and_trains_its_scale_alone"),
    "pre-LN against post-LN": (ARCHITECTURES, "test_the_last_gradient_falls_with_depth_in_pre_ln_encoders_alone"),
    "rank collapse": (ARCHITECTURES, "test_attention_without_skips_makes_tokens_alike_and_starves_query_and_key"),
    "Σ A² = e^τ²/T": (ARCHITECTURES, "test_softmax_attention_spreads_over_t_e_to_minus_tau_squared_tokens"),
    "unscaled q·k": (ARCHITECTURES, "test_unscaled_logits_have_std_root_d_and_saturate"),
    "tanh and sigmoid RNN": (ARCHITECTURES, "test_a_vanilla_rnn_loses_the_power_of_its_largest_singular_value"),
    "LSTM cell": (ARCHITECTURES, "test_the_cell_path_of_an_lstm_is_the_product_of_its_forget_gates"),
    "orthogonal, linear": (ARCHITECTURES, "test_orthogonal_products_keep_every_singular_value"),
    "Gaussian, linear: (L+1)^(L+1)/L^L": (ARCHITECTURES, "test_gaussian_products_stretch_as_pennington_says"),
    "delta-orthogonal conv": (ARCHITECTURES, "test_ten_thousand_delta_orthogonal_layers_keep_a_gradient"),
    "Gaussian conv": (ARCHITECTURES, "test_a_thousand_gaussian_convolutions_lose_it"),
    "LSUV": ("../unit/init/test_lsuv.py", "test_without_biases_one_division_is_exact"),
    "shattered gradients": (ARCHITECTURES, "test_input_gradients_shatter_with_depth_and_later_with_skips"),
    "E[relu'²] = 0.5 by quadrature": (
        "test_gaussian_quadrature.py",
        "test_relu_slope_is_one_half_where_a_node_at_zero_would_give_less",
    ),
}
"""Row of the notes to the file (beside this one) and the function that tests it.

The row about initialisers and forecasts on the meta device is held by the tests of the forecast.
"""


def test_every_row_is_held_by_a_test_that_exists():
    for row, (file, function) in ROWS.items():
        tree = ast.parse((Path(__file__).parent / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in names, f"{row}: {file} has no {function}"


def backward(loss, tensors):
    """Mean squares of ∂loss/∂t."""
    return [float(g.square().mean()) for g in torch.autograd.grad(loss, tensors)]


# ---------------------------------------------------------------- feed-forward


def test_convolutions_of_std_001_lose_four_decades_against_he():
    # conv2 to conv10 of He 2015's VGG-like net: k = 3, d filters each; He: std √(2/(9 d)). On the way back through ReLUs
    # every factor is positively homogeneous, so one draw, scaled in both ways, gives the ratio without sampling error.
    filters = [64, 128, 128, 256, 256, 512, 512, 512, 512]
    g = torch.Generator().manual_seed(0)
    kernels, into = [], 64
    for d in filters:
        kernels.append(torch.randn(d, into, 3, 3, generator=g))
        into = d
    image = torch.randn(1, 64, 4, 4, generator=g)
    noise = torch.randn(1, 512, 4, 4, generator=g)

    def gradient(stds):
        x = image.clone().requires_grad_()
        h = x
        for kernel, std in zip(kernels, stds, strict=True):
            h = F.relu(F.conv2d(h, kernel * std, padding=1))
        return math.sqrt(backward((h * noise).sum(), [x])[0])

    he = gradient([math.sqrt(2 / (9 * d)) for d in filters])
    assert he / gradient([0.01] * 9) == pytest.approx(1.7e4, rel=0.03)
    predicted = math.prod(math.sqrt(gradient_multiplier("relu", 9 * d * 0.01**2, 1.0)) for d in filters)
    assert gradient([0.01] * 9) / he == pytest.approx(predicted, rel=1e-4)


def test_the_weight_gradient_of_a_batch_follows_from_four_moments():
    # x ~ correlated Gaussian inputs (covariance c between samples), a = relu(W₀x), y = W₁a, L = Σ ⟨y_n, u_n⟩ with u_n that
    # share a part as well. E a² = q/2, E a a' = E[relu relu] at correlation c; δ = u.
    g = torch.Generator().manual_seed(0)
    samples, n, c, shared = 12, 500, 0.6, 0.5
    found = []
    for _ in range(6):
        x = math.sqrt(1 - c) * torch.randn(samples, n, generator=g) + math.sqrt(c) * torch.randn(n, generator=g)
        u = math.sqrt(1 - shared) * torch.randn(samples, n, generator=g)
        u = u + math.sqrt(shared) * torch.randn(n, generator=g)
        first, second = torch.randn(2, n, n, generator=g) / math.sqrt(n)
        second.requires_grad_()
        y = F.relu(x @ first.t()) @ second.t()
        found += backward((y * u).sum(), [second])
    expected = weight_gradient_second_moment(samples, 0.5, 1.0, correlated_expectation("relu", "relu", c), shared)
    # The shared parts are single vectors of 500 elements, known to √(2/500) = 6 % each; six draws, and both: 4 %.
    assert sum(found) / 6 == pytest.approx(expected, rel=0.12)


def test_narrow_networks_fluctuate_more_than_the_first_order_says():
    # n = 20, L = 20: 5 Σ 1/n = 5.0; the notes sampled 6.3. Terms of order 1/n² come on top.
    g = torch.Generator().manual_seed(0)
    networks, n = 600, 20
    h, weights, active = torch.randn(networks, n, 1, generator=g), [], []
    for _ in range(20):
        w = torch.randn(networks, n, n, generator=g) * math.sqrt(2 / n)
        h = w @ h
        active.append((h > 0).float())
        h = F.relu(h)
        weights.append(w)
    delta = torch.randn(networks, n, 1, generator=g)
    for w, on in zip(reversed(weights), reversed(active), strict=True):
        delta = w.transpose(1, 2) @ (on * delta)
    found = float(delta.square().sum((1, 2)).log().var())
    assert log_gradient_variance([n] * 20) == pytest.approx(5.0)
    # Known to √(2/600) = 6 %, tails apart: 6.3 ± 20 %.
    assert found == pytest.approx(6.3, rel=0.2)


def relu_stack(gain, depth, width, seed):
    """Mean squares of ∂L/∂W and of ∂L/∂h, first layer first, for one input through He layers times ``gain``."""
    g = torch.Generator().manual_seed(seed)
    weights = [gain * math.sqrt(2 / width) * torch.randn(width, width, generator=g) for _ in range(depth)]
    weights = [w.requires_grad_() for w in weights]
    x, pre = torch.randn(1, width, generator=g), []
    for w in weights:
        h = x @ w.t()
        pre.append(h)
        x = F.relu(h)
    loss = (x * torch.randn(1, width, generator=g)).sum()
    return backward(loss, [*weights, *pre])


def test_weight_gradients_of_homogeneous_networks_hide_the_slope():
    # Gain 1/2, 30 layers: δ falls by 0.5^29 = 1.9e-9, and the signal that multiplies it in ∂L/∂W grows as much.
    weight, delta = [], []
    for seed in range(6):
        sizes = relu_stack(0.5, 30, 200, seed)
        weight.append(0.5 * math.log10(sizes[0] / sizes[29]))
        delta.append(0.5 * math.log10(sizes[30] / sizes[59]))
    # One draw scatters by √(5·29/200)/(2 ln 10) = 0.18 decades, six by 0.08, around -5·29/200/4/ln 10 = -0.08.
    assert sum(delta) / 6 == pytest.approx(29 * math.log10(0.5) - 0.08, abs=0.25)
    assert sum(weight) / 6 == pytest.approx(0.0, abs=0.25)


def test_the_weight_gradient_is_signal_times_gradient_times_alignment():
    # One sample: ∂L/∂W = δ aᵀ, so rms(∂W) = rms(δ) rms(a) exactly and the alignment is 0. N samples that have nothing to
    # do with each other add up like √N in rms(∂W), where rms over the batch of δ and a stay: alignment ½ log10 N.
    g = torch.Generator().manual_seed(0)
    for samples in (1, 64):
        a, w = torch.randn(samples, 300, generator=g), torch.randn(200, 300, generator=g).requires_grad_()
        u = torch.randn(samples, 200, generator=g)
        (found,) = backward(((a @ w.t()) * u).sum(), [w])
        alignment = 0.5 * math.log10(found / float(a.square().mean()) / float(u.square().mean()))
        # 60,000 elements, of which 64·(200 + 300) numbers are independent: √(2/32000)/2/ln 10 = 0.002 decades.
        assert alignment == pytest.approx(0.5 * math.log10(samples), abs=1e-6 if samples == 1 else 0.01)


# ---------------------------------------------------------------- normalisation, residual sums


@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0])
def test_batch_normalised_relu_networks_explode_whatever_the_weight_scale(gain):
    g = torch.Generator().manual_seed(0)
    width, batch, depth = 256, 256, 24
    rates = []
    for _ in range(2):
        x = torch.randn(batch, width, generator=g)
        pre = []
        for _ in range(depth):
            h = x @ (gain / math.sqrt(width) * torch.randn(width, width, generator=g))
            h.requires_grad_()
            pre.append(h)
            x = F.relu(F.batch_norm(h, None, None, training=True))
        sizes = backward((x * torch.randn(batch, width, generator=g)).sum(), pre)
        rates.append(0.5 * math.log(sizes[4] / sizes[-3]) / (depth - 7))
    # π/(π-1) per layer on δ². Batch and width of 256 leave corrections of a few 1/256 per layer.
    assert math.exp(sum(rates) / 2) == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.012)


def residual(scale, depth, width, seed):
    """Growth of the mean square of signal and gradient through x + scale · W₂ relu(W₁ x), E f² = E x²."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(8, width, generator=g).requires_grad_()
    h = x
    for _ in range(depth):
        first = torch.randn(width, width, generator=g) * math.sqrt(2 / width)
        second = torch.randn(width, width, generator=g) * math.sqrt(1 / width)
        h = h + scale * F.relu(h @ first.t()) @ second.t()
    noise = torch.randn(8, width, generator=g)
    (gradient,) = backward((h * noise).sum(), [x])
    signal = float(h.detach().square().mean() / x.detach().square().mean())
    return signal, gradient / float(noise.square().mean())


def test_unscaled_residual_branches_double_signal_and_gradient():
    draws = [residual(1.0, 20, 400, seed) for seed in range(3)]
    # Per block the log of the branch's part fluctuates by √(5/400)/2 = 0.06; 20 blocks and 3 draws: 0.15 in ln, three of it.
    for direction in (0, 1):
        mean = sum(math.log2(draw[direction]) for draw in draws) / 3
        assert mean == pytest.approx(20, abs=0.65)


def test_scaled_residual_branches_stay_below_e():
    depth = 50
    draws = [residual(1 / math.sqrt(depth), depth, 300, seed) for seed in range(3)]
    expected = (1 + 1 / depth) ** depth  # 2.69, sampled 2.79 in the notes
    for direction in (0, 1):
        # 1/50 of the fluctuation of a branch each: √50 · √(5/300)/50 = 0.02, and 8 samples share the weights
        assert sum(draw[direction] for draw in draws) / 3 == pytest.approx(expected, rel=0.08)
    assert expected < math.e


def test_rezero_starts_as_the_identity_and_trains_its_scale_alone():
    g = torch.Generator().manual_seed(0)
    width = 12
    weights = [torch.randn(width, width, generator=g).requires_grad_() for _ in range(6)]
    scales = [torch.zeros(()).requires_grad_() for _ in range(6)]

    def network(x):
        for w, scale in zip(weights, scales, strict=True):
            x = x + scale * F.relu(x @ w)
        return x

    x = torch.randn(width, generator=g)
    assert torch.equal(torch.autograd.functional.jacobian(network, x), torch.eye(width))
    loss = (network(x) * torch.randn(width, generator=g)).sum()
    assert backward(loss, weights) == [0.0] * 6
    assert all(size > 0.0 for size in backward((network(x) * torch.randn(width, generator=g)).sum(), scales))
