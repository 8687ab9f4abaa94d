"""What the theory notes say of attention, recurrence, orthogonality and shattering, against sampled networks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from headwater.init import delta_orthogonal_, orthogonal_

# ---------------------------------------------------------------- attention


def last_gradient(depth, norm_first, seed):
    """‖∂L/∂W‖ of the last feed-forward layer of a Xavier-initialised encoder (Xiong 2020's setting)."""
    torch.manual_seed(seed)
    width = 48
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=norm_first)
    norm = nn.LayerNorm(width) if norm_first else None
    model = nn.TransformerEncoder(layer, depth, norm=norm, enable_nested_tensor=False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    y = model(torch.randn(4, 8, width))
    (y * torch.randn_like(y)).sum().backward()
    return float(model.layers[-1].linear2.weight.grad.norm())


def test_the_last_gradient_falls_with_depth_in_pre_ln_encoders_alone():
    shallow, deep = 2, 18
    ratio = {}
    for norm_first in (True, False):
        sizes = {depth: [last_gradient(depth, norm_first, seed) for seed in range(3)] for depth in (shallow, deep)}
        ratio[norm_first] = sum(sizes[deep]) / sum(sizes[shallow])
    # The output of a pre-LN encoder is divided by its rms, which grows like √L: × √(2/18) = 0.33; the embedding's own
    # part of the sum is not negligible at L = 2 (the notes: 0.36 for 0.29 at 24 layers). Post-LN: no trend (× 1.30).
    assert ratio[True] == pytest.approx(math.sqrt(shallow / deep), rel=0.35)
    assert 0.7 < ratio[False] < 1.5


def test_attention_without_skips_makes_tokens_alike_and_starves_query_and_key():
    def sample(depth, tokens=32, width=64):
        x = torch.randn(tokens, width)
        weights = []
        for _ in range(depth):
            query, key, value = ((torch.randn(width, width) / math.sqrt(width)).requires_grad_() for _ in range(3))
            mixing = ((x @ query) @ (x @ key).t() / math.sqrt(width)).softmax(1)
            x = mixing @ (x @ value)
            weights = [query, key, value]
        unit = F.normalize(x.detach(), dim=1)
        cosine = float(((unit @ unit.t()).sum() - tokens) / (tokens * (tokens - 1)))
        query, key, value = (g.norm() for g in torch.autograd.grad((x * torch.randn_like(x)).sum(), weights))
        return cosine, float(query / value), float(key / value)

    torch.manual_seed(0)
    one, two, four = sample(1), sample(2), sample(4)
    # Doubly exponential in depth (Dong 2021): 0.3-0.5, 0.999, 1; the notes have 0.9998 and 0.014 at L = 2.
    assert one[0] < 0.8
    assert two[0] > 0.99
    assert four[0] > 0.999999
    assert max(two[1:]) < 0.15
    assert max(four[1:]) < 1e-6


@pytest.mark.parametrize("tau", [0.2, 0.5, 1.0])
def test_softmax_attention_spreads_over_t_e_to_minus_tau_squared_tokens(tau):
    # E Σ_j A_ij² ≈ T E e^{2l} / (T E e^l)² = (e^{2τ²}/e^{τ²}) / T for Gaussian logits l of variance τ². The sum in the
    # denominator fluctuates by (e^{τ²} - 1)/T of itself, squared: less than 1 % at T = 1,000.
    torch.manual_seed(0)
    tokens, width = 1000, 256
    query, key = math.sqrt(tau) * torch.randn(tokens, width), math.sqrt(tau) * torch.randn(tokens, width)
    attention = (query @ key.t() / math.sqrt(width)).softmax(1)
    # The logits of one row share a query, so that their variance scatters by √(2/256) = 9 % between rows: the mean of the
    # exponential is e^{τ⁴/256} larger, 0.4 %.
    assert tokens * float(attention.square().sum(1).mean()) == pytest.approx(math.exp(tau**2), rel=0.04)


def test_unscaled_logits_have_std_root_d_and_saturate():
    torch.manual_seed(0)
    width, tokens = 512, 64
    largest, scaled, stds = [], [], []
    for _ in range(8):
        logits = torch.randn(tokens, width) @ torch.randn(tokens, width).t()
        stds.append(float(logits.std()))
        largest.append(float(logits.softmax(1).max(1)[0].mean()))
        scaled.append(float((logits / math.sqrt(width)).softmax(1).max(1)[0].mean()))
    # √512 = 22.6; 8 × 4,096 products that share vectors: about 1 %
    assert sum(stds) / 8 == pytest.approx(math.sqrt(width), rel=0.02)
    # 64 Gaussian logits: the largest is 2.4 std, e^2.4/(64 e^½) = 0.10; unscaled the gap to the second is ~10.
    assert sum(largest) / 8 > 0.88
    assert sum(scaled) / 8 == pytest.approx(0.11, abs=0.03)


# ---------------------------------------------------------------- recurrence


@pytest.mark.parametrize(("activation", "slope", "steps"), [(torch.tanh, 1.0, 100), (torch.sigmoid, 0.25, 20)])
def test_a_vanilla_rnn_loses_the_power_of_its_largest_singular_value(activation, slope, steps):
    # ‖∂h_T/∂h_0‖ ≤ (λ₁ max φ')^T; an orthogonal matrix times λ, and small states, come close to it.
    torch.manual_seed(0)
    size, largest = 200, 0.9
    weight = orthogonal_(torch.empty(size, size), largest).double()
    start = (1e-3 * torch.randn(size, dtype=torch.float64)).requires_grad_()
    h = start
    for _ in range(steps):
        h = activation(weight @ h)
    noise = torch.randn(size, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((h * noise).sum(), start)
    found, bound = float(gradient.norm() / noise.norm()), (largest * slope) ** steps
    assert found <= bound * (1 + 1e-6)
    if activation is torch.tanh:  # sigmoid's states move away from 0, where its slope is below 1/4
        assert found == pytest.approx(bound, rel=0.01)
    else:
        assert found > bound * 0.05


@pytest.mark.parametrize("bias", [1.0, 5.0])
def test_the_cell_path_of_an_lstm_is_the_product_of_its_forget_gates(bias):
    # With the path through h cut (no recurrent weights), ∂c_T/∂c_0 = Π σ(b_f + u_t), u_t = W x_t of variance 1/3 by the
    # default U(±1/√n). ln σ is read off a second-order expansion: ln σ(b) - σ(b) σ(-b) Var(u)/2 per step.
    torch.manual_seed(0)
    size, steps = 64, 200
    lstm = nn.LSTM(size, size)
    with torch.no_grad():
        lstm.weight_hh_l0.zero_()
        lstm.bias_hh_l0.zero_()
        lstm.bias_ih_l0.zero_()
        lstm.bias_ih_l0[size : 2 * size] = bias
    lstm.double()
    start = torch.zeros(1, 1, size, dtype=torch.float64, requires_grad=True)
    x = torch.randn(steps, 1, size, dtype=torch.float64)
    _, (_, cell) = lstm(x, (torch.zeros(1, 1, size, dtype=torch.float64), start))
    (gradient,) = torch.autograd.grad(cell.sum(), start)
    gate = 1 / (1 + math.exp(-bias))
    expected = math.log(gate) - gate * (1 - gate) / 6
    assert math.log(gate) == pytest.approx({1.0: math.log(0.731), 5.0: math.log(0.9933)}[bias], abs=1e-3)
    # ln σ has slope σ(-b) and u a standard deviation of 0.58: 64 × 200 values are good to 0.58 σ(-b)/113; third and fourth
    # orders of the expansion are of the size 0.03 σ(-b).
    assert float(gradient.log().mean()) / steps == pytest.approx(expected, abs=0.05 * (1 - gate))
    assert float(gradient.max()) < 1.0


# ---------------------------------------------------------------- orthogonality


def test_orthogonal_products_keep_every_singular_value():
    torch.manual_seed(0)
    product = torch.eye(64, dtype=torch.float64)
    for _ in range(200):
        product = orthogonal_(torch.empty(64, 64, dtype=torch.float64)) @ product
    values = torch.linalg.svdvals(product)
    assert float((values - 1).abs().max()) < 1e-12


@pytest.mark.parametrize("depth", [2, 8])
def test_gaussian_products_stretch_as_pennington_says(depth):
    torch.manual_seed(0)
    width, found = 300, []
    for _ in range(4):
        product = torch.eye(width)
        for _ in range(depth):
            product = torch.randn(width, width) / math.sqrt(width) @ product
        found.append(float(torch.linalg.matrix_norm(product, 2)) ** 2)
    expected = (depth + 1) ** (depth + 1) / depth**depth  # L = 8: 23.1, about e (L + ½)
    # The edge of the spectrum moves by n^(-2/3) = 2 % per factor and draw: 8 factors √8 · 2 %, four draws.
    assert sum(found) / 4 == pytest.approx(expected, rel=0.08)


def convolutions(depth, delta, seed, channels=16, pixels=8, weight_variance=1.0):
    """‖∂L/∂x‖/‖∂L/∂y‖ of a deep tanh network of circular convolutions; σ_b² = 2.01e-5 as in Xiao 2018."""
    torch.manual_seed(seed)
    x = (0.1 * torch.randn(1, channels, pixels)).requires_grad_()
    h = x
    for _ in range(depth):
        weight = torch.empty(channels, channels, 3)
        if delta:
            delta_orthogonal_(weight, math.sqrt(weight_variance))
        else:
            weight.normal_(0.0, math.sqrt(weight_variance / (3 * channels)))
        bias = torch.randn(channels) * math.sqrt(2.01e-5)
        h = torch.tanh(F.conv1d(F.pad(h, (1, 1), mode="circular"), weight, bias))
    noise = torch.randn_like(h)
    (gradient,) = torch.autograd.grad((h * noise).sum(), x)
    return float(gradient.norm() / noise.norm())


@pytest.mark.slow
def test_ten_thousand_delta_orthogonal_layers_keep_a_gradient():
    # On the critical line at σ_b² = 2.01e-5: σ_w² = 1.05. Gains of exactly √1.05 and the slopes of tanh balance; what is
    # left of the gradient depends on the settling of the signal (the notes sampled 0.077).
    assert 0.01 < convolutions(10_000, delta=True, seed=0, weight_variance=1.05) < 30


def test_a_thousand_gaussian_convolutions_lose_it():
    # Every Gaussian layer moves the log of the squared gradient by a random amount whose mean is negative: with 16 channels
    # and few pixels it falls by many decades, where the orthogonal one keeps it.
    gaussian = [convolutions(1000, delta=False, seed=seed) for seed in range(2)]
    assert max(gaussian) < 1e-4
    assert convolutions(1000, delta=True, seed=0) > 0.01


# ---------------------------------------------------------------- shattered gradients


def neighbour_correlation(depth, skips, seed, width=200, points=256):
    """Correlation of ∂f/∂x at neighbouring points of a line, in batch-normalised ReLU networks (Balduzzi 2017)."""
    torch.manual_seed(seed)
    x = torch.linspace(-2, 2, points)[:, None].requires_grad_()
    h = x @ torch.randn(1, width) + torch.randn(width)
    for _ in range(depth - 1):
        normal = F.batch_norm(h, None, None, training=True)
        branch = F.relu(normal) @ (torch.randn(width, width) * math.sqrt(2 / width))
        h = h + branch if skips else branch
    y = F.relu(h) @ torch.randn(width) / math.sqrt(width)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    g = gradient[:, 0] - gradient.mean()
    return float((g[1:] * g[:-1]).sum() / g.square().sum())


def test_input_gradients_shatter_with_depth_and_later_with_skips():
    def mean(depth, skips):
        return sum(neighbour_correlation(depth, skips, seed) for seed in range(3)) / 3

    # The notes: 0.99 for one layer, 0.02 for 24. A correlation over 256 points is known to 1/√256 = 0.06 for white noise.
    assert mean(1, False) > 0.93
    assert abs(mean(24, False)) < 0.2
    assert mean(24, True) > 0.4
