"""The law of a sample's squared length against sampled networks, and where it must change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import headwater as hw
from headwater._predict import predict
from headwater.theory.forecast.length import GradientProfile, LengthLaw, pooled_variance, weight_moments


def test_a_random_walk_of_lengths_has_the_sampled_mean_and_variance() -> None:
    # GELU under He's initialisation, width 128, 10 layers: x = ln q by the closure and by 300 draws of one sample.
    width, depth, draws = 128, 10, 300
    generator = torch.Generator().manual_seed(0)
    law = LengthLaw(math.log(2.0), 0.0, 0.0, width)
    h = torch.randn(draws, width, generator=generator, dtype=torch.float64)
    h = h / h.square().mean(1, keepdim=True).sqrt()
    for layer in range(depth):
        weight = torch.randn(draws, width, width, generator=generator, dtype=torch.float64) * math.sqrt(2.0 / width)
        before, h = 2.0 * h.square().mean(1), F.gelu(torch.einsum("nij,nj->ni", weight, h))
        if layer:
            found = law.next(F.gelu, 2.0, width, width, 0.0)
            assert found is not None
            law = found
    x = before.log()
    # Standard errors: √(Var/300) of the mean, √(2/300) = 8 % of the variance; three of each, and the closure's own.
    assert law.mean == pytest.approx(float(x.mean()), abs=3.0 * math.sqrt(law.variance / draws) + 0.02)
    assert law.variance == pytest.approx(float(x.var()), rel=0.3)


def test_relu_keeps_the_mean_gradient_and_its_part_along_the_signal() -> None:
    # u·δ is the same on both sides of a ReLU layer, and E|δ|² is multiplied by ½ σ_w² whatever the width: the expected
    # square is that of a network of infinite width, and the part along u stays 1/n.
    width = 64
    law = LengthLaw(0.0, 0.0, 0.0, width)
    laws = [law]
    for _ in range(8):
        found = laws[-1].next(torch.relu, 2.0, width, width, 0.0)
        assert found is not None
        laws.append(found)
    # κ = E relu⁴/(E relu²)² = (3/2)/(1/4) = 6: Hanin's 5/n per layer.
    assert laws[-1].variance == pytest.approx(8 * 5.0 / width, rel=1e-2)  # the grid ends at four deviations
    profile = None
    for law in reversed(laws):
        profile, factor = GradientProfile.behind_slope(profile, law, lambda t: (t > 0.0).double())
        assert factor == pytest.approx(0.5, rel=2e-3)
        assert LengthLaw.average(profile.radial) == pytest.approx(1.0 / width, rel=2e-2)


def test_the_gradient_of_an_unstable_map_is_forecast() -> None:
    # Moments at the mean of q are 0.27 decades off here. Between draws the logarithm moves by up to 0.3 decades, so
    # that 24 draws have a standard error of 0.06; the closure itself is within 0.04 of 100 draws at width 256.
    def make() -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(16):
            linear = nn.Linear(128, 128)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        return nn.Sequential(*layers, nn.Linear(128, 10))

    torch.manual_seed(1)
    x, y = torch.randn(16, 128), torch.randint(10, (16,))
    comparison = predict(make, x, y, F.cross_entropy).compare(
        hw.measure(make(), x, y, F.cross_entropy, draws=24, make=make)
    )
    assert comparison.rms_error_decades < 0.12
    assert comparison.weight_error_decades < 0.15


def test_what_samples_share_counts_in_full_and_the_rest_over_their_number() -> None:
    assert pooled_variance(2.0, 2.0, 10) == pytest.approx(2.0)
    assert pooled_variance(2.0, 0.0, 10) == pytest.approx(0.2)


def test_a_gradient_that_grows_with_the_length_makes_larger_weight_gradients() -> None:
    # δ² ∝ q of log-normal q with Var ln q = v: E[δ² a²]/(E δ² E a²) = E q²/(E q)² = e^v.
    variance = 0.25
    law = LengthLaw(0.0, variance, 0.1, 32)
    growing = law.nodes.exp()
    mean = LengthLaw.average(growing)
    profile = GradientProfile(law, growing / mean, growing, law.nodes - math.log(mean), 0.4)
    own, apart, _ = weight_moments(profile, 8)
    assert own == pytest.approx(math.exp(variance), rel=2e-3)
    assert apart == pytest.approx(math.exp(0.4 * variance), rel=2e-3)
    assert profile.variance(1) == pytest.approx(variance, rel=2e-3)  # twice the ½ v that E ln lies below ln E
