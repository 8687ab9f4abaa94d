"""Single rules of the moment propagation against closed forms, and what happens where there is no rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
from headwater._predict import predict
from headwater.errors import InputError
from headwater.records.forecast import Forecast, LayerForecast


def rms(value: float | None) -> float:
    assert value is not None
    return value


def test_a_linear_layer_multiplies_the_second_moment_by_its_weight_variance() -> None:
    # U(±1/√n): n Var(W) = 1/3; bias U(±1/√n): 1/(3n). q' = 1/3 + 1/300 for inputs of second moment 1 and n = 100; the
    # mean of the logarithm lies v/(4 ln 10) lower, v = 2ρ²/n.
    forecast = predict(lambda: nn.Linear(100, 400), torch.empty(50, 100, device="meta"))
    assert rms(forecast.layer("(model)").activation_rms) == pytest.approx(math.sqrt(1 / 3 + 1 / 300), rel=2e-3)


@pytest.mark.parametrize(
    ("initialise", "variance"),
    [
        (lambda w: nn.init.normal_(w, std=0.3), 0.09),
        (lambda w: nn.init.uniform_(w, -1.0, 1.0), 1 / 3),
        (lambda w: nn.init.orthogonal_(w, gain=2.0), 4 / 64),  # min(64, 32) rows of length 2 over 64·32 entries
        (lambda w: nn.init.kaiming_normal_(w), 2 / 32),
        (lambda w: nn.init.xavier_uniform_(w), 2 / 96),
        # N(0, 1) cut at ±2: 1 - 4 φ(2)/(2Φ(2) - 1) = 0.7737
        (lambda w: nn.init.trunc_normal_(w), 0.7737),
        (lambda w: nn.init.normal_(w).mul_(0.5), 0.25),
        (lambda w: nn.init.sparse_(w, 0.75, std=1.0), 0.25),
    ],
    ids=["normal", "uniform", "orthogonal", "kaiming", "xavier", "truncated", "scaled in place", "sparse"],
)
def test_the_law_of_an_initialiser_is_recorded_on_the_meta_device(initialise: object, variance: float) -> None:
    def make() -> nn.Module:
        layer = nn.Linear(32, 64)
        with torch.no_grad():
            initialise(layer.weight)  # type: ignore[operator]
        return layer

    weight = predict(make, torch.empty(4, 32, device="meta")).parameter("weight")
    assert weight.value_mean == 0.0
    assert weight.value_variance == pytest.approx(variance, rel=1e-3)


def test_a_materialised_model_is_forecast_like_its_factory() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.LayerNorm(256), nn.Linear(256, 256), nn.Tanh())

    x = torch.empty(8, 256, device="meta")
    one, other = predict(make, x), predict(make(), x)
    for row in one.layers:
        # 65,536 entries tell a variance to 2·1.8^½/√65536 ≈ 0.5 %
        assert rms(row.gradient_rms_log10) == pytest.approx(rms(other.layer(row.name).gradient_rms_log10), abs=5e-3)


def test_a_materialised_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    predict(model, torch.randn(16, 8))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_he_residual_blocks_double_the_gradient() -> None:
    # x + f(x) with He's f: E δ² doubles per block (THEORY.md): 2^10 over ten blocks.
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(512, 512, bias=False), nn.Linear(512, 512, bias=False)
            nn.init.kaiming_normal_(self.first.weight)
            nn.init.normal_(self.second.weight, std=512**-0.5)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(torch.relu(self.first(x)))

    forecast = predict(lambda: nn.Sequential(nn.Linear(512, 512), *[Block() for _ in range(10)]), torch.randn(8, 512))
    gain = rms(forecast.layer("0").gradient_rms_log10) - rms(forecast.layer("10").gradient_rms_log10)
    # The mean of the logarithm is lower by a few hundredths at width 512.
    assert 2 * gain == pytest.approx(10 * math.log10(2.0), abs=0.05)


def test_batchnorm_and_relu_explode_as_theory_says() -> None:
    # π/(π - 1) = 1.467 per layer on δ² for large batches (Yang 2019).
    layers = 12

    def make() -> nn.Module:
        blocks = [m for _ in range(layers) for m in (nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU())]
        return nn.Sequential(*blocks, nn.Linear(512, 512))

    forecast = predict(make, torch.empty(256, 512, device="meta"))
    first, last = rms(forecast.layer("6").gradient_rms_log10), rms(forecast.layer("30").gradient_rms_log10)
    per_layer = 10 ** (2 * (first - last) / 8)
    assert per_layer == pytest.approx(math.pi / (math.pi - 1), rel=0.03)


def test_an_operation_without_a_rule_is_named_and_nothing_behind_it_is_known() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(torch.cumprod(self.inner(x), dim=1))

    forecast = predict(Odd, torch.randn(8, 32))
    assert "cumprod" in forecast.coverage.unruled  # the backward's cumsum and others may be named beside it
    assert forecast.layer("inner").activation_rms is not None
    assert forecast.layer("outer").activation_rms is None
    assert forecast.layer("inner").gradient_rms is None
    assert forecast.layer("inner").unknown in forecast.coverage.unruled
    assert not forecast.coverage.complete


def test_narrow_layers_and_trained_looking_weights_are_listed() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[2].weight.add_(1.0)
    text = " ".join(predict(model, torch.randn(4, 64)).coverage.assumptions)
    assert "width below 16 at 0" in text
    assert "2.weight" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, torch.randn(2, 2)), "a torch.nn.Module or a function"),
        ((nn.ReLU(), torch.randn(2, 2)), "no parameters"),
        ((nn.Linear(2, 2, device="meta"), torch.randn(2, 2)), "predict\\(lambda"),
        ((nn.Linear(2, 2), "x"), "hold a tensor"),
        ((nn.Linear(2, 2), torch.randn(2, 2), torch.zeros(2)), "loss_fn"),
    ],
)
def test_a_wrong_argument_is_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict(*arguments)  # type: ignore[arg-type]


def deep_sigmoid(depth: int = 12) -> nn.Module:
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(64, 64), nn.Sigmoid())])


def test_the_depth_at_which_a_format_fails_follows_from_the_rate() -> None:
    forecast = predict(deep_sigmoid, torch.empty(16, 64, device="meta"))
    point = forecast.fails_at("float16")
    assert point is not None
    assert point.kind == "underflow"
    # The first layer from the loss whose forecast is below 2^-14.
    below = [r for r in forecast.trunk_layers if rms(r.gradient_rms_log10) < -14 * math.log10(2.0)]
    assert point.layer == below[-1].name
    assert forecast.fails_at("float32") is None
    with pytest.raises(InputError, match="float8"):
        forecast.fails_at("float8")


def test_steps_of_the_budget_sum_to_the_change_along_the_trunk() -> None:
    forecast = predict(deep_sigmoid, torch.empty(16, 64, device="meta"))
    rows = forecast.trunk_layers
    change = rms(rows[0].gradient_rms_log10) - rms(rows[-1].gradient_rms_log10)
    inner = math.fsum(math.log10(b.multiplier) for b in forecast.blocks) / 2.0
    assert inner == pytest.approx(change)
    # The probe's own gradient is drawn: its rms is 1 to 1/√(2·1024) = 2 %.
    assert forecast.budget.total_decades == pytest.approx(change, abs=0.03)
    assert forecast.multiplier < 0.2


def test_a_measurement_of_another_initialisation_leaves_the_band() -> None:
    def he() -> nn.Module:
        model = nn.Sequential(*[m for _ in range(10) for m in (nn.Linear(128, 128), nn.ReLU())])
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        return model

    x = torch.randn(16, 128)
    forecast = predict(he, x)
    torch.manual_seed(1)
    same = forecast.compare(hw.measure(he(), x))
    other = forecast.compare(
        hw.measure(nn.Sequential(*[m for _ in range(10) for m in (nn.Linear(128, 128), nn.ReLU())]), x)
    )
    assert same.outside == ()
    assert same.rms_error_decades < 0.2
    # Default weights lose log10 √6 = 0.39 decades per layer where He's keep the gradient: two layers from the end it shows.
    assert other.outside[0] in ("16", "17")
    assert other.rms_error_decades > 1.0
    assert "departs from theory" in other.sentence()


def test_a_forecast_survives_json() -> None:
    forecast = predict(deep_sigmoid, torch.empty(16, 64, device="meta"))
    assert Forecast.from_json(forecast.to_json()) == forecast
    assert isinstance(forecast.layer("0"), LayerForecast)
    with pytest.raises(KeyError, match="did you mean"):
        forecast.layer("23.")


def test_dropout_inside_attention_is_followed() -> None:
    def make() -> nn.Module:
        return nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)

    torch.manual_seed(7)
    x = torch.randn(8, 12, 64)
    forecast = predict(make, x)
    assert forecast.coverage.complete
    assert not forecast.coverage.unruled
    logs: dict[str, list[float]] = {}
    for seed in range(8):
        torch.manual_seed(seed)
        for row in hw.measure(make(), x).layers:
            assert row.gradient is not None
            logs.setdefault(row.name, []).append(row.gradient.rms_log10)
    for name, values in logs.items():
        # 8 draws of a tensor of 6,144 elements: the reference is good to about 0.005 decades
        assert rms(forecast.layer(name).gradient_rms_log10) == pytest.approx(math.fsum(values) / 8, abs=0.03), name
