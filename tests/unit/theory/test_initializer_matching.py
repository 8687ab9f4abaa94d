"""Laws and initialisers are recognised from moments, within the sampling error and not beyond it."""

import math

import pytest
import torch

from headwater.theory.initializers import (
    Candidate,
    ValueMoments,
    fitting_laws,
    matching_initializers,
    standard_candidates,
)


def moments(x):
    d = x.double() - x.double().mean()
    return ValueMoments(
        x.numel(),
        float(x.double().mean()),
        float(d.square().mean()),
        float((d**4).mean() / d.square().mean() ** 2),
        float(x.min()),
        float(x.max()),
        torch.finfo(x.dtype).eps,
    )


def draw(law, n, std=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    if law == "uniform":
        return (torch.rand(n, generator=g) * 2 - 1) * math.sqrt(3) * std
    x = torch.randn(2 * n + 100, generator=g)
    if law == "normal":
        return x[:n] * std
    x = x[x.abs() <= 2][:n]  # std of N(0, 1) cut at ±2 is 0.8796
    return x * std / 0.87962566


@pytest.mark.parametrize("law", ["uniform", "normal", "truncated normal"])
def test_large_samples_have_one_law(law):
    for seed in range(10):
        assert fitting_laws(moments(draw(law, 40_000, 0.02, seed))) == (law,)


@pytest.mark.parametrize("law", ["uniform", "normal", "truncated normal"])
@pytest.mark.parametrize("n", [2, 5, 16, 100, 1000])
def test_the_true_law_is_not_ruled_out_by_chance(law, n):
    # Four standard errors: 6e-5 per moment for Gaussian errors. 200 samples should lose none, two at most are let pass.
    lost = [seed for seed in range(200) if law not in fitting_laws(moments(draw(law, n, seed=seed)))]
    assert len(lost) <= (2 if n > 8 else 60)  # fewer than 8 values are matched against both common laws anyway


def test_a_law_that_is_neither_fits_nothing():
    g = torch.Generator().manual_seed(0)
    heavy = torch.randn(40_000, generator=g) ** 3
    two_points = torch.where(torch.rand(40_000, generator=g) > 0.5, 1.0, -1.0) + 1e-3 * torch.randn(40_000, generator=g)
    assert fitting_laws(moments(heavy)) == ()
    assert fitting_laws(moments(two_points)) == ()


@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_the_right_variance_fits_and_one_beyond_the_sampling_error_does_not(law):
    n = 10_000
    kurtosis = {"uniform": 1.8, "normal": 3.0}[law]
    far = 1 + 6.5 * math.sqrt((kurtosis - 1) / n)  # 4 standard errors are allowed, a sample is within 2.5
    for seed in range(50):
        m = moments(draw(law, n, seed=seed))
        candidates = [Candidate("right", law, 1.0), Candidate("high", law, far), Candidate("low", law, 1 / far)]
        assert [label for label, _ in matching_initializers(m, (law,), candidates)][:1] == ["right"]
        assert "high" not in dict(matching_initializers(m, (law,), candidates))


def test_round_parameters_are_named_only_when_the_values_pin_them_down():
    def plain(x):
        m = moments(x)
        return [label for label, _ in matching_initializers(m, fitting_laws(m), [])]

    assert plain(draw("normal", 100_000, 0.02)) == ["normal_(std=0.02)"]
    assert plain(draw("uniform", 10_000, 0.1 / math.sqrt(3))) == ["uniform_(-0.1, 0.1)"]
    assert plain(draw("uniform", 100_000) / math.sqrt(3) / 2 + 0.5) == ["uniform_(0, 1)"]
    assert plain(draw("normal", 100_000, 0.02) + 1.0) == ["normal_(mean=1, std=0.02)"]
    assert plain(draw("normal", 100, 0.02)) == []
    assert plain(draw("normal", 1_000_000, 0.01234)) == []


@pytest.mark.parametrize(
    ("init", "label"),
    [
        (torch.nn.init.xavier_uniform_, "xavier_uniform_()"),
        (torch.nn.init.xavier_normal_, "xavier_normal_()"),
        (lambda w: torch.nn.init.xavier_uniform_(w, gain=5 / 3), "xavier_uniform_(gain=5/3)"),
        (lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="relu"), "kaiming_normal_(fan_in, relu)"),
        (
            lambda w: torch.nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
            "kaiming_normal_(fan_out, relu)",
        ),
        (lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="linear"), "kaiming_uniform_(fan_in, linear)"),
        (lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="tanh"), "kaiming_uniform_(fan_in, tanh)"),
    ],
)
def test_every_initialiser_of_torch_is_the_first_match_of_its_own_draw(init, label):
    torch.manual_seed(3)
    w = init(torch.empty(300, 170))
    m = moments(w)
    assert matching_initializers(m, fitting_laws(m), standard_candidates(170, 300))[0][0] == label
