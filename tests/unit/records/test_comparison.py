"""A comparison names the layer from which a measurement departs, and the candidates for a cause carry their numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater._predict import predict
from headwater.records import Comparison, Finding, Severity, Spread

WIDTH = 64


def make() -> nn.Sequential:
    hidden = [m for _ in range(6) for m in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 10))


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return torch.randn(32, WIDTH), torch.randint(10, (32,))


def finding_of(comparison: Comparison) -> Finding:
    (finding,) = comparison.findings
    return finding


def test_a_fresh_network_leaves_no_band_and_gives_no_finding() -> None:
    x, y = batch()
    comparison = predict(make, x, y, F.cross_entropy).compare(hw.measure(make(), x, y, F.cross_entropy))
    assert comparison.outside == ()
    assert comparison.findings == ()


def test_weights_unlike_their_law_are_named_with_their_factor() -> None:
    x, y = batch()
    model = make()
    with torch.no_grad():
        model[4].weight.mul_(2.0)
    comparison = predict(make, x, y, F.cross_entropy).compare(hw.measure(model, x, y, F.cross_entropy))
    finding = finding_of(comparison)
    assert (finding.code, finding.severity, finding.verdict) == ("HW701", Severity.WARNING, None)
    # The gradient doubles on its way through layer 4: layer 3 and all below are off by log10 2 = 0.3 decades.
    assert comparison.outside == ("3", "2", "1", "0")
    assert "1 parameter differs in rms from the initial law that the forecast used (most: 4.weight ×2" in finding.cause
    assert "The forward signal departs first at 4 (" in finding.cause
    assert "its own parameters explain" in finding.advice
    assert "pass predict the function that makes this model, or the model itself" in finding.advice
    assert finding.where == tuple(reversed(comparison.outside))
    assert finding.evidence[0].value == pytest.approx(0.3, abs=0.1)


def test_other_inputs_are_told_from_other_weights() -> None:
    x, y = batch()
    forecast = predict(make, x, y, F.cross_entropy)
    finding = finding_of(forecast.compare(hw.measure(make(), 30.0 * x, y, F.cross_entropy)))
    assert "differ" not in finding.cause.replace("difference", "")
    assert "The forward signal departs first at 0 (" in finding.cause
    assert "Forecast with the inputs that were measured" in finding.advice


def test_another_loss_is_a_candidate() -> None:
    x, y = batch()
    profile = hw.measure(make(), 30.0 * x, y, F.cross_entropy)
    finding = finding_of(predict(make, x).compare(profile))
    assert "of another loss (probe) than the measurement (loss_fn)" in finding.cause


def test_weights_that_depend_on_each_other_keep_the_scale_and_are_the_candidate_left() -> None:
    # Every block is the same symmetric matrix of its law's scale: the forward signal of a linear network is as forecast
    # for one block, and the products of equal matrices are not those of independent ones.
    def linear() -> nn.Sequential:
        return nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(8)])

    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(0))
    model = linear()
    with torch.no_grad():
        torch.manual_seed(1)
        spike = torch.randn(WIDTH, 1) @ torch.randn(1, WIDTH)
        for layer in model:
            rms = layer.weight.square().mean().sqrt()
            layer.weight.copy_(spike * rms / spike.square().mean().sqrt())
    finding = finding_of(predict(linear, x).compare(hw.measure(model, x)))
    assert "initial law that the forecast used" not in finding.cause


def test_a_number_format_that_ends_is_a_candidate() -> None:
    def deep() -> nn.Sequential:
        return nn.Sequential(*[m for _ in range(40) for m in (nn.Linear(16, 16), nn.Sigmoid())])

    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    forecast, profile = predict(deep, x), hw.measure(deep(), x)
    rows = [
        dataclasses.replace(row, spread={"gradient.rms": Spread(mean=row.gradient.rms_log10 - 1.0, std=0.0, count=1)})
        if row.gradient is not None and row.gradient.rms_log10 < -20.0
        else row
        for row in profile.layers
    ]
    profile = dataclasses.replace(profile, layers=tuple(rows), dtype="float16")
    finding = finding_of(forecast.compare(profile))
    assert "is forecast to leave the range of float16 at" in finding.cause
    assert "scale the loss" in finding.advice


def test_the_band_of_a_mean_of_draws_is_narrower_by_the_root_of_their_number() -> None:
    x, y = batch()
    forecast = predict(make, x, y, F.cross_entropy)
    one = forecast.compare(hw.measure(make(), x, y, F.cross_entropy)).rows[0]
    four = forecast.compare(hw.measure(make(), x, y, F.cross_entropy, draws=4)).rows[0]
    assert one.band_decades == pytest.approx(2.0 * four.band_decades)
    assert one.band_decades == forecast.layer("0").gradient_band_decades


def test_a_comparison_with_a_finding_reads_back_as_it_was_written() -> None:
    x, y = batch()
    comparison = predict(make, x).compare(hw.measure(make(), 30.0 * x, y, F.cross_entropy))
    assert comparison.findings
    assert Comparison.from_json(comparison.to_json()) == comparison


def test_nothing_in_common_is_no_departure() -> None:
    x, _ = batch()
    comparison = predict(make, x).compare(hw.measure(nn.Linear(WIDTH, 3), x))
    assert math.isnan(comparison.rms_error_decades)
    assert comparison.findings == ()


def test_a_forecast_accounts_for_weight_gradients_as_a_diagnosis_does() -> None:
    x, y = batch()
    forecast = predict(make, x, y, F.cross_entropy)
    measured = hw.diagnose(make(), x, y, F.cross_entropy).budget.weights
    assert [share.name for share in forecast.budget.weights] == [share.name for share in measured]
    for mine, theirs in zip(forecast.budget.weights, measured, strict=True):
        # One draw of width 64: the activation moves by about √(1/64)/2 · 0.43 decades per layer.
        assert mine.activation_log10 == pytest.approx(theirs.activation_log10, abs=0.06), mine.name
        assert mine.alignment_log10 == pytest.approx(theirs.alignment_log10, abs=0.06), mine.name
        assert mine.weight_gradient_log10 == pytest.approx(
            mine.activation_log10 + mine.gradient_log10 + mine.alignment_log10
        )
