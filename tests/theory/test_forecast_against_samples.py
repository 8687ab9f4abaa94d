"""The forecast of whole networks against the mean over draws of the measured logarithms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater._predict import predict
from headwater.records.forecast import Forecast

Make = Callable[[], nn.Module]


def mean_logs(make: Make, draws: int, *run: object) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Mean over draws of log10 rms of every layer's and parameter's gradient, and the names on the trunk."""
    layers: dict[str, list[float]] = {}
    parameters: dict[str, list[float]] = {}
    trunk: list[str] = []
    for seed in range(draws):
        torch.manual_seed(seed)
        profile = hw.measure(make(), *run)
        trunk = [row.name for row in profile.trunk_layers]
        for row in profile.layers:
            if row.gradient is not None:
                layers.setdefault(row.name, []).append(row.gradient.rms_log10)
        for parameter in profile.parameters:
            if parameter.gradient is not None:
                parameters.setdefault(parameter.name, []).append(parameter.gradient.rms_log10)
    return (
        {k: math.fsum(v) / len(v) for k, v in layers.items()},
        {k: math.fsum(v) / len(v) for k, v in parameters.items()},
        trunk,
    )


def errors(forecast: Forecast, make: Make, draws: int, *run: object) -> tuple[float, float, float]:
    """RMS error in decades: along the trunk and over all layers (relative to the last), and of weight gradients."""
    layers, parameters, trunk = mean_logs(make, draws, *run)
    last = trunk[-1]
    found = {row.name: row.gradient_rms_log10 for row in forecast.layers}

    def rms(values: list[float]) -> float:
        assert values
        return math.sqrt(math.fsum(v * v for v in values) / len(values))

    def relative(name: str) -> float:
        value, reference = found[name], found[last]
        assert value is not None, name
        assert reference is not None
        return (value - reference) - (layers[name] - layers[last])

    weights = []
    for name, value in parameters.items():
        predicted = forecast.parameter(name).gradient_rms_log10
        assert predicted is not None, name
        if math.isfinite(value) and value > -12.0:  # a gradient that is zero but for rounding has no logarithm
            weights.append(predicted - value)
    return rms([relative(n) for n in trunk]), rms([relative(n) for n in layers]), rms(weights)


def mlp(activation: type[nn.Module], initialise: Callable[[Tensor], object] | None) -> Make:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(12):
            linear = nn.Linear(128, 128)
            if initialise is not None:
                initialise(linear.weight)
                nn.init.zeros_(linear.bias)
            layers += [linear, activation()]
        return nn.Sequential(*layers, nn.Linear(128, 10))

    return make


# 6 draws of 12 layers of width 128: the reference's own standard error is up to √(5·12/128/6)/(2 ln 10) = 0.06 decades for
# He ReLU at the first layer (Hanin), less along the way and for the others; 0.08 is allowed.
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid], ids=lambda a: a.__name__)
@pytest.mark.parametrize("initialise", [None, nn.init.xavier_normal_], ids=["default", "xavier"])
def test_gradients_of_a_feed_forward_network_are_forecast(
    activation: type[nn.Module], initialise: Callable[[Tensor], object] | None
) -> None:
    torch.manual_seed(0)
    run = (torch.randn(16, 128), torch.randint(0, 10, (16,)), F.cross_entropy)
    make = mlp(activation, initialise)
    trunk, everything, weights = errors(predict(make, *run), make, 6, *run)
    assert trunk <= 0.08
    assert everything <= 0.08
    assert weights <= 0.10


def test_the_deep_sigmoid_network_loses_16_17_decades() -> None:
    # 20 layers of 100, torch's default initialisation: THEORY's −16.17 between the first and the last linear layer.
    def make() -> nn.Module:
        return nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(100, 100), nn.Sigmoid())])

    forecast = predict(make, torch.empty(64, 100, device="meta"))
    first, last = forecast.layer("0").gradient_rms_log10, forecast.layer("38").gradient_rms_log10
    assert first is not None
    assert last is not None
    assert first - last == pytest.approx(-16.17, abs=0.01)


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-LN", "post-LN"])
def test_gradients_of_a_transformer_encoder_are_forecast(norm_first: bool) -> None:
    def make() -> nn.Module:
        layers = [
            nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True, norm_first=norm_first)
            for _ in range(4)
        ]
        return nn.Sequential(*layers)

    torch.manual_seed(7)  # not 0: the probe's cotangent is drawn with that seed and would equal the input
    x = torch.randn(4, 12, 64)
    forecast = predict(make, x)
    assert forecast.coverage.complete
    trunk, everything, weights = errors(forecast, make, 4, x)
    assert trunk <= 0.05
    assert everything <= 0.05
    assert weights <= 0.10


@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "BatchNorm"])
def test_gradients_of_a_convolutional_network_are_forecast(normalised: bool) -> None:
    # 8×8 maps and 3×3 kernels: a quarter of the outer taps see padding, which a position-free theory would miss.
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(6):
            conv = nn.Conv2d(3 if i == 0 else 48, 48, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(48), nn.ReLU()] if normalised else [conv, nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))

    torch.manual_seed(0)
    run = (torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,)), F.cross_entropy)
    trunk, everything, _ = errors(predict(make, *run), make, 8, *run)
    assert trunk <= 0.08
    assert everything <= 0.08
