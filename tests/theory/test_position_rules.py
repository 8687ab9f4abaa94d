"""Rules for positions: windows, maps, pixels out of features and back; expected values by hand or by sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater._predict import predict


def log10(value: float | None) -> float:
    assert value is not None
    return math.log10(value)


def forecast_and_sampled(make: Callable[[], nn.Module], x: Tensor, draws: int = 10) -> list[tuple[str, float, float]]:
    """Name, forecast and mean sampled log10 rms of every gradient."""
    forecast = predict(make, x)
    assert forecast.coverage.complete, forecast.coverage
    logs: dict[str, list[float]] = {}
    for seed in range(draws):
        torch.manual_seed(seed)
        profile = hw.measure(make(), x)
        for row in (*profile.layers, *profile.parameters):
            if row.gradient is not None:
                logs.setdefault(row.name, []).append(row.gradient.rms_log10)
    rows = (*forecast.layers, *forecast.parameters)
    known = [(r.name, r.gradient_rms_log10) for r in rows if r.name in logs]
    return [(n, v, math.fsum(logs[n]) / draws) for n, v in known if v is not None and math.isfinite(v)]


# -------------------------------------------------------------------- max pooling


def test_the_largest_of_four_pixels_of_white_noise_has_rms_1_246() -> None:
    # A 1×1 convolution of white noise: pixels independent, N(0, 1) with fan 64 and Var(W) = 1/64. The maximum of four
    # standard normals has mean 1.0294 and variance 0.4917 (tables of order statistics): E max² = 1.0597 + 0.4917 = 1.5514.
    def make() -> nn.Module:
        conv = nn.Conv2d(64, 64, 1, bias=False)
        nn.init.normal_(conv.weight, 0.0, 1 / 8)
        return nn.Sequential(conv, nn.MaxPool2d(2))

    row = predict(make, torch.empty(8, 64, 8, 8, device="meta")).layer("1")
    assert log10(row.activation_rms) == pytest.approx(0.5 * math.log10(1.5514), abs=0.01)


def test_the_gradient_of_a_maximum_reaches_one_pixel_of_four() -> None:
    # q_x = q_δ/4: half as large in rms. After a ReLU below it, that one pixel is positive with probability 1 - 2^-4, not 1/2:
    # the convolution's gradient is √(15/16) of the ReLU's.
    def make() -> nn.Module:
        conv = nn.Conv2d(64, 64, 1, bias=False)
        nn.init.normal_(conv.weight, 0.0, 1 / 8)
        return nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2))

    forecast = predict(make, torch.empty(8, 64, 8, 8, device="meta"))
    pooled, relu, conv = (log10(forecast.layer(n).gradient_rms) for n in ("2", "1", "0"))
    assert relu - pooled == pytest.approx(math.log10(0.5), abs=0.01)
    assert conv - relu == pytest.approx(0.5 * math.log10(15 / 16), abs=0.01)


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2)], ids=["overlapping", "2x2", "adaptive"]
)
def test_max_pooling_between_convolutions_is_forecast(pool: nn.Module) -> None:
    def make() -> nn.Module:
        first, second = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(), pool, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16))

    torch.manual_seed(3)
    for name, predicted, sampled in forecast_and_sampled(make, torch.randn(8, 8, 8, 8)):
        assert predicted == pytest.approx(sampled, abs=0.08), name


# -------------------------------------------------------------------- flattened pixels, and back


def test_a_linear_layer_on_flattened_pixels_sends_independent_gradients_back() -> None:
    # δ of second moment 1 through U(±1/√fan): q_x = outputs · Var(W) = 64/(3·fan), fan = 32·16.
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.Flatten(), nn.Linear(512, 64))

    forecast = predict(make, torch.empty(8, 8, 4, 4, device="meta"))
    top, conv = log10(forecast.layer("2").gradient_rms), log10(forecast.layer("0").gradient_rms)
    assert conv - top == pytest.approx(0.5 * math.log10(64 / (3 * 512)), abs=0.01)


def test_an_image_larger_than_what_is_kept_apart_comes_back_when_it_is_small() -> None:
    # 48 × 48 pixels are pooled into one; after two strides 12 × 12 are kept apart again, which flattening needs.
    def make() -> nn.Module:
        convs = [nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU()]
        return nn.Sequential(*convs, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1152, 10))

    torch.manual_seed(3)
    for name, predicted, sampled in forecast_and_sampled(make, torch.randn(4, 3, 48, 48), 6):
        assert predicted == pytest.approx(sampled, abs=0.08), name


# -------------------------------------------------------------------- maps of positions


class Mapped(nn.Module):
    """A convolution, a map of positions, a convolution."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.move = nn.Conv2d(8, 36, 3, padding=1), move
        self.second: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.move(self.first(x)))
        return out


def _made(move: Callable[[Tensor], Tensor], width: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Mapped(move)
        model.second = nn.Conv2d(width, 32, 3, padding=1)
        return model

    return make


@pytest.mark.parametrize(
    ("move", "width"),
    [
        (lambda t: F.interpolate(t, scale_factor=2), 36),
        (lambda t: F.interpolate(t, scale_factor=2, mode="bilinear"), 36),
        (lambda t: F.interpolate(t, size=(9, 9), mode="bicubic"), 36),
        (lambda t: F.pad(t, (1, 2, 0, 1)), 36),
        (lambda t: F.pad(t, (1, 2, 0, 1), mode="reflect"), 36),
        (lambda t: F.pad(t, (1, 2, 0, 1), mode="replicate"), 36),
        (lambda t: F.pixel_shuffle(t, 3), 4),
        (lambda t: F.pixel_unshuffle(t, 2), 144),
        (lambda t: torch.roll(t, (1, 2), (2, 3)), 36),
        (lambda t: t.flip(3), 36),
        (F.instance_norm, 36),
        (lambda t: F.glu(torch.cat([t, t.flip(1)], 1), 1), 36),
    ],
    ids=["nearest", "bilinear", "bicubic", "zeros", "reflect", "replicate", "shuffle", "unshuffle", "roll", "flip",
         "instance norm", "glu"],
)  # fmt: skip
def test_a_map_of_positions_is_forecast(move: Callable[[Tensor], Tensor], width: int) -> None:
    torch.manual_seed(3)
    for name, predicted, sampled in forecast_and_sampled(_made(move, width), torch.randn(4, 8, 6, 6)):
        if sampled > -5.0:  # a bias before an instance normalisation has no gradient but rounding
            assert predicted == pytest.approx(sampled, abs=0.08), name


# -------------------------------------------------------------------- gates and pooling by attention


class AttentionPooling(nn.Module):
    """A softmax over the steps weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.score, self.out = nn.Linear(32, 64), nn.Linear(64, 1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        out: Tensor = self.out((torch.softmax(self.score(h), 1) * h).sum(1))
        return out


class ThreeParts(nn.Module):
    """Features taken apart by unbind: their gradient comes back as a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(32, 96), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.inner(x).reshape(len(x), 3, 32).unbind(1)
        out: Tensor = self.out(torch.tanh(a) * b + c)
        return out


def prelu() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.PReLU(), nn.Linear(64, 64), nn.PReLU(), nn.Linear(64, 16))


@pytest.mark.parametrize(
    ("make", "shape"),
    [(AttentionPooling, (8, 10, 32)), (ThreeParts, (16, 32)), (prelu, (16, 32))],
    ids=["attention pooling", "unbind", "PReLU"],
)
def test_gates_are_forecast(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    for name, predicted, sampled in forecast_and_sampled(make, torch.randn(*shape), 12):
        if make is prelu and name in ("1.weight", "3.weight"):
            continue  # one number: the mean of its logarithm lies 0.28 decades below the logarithm of its rms
        if not name.startswith("score.bias"):  # a softmax does not feel a shift
            assert predicted == pytest.approx(sampled, abs=0.08), name


def test_a_rule_that_fails_is_named_and_leaves_what_is_behind_it_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater.theory.forecast.engine import RULES

    def failing(call: object) -> None:
        raise IndexError("no such dimension")

    monkeypatch.setitem(RULES, "tanh", failing)
    coverage = predict(
        lambda: nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)), torch.randn(4, 32)
    ).coverage
    assert coverage.unruled["tanh"] == "the rule failed: IndexError: no such dimension"
    assert "0" in coverage.unknown_layers
    assert not coverage.complete
