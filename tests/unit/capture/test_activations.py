"""Dead units, saturation, slopes and what is left of the signal, from planted values that a reader can check."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models import mlp
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater.records import LayerProfile

WIDTH = 12
DEAD = (2, 5, 11)


class Planted(nn.Module):
    """y = φ(x + b): the preactivation is the input, shifted by a constant for the units that are to be dead."""

    def __init__(
        self, activation: nn.Module | Callable[[Tensor], Tensor], offset: float, dead: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(WIDTH))
        with torch.no_grad():
            self.bias[list(dead)] = offset
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.bias)


def _row(profile: hw.Profile, kind: str = "activation") -> LayerProfile:
    return next(row for row in profile.layers if row.kind == kind)


# The offset puts the planted units where |φ'| < 1e-3 of its maximum for every |x| <= 1:
# relu, relu6, hardtanh: exactly 0. sigmoid' = 1/4 at 0 and e^-x beyond: e^-11 < 2.5e-4. tanh' = 4 e^-2x: 4 e^-18.
# gelu'(-7) and silu'(-14) are 1e-10 and 1e-5. softplus' = sigmoid. elu' = e^x.
SHAPES: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "relu": (nn.ReLU, -5.0),
    "relu-inplace": (lambda: nn.ReLU(inplace=True), -5.0),
    "relu6": (nn.ReLU6, 9.0),
    "hardtanh": (nn.Hardtanh, 4.0),
    "sigmoid": (nn.Sigmoid, 12.0),
    "tanh": (nn.Tanh, -10.0),
    "gelu": (nn.GELU, -8.0),
    "gelu-tanh": (lambda: nn.GELU(approximate="tanh"), -8.0),
    "silu": (nn.SiLU, -15.0),
    "mish": (nn.Mish, -15.0),
    "elu": (nn.ELU, -10.0),
    "elu-inplace": (lambda: nn.ELU(inplace=True), -10.0),
    "softplus": (nn.Softplus, -12.0),
    "hardswish": (nn.Hardswish, -9.0),
    "threshold": (lambda: nn.Threshold(0.5, 0.0), -5.0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_planted_dead_units_are_counted_exactly(name: str) -> None:
    make, offset = SHAPES[name]
    x = torch.rand(20, WIDTH) * 2 - 1
    row = _row(hw.measure(Planted(make(), offset, DEAD), x))
    assert row.unit_count == WIDTH
    assert row.dead_units == DEAD
    assert row.dead_fraction == len(DEAD) / WIDTH


@pytest.mark.parametrize("slope", [0.01, 0.2])
def test_a_leaky_relu_has_no_dead_unit(slope: float) -> None:
    row = _row(hw.measure(Planted(nn.LeakyReLU(slope), -5.0, DEAD), torch.rand(20, WIDTH)))
    assert row.dead_fraction == 0.0
    assert row.dead_units == ()


@pytest.mark.parametrize(("per_channel", "dead"), [(False, ()), (True, (2,))])
def test_a_prelu_has_a_dead_unit_only_where_its_own_slope_is_zero(per_channel: bool, dead: tuple[int, ...]) -> None:
    activation = nn.PReLU(WIDTH if per_channel else 1)
    if per_channel:
        with torch.no_grad():
            activation.weight[[2, 7]] = 0.0  # unit 2 sits on the flat side, unit 7 does not
    row = _row(hw.measure(Planted(activation, -5.0, DEAD), torch.rand(20, WIDTH) * 2 - 1))
    assert row.dead_units == dead


def test_a_unit_that_fires_for_one_sample_is_alive() -> None:
    # Zeros of a single batch element are no death: a unit is dead when every sample is on the flat part.
    x = torch.full((10, WIDTH), -1.0)
    x[3, :] = 1.0
    x[:, 0] = -1.0
    row = _row(hw.measure(Planted(nn.ReLU(), 0.0, ()), x))
    assert row.dead_units == (0,)
    assert row.activation.zero_fraction == pytest.approx((10 * WIDTH - (WIDTH - 1)) / (10 * WIDTH))


def test_units_of_a_convolution_are_its_channels() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    with torch.no_grad():
        conv.weight[[1, 6]] = 0.0
        conv.bias[[1, 6]] = -1.0
        conv.bias[[0, 2, 3, 4, 5, 7]] = 1.0
    row = _row(hw.measure(nn.Sequential(conv, nn.ReLU(inplace=True)), torch.randn(4, 3, 5, 5)))
    assert row.unit_count == 8
    assert row.dead_units == (1, 6)


def test_units_of_a_token_model_are_its_features() -> None:
    fc = nn.Linear(4, 8)
    with torch.no_grad():
        fc.weight[[0, 3]] = 0.0
        fc.bias[[0, 3]] = -1.0
        fc.bias[[1, 2, 4, 5, 6, 7]] = 2.0
    row = _row(hw.measure(nn.Sequential(nn.Embedding(9, 4), fc, nn.ReLU()), torch.randint(0, 9, (5, 6))))
    assert row.unit_count == 8
    assert row.dead_units == (0, 3)


def test_at_most_64_dead_units_are_listed_and_all_are_counted() -> None:
    net = nn.Sequential(nn.Linear(4, 200), nn.ReLU())
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1.0)
    row = _row(hw.measure(net, torch.randn(3, 4)))
    assert row.dead_fraction == 1.0
    assert row.dead_units == tuple(range(64))


# -------------------------------------------------------------------- functions without a module

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (F.relu, -5.0),
    "torch.relu": (torch.relu, -5.0),
    "Tensor.relu": (lambda x: x.relu(), -5.0),
    "relu_": (lambda x: torch.relu_(x), -5.0),
    "relu inplace": (lambda x: F.relu(x, inplace=True), -5.0),
    "torch.tanh": (torch.tanh, -10.0),
    "Tensor.sigmoid": (lambda x: x.sigmoid(), 12.0),
    "gelu": (F.gelu, -8.0),
    "silu inplace": (lambda x: F.silu(x, inplace=True), -15.0),
    "elu": (F.elu, -10.0),
    "clamp-free hardtanh": (F.hardtanh, 4.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functional_activations_are_rows_with_dead_units_too(name: str) -> None:
    function, offset = FUNCTIONS[name]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Planted(function, offset, DEAD)
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    model, x = Net(), torch.rand(20, WIDTH) * 2 - 1
    profile = hw.measure(model, x)
    row = _row(profile)
    assert row.dead_units == DEAD
    assert row.name.startswith("body")
    assert row.gradient is not None
    assert row.on_trunk
    assert row.activation.rms == pytest.approx(float(model.body(x).detach().double().square().mean().sqrt()), rel=1e-5)


def test_a_function_called_twice_in_one_module_makes_two_rows() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.b(F.relu(self.a(x))))

    rows = [row for row in hw.measure(Net(), torch.randn(3, 4)).layers if row.kind == "activation"]
    assert [row.shape for row in rows] == [(3, 5), (3, 6)]
    assert len({row.name for row in rows}) == 2


def test_an_activation_class_of_another_library_is_recognised() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(1.7 * x)

    row = _row(hw.measure(nn.Sequential(nn.Linear(4, 8), Swish()), torch.randn(6, 4)))
    assert row.type == "Swish"
    assert row.unit_count == 8


def test_a_foreign_module_that_mixes_elements_is_no_activation() -> None:
    class Centre(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(-1, keepdim=True)

    profile = hw.measure(nn.Sequential(nn.Linear(4, 8), Centre()), torch.randn(6, 4))
    assert profile.layer("1").kind != "activation"
    assert profile.layer("1").dead_fraction is None


# -------------------------------------------------------------------- saturation


def _logits(fraction: float, value: float) -> Tensor:
    """1,000 preactivations of which the given share is ±value and the rest 0."""
    x = torch.zeros(100, 10)
    flat = x.flatten()
    saturated = round(fraction * 1000)
    flat[:saturated] = value
    flat[: saturated // 2] = -value
    return flat.view(100, 10)


class _Plain(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.scale * x)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Softsign, nn.Hardsigmoid])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_elements_on_the_flat_parts_of_a_bounded_activation_are_saturated(
    activation: Callable[[], nn.Module], fraction: float
) -> None:
    row = _row(hw.measure(_Plain(activation()), _logits(fraction, 30.0)))
    assert row.saturated_fraction == pytest.approx(fraction)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.Softplus])
def test_an_activation_that_grows_without_bound_does_not_saturate(activation: Callable[[], nn.Module]) -> None:
    assert _row(hw.measure(_Plain(activation()), _logits(1.0, 30.0))).saturated_fraction is None


@pytest.mark.parametrize("functional", [False, True])
def test_one_hot_rows_of_a_softmax_are_saturated(functional: bool) -> None:
    # 3 of 12 rows have one logit of 20: p = 1 - 4e-9 there; the others are uniform.
    x = torch.zeros(12, 5)
    x[:3, 1] = 20.0

    class Soft(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(x, dim=-1)

    model = _Plain(Soft() if functional else nn.Softmax(dim=-1))
    assert _row(hw.measure(model, x), "softmax").saturated_fraction == pytest.approx(0.25)


# -------------------------------------------------------------------- slopes


@pytest.mark.parametrize("name", ["relu", "relu-inplace", "sigmoid", "tanh", "gelu", "silu", "elu-inplace", "softplus"])
def test_the_mean_squared_slope_is_that_of_the_derivative(name: str) -> None:
    make, _ = SHAPES[name]
    x = torch.randn(50, WIDTH)
    row = _row(hw.measure(Planted(make(), 0.0, ()), x))
    leaf = x.double().requires_grad_()
    out = make()(leaf.clone())
    (slope,) = torch.autograd.grad(out.sum(), leaf)
    assert row.slope_mean_square == pytest.approx(float(slope.square().mean()), rel=1e-4)


def test_the_slope_of_a_leaky_relu_is_its_own() -> None:
    # Half of the elements have slope 1, half 0.3: mean square (1 + 0.09) / 2.
    x = torch.cat([torch.full((10, WIDTH), 1.0), torch.full((10, WIDTH), -1.0)])
    row = _row(hw.measure(Planted(nn.LeakyReLU(0.3), 0.0, ()), x))
    assert row.slope_mean_square == pytest.approx(0.545, rel=1e-6)


# -------------------------------------------------------------------- what is left of the signal


def _between(x: Tensor) -> float:
    x = x.double().flatten(1)
    return float(x.var(0, correction=0).sum() / x.square().mean(0).sum())


def test_between_sample_fraction_is_variance_over_second_moment() -> None:
    model, x = mlp(4, 8, 8, 2, activation=nn.Sigmoid), torch.randn(16, 4)
    profile = hw.measure(model, x)
    h = x
    for row, layer in zip(profile.layers, model, strict=True):
        h = layer(h)
        assert row.between_sample_fraction == pytest.approx(_between(h.detach()), rel=1e-4)


def test_between_sample_fraction_is_zero_for_equal_samples_one_for_opposite_ones_none_for_one() -> None:
    linear = nn.Linear(4, 6, bias=False)
    equal = torch.randn(1, 4).expand(8, 4).clone()
    # A batched product may round equal rows differently: (6e-8)² of the second moment.
    assert hw.measure(linear, equal).layers[0].between_sample_fraction == pytest.approx(0.0, abs=1e-12)
    x = torch.randn(4, 4)
    assert hw.measure(linear, torch.cat([x, -x])).layers[0].between_sample_fraction == pytest.approx(1.0)
    assert hw.measure(linear, torch.randn(1, 4)).layers[0].between_sample_fraction is None


@pytest.mark.parametrize("batch_first", [False, True])
def test_between_sample_fraction_of_a_recurrent_layer_is_over_the_batch_whichever_dimension_that_is(
    batch_first: bool,
) -> None:
    rnn = nn.GRU(4, 5, batch_first=batch_first)
    x = torch.randn(7, 3, 4)
    profile = hw.measure(nn.ModuleDict({"rnn": rnn}), loss=lambda m: m["rnn"](x)[0].sum())
    out = rnn(x)[0].detach()
    wanted = _between(out if batch_first else out.transpose(0, 1))
    assert profile.layer("rnn").between_sample_fraction == pytest.approx(wanted, rel=1e-4)


def test_position_cosine_is_the_mean_cosine_between_two_positions() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8))
    tokens = torch.randint(0, 20, (4, 6))
    profile = hw.measure(model, tokens)
    h = model(tokens).detach().double()
    unit = h / h.norm(dim=2, keepdim=True)
    cosines = [
        float(unit[b, s] @ unit[b, t]) for b in range(4) for s in range(6) for t in range(6) if s != t
    ]  # all ordered pairs
    assert profile.layer("1").position_cosine == pytest.approx(math.fsum(cosines) / len(cosines), rel=1e-5)


def test_only_activations_carry_the_statistics_of_activations() -> None:
    profile = hw.measure(mlp(4, 8, 2), torch.randn(5, 4))
    row = profile.layer("0")
    fields: tuple[Any, ...] = (row.dead_fraction, row.unit_count, row.saturated_fraction, row.slope_mean_square)
    assert fields == (None, None, None, None)
    assert profile.layer("1").kind == "activation"
    assert [r.kind for r in profile.layers] == ["linear", "activation", "linear"]
