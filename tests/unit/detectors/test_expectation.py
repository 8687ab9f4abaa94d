"""With a forecast, findings over depth say what theory expects; the verdict stays what it is without one."""

from __future__ import annotations

import torch
from torch import nn

import headwater as hw
from headwater._predict import predict


def sigmoids() -> nn.Sequential:
    return nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(64, 64), nn.Sigmoid())])


def tanhs() -> nn.Sequential:
    model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(64, 64), nn.Tanh())])
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
    return model


def told(diagnosis: hw.Diagnosis) -> str:
    assert diagnosis.root is not None
    return diagnosis.root.cause


def test_a_fall_that_theory_forecasts_is_of_the_initialisers() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 64)
    model = sigmoids()
    without, diagnosis = hw.diagnose(model, x), hw.diagnose(model, x, forecast=predict(sigmoids, x))
    assert diagnosis.verdict is without.verdict is hw.Verdict.VANISHING
    assert "any draw of these initialisers does this" in told(diagnosis)
    assert "Theory" not in told(without)
    assert diagnosis.root is not None
    evidence = {item.name: item.value for item in diagnosis.root.evidence}
    # 0.846 decades per layer of sigmoid at torch's default initialisation, 11 or 12 of them.
    assert -10.6 < evidence["change forecast at initialisation"] < -8.8


def test_a_fall_that_theory_does_not_forecast_came_later() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 64)
    model = tanhs()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(0.3)
    diagnosis = hw.diagnose(model, x, forecast=predict(tanhs, x))
    assert diagnosis.verdict is hw.Verdict.VANISHING
    assert "the difference comes with these weights or inputs" in told(diagnosis)


def test_a_growth_that_theory_forecasts_is_of_the_initialisers() -> None:
    def make() -> nn.Sequential:
        layers = [nn.Linear(64, 64) for _ in range(10)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.5)
        return nn.Sequential(*layers)

    torch.manual_seed(0)
    x = torch.randn(32, 64)
    diagnosis = hw.diagnose(make(), x, forecast=predict(make, x))
    assert diagnosis.verdict is hw.Verdict.EXPLODING
    # Each layer multiplies the rms by 0.5·√64 = 4, 0.6 decades.
    assert "any draw of these initialisers does this" in told(diagnosis)


def test_a_saved_profile_takes_a_forecast_as_well() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 64)
    profile = hw.measure(sigmoids(), x)
    assert "Theory forecasts" in told(hw.diagnose(profile, forecast=predict(sigmoids, x)))
