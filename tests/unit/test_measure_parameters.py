"""Parameters: counted once, placed, given a role and a state; the coverage says what was not seen and why."""

from __future__ import annotations

import pytest
import torch
from tests import models
from tests.models import mlp
from tests.unit.capture.twins import assert_statistics_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import headwater as hw

# -------------------------------------------------------------------- once each


def test_a_tied_weight_is_counted_once_and_lists_its_aliases() -> None:
    model, tokens = models.TiedLanguageModel(), torch.randint(0, 12, (3, 4))
    profile = hw.measure(model, tokens, loss_fn=lambda out: out.square().mean())
    row = profile.parameter("embed.weight")
    assert row.aliases == ("lm_head.weight",)
    assert profile.parameter("lm_head.weight") is row
    assert [p.name for p in profile.parameters].count("embed.weight") == 1
    assert profile.coverage.trainable == profile.coverage.observed == 3
    # Its gradient is the sum over both uses, so the squares of the unique parameters add up to the whole.
    model(tokens).square().mean().backward()
    assert_statistics_of(row.gradient, model.embed.weight.grad)
    total = sum(p.gradient.l2_norm**2 for p in profile.parameters if p.gradient is not None)
    assert total == pytest.approx(sum(float(p.grad.square().sum()) for p in model.parameters()), rel=1e-6)


def test_parameters_that_share_storage_through_a_view_keep_their_own_rows() -> None:
    # Two Parameter objects over the same memory are two leaves for autograd: each has a gradient of its own.
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    profile = hw.measure(model, torch.randn(3, 4))
    assert profile.parameter("0.weight").gradient is not None


# -------------------------------------------------------------------- states and reasons


def test_frozen_and_unused_parameters_have_a_state_a_reason_and_no_numbers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.used = nn.Linear(4, 2)
            self.unused = nn.Linear(4, 2)
            self.called_but_unused = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.frozen(x)
            self.called_but_unused(h)
            return self.used(h)

    profile = hw.measure(Net(), torch.randn(3, 4))
    states = {p.name: p.state for p in profile.parameters}
    assert states["frozen.weight"] == "frozen"
    assert states["unused.weight"] == states["called_but_unused.bias"] == "none"
    assert states["used.weight"] == "finite"
    assert all(p.gradient is None for p in profile.parameters if p.state in ("frozen", "none"))
    coverage = profile.coverage
    assert (coverage.observed, coverage.trainable) == (2, 6)
    assert set(coverage.missing) == {p.name for p in profile.parameters} - {"used.weight", "used.bias"}
    assert coverage.missing["frozen.bias"] == "frozen"
    assert "unused" in coverage.modules_unseen
    assert "never called" in coverage.modules_unseen["unused"]
    assert "observed 2 of 6 trainable parameters (33 %)" in str(coverage)
    assert "called_but_unused.weight" in str(coverage) or "more" in str(coverage)
    # The unused branch has an activation, no gradient, and a reason; nowhere a zero that was not measured.
    branch = profile.layer("called_but_unused")
    assert branch.gradient is None
    assert branch.gradient_missing
    assert profile.layer("frozen").gradient is None
    assert "frozen.weight" not in profile.gradients("rms")


class _LoRA(nn.Module):
    def __init__(self, b: float) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.a = nn.Linear(6, 2, bias=False)
        self.b = nn.Linear(2, 6, bias=False)
        nn.init.constant_(self.b.weight, b)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


def test_an_exact_zero_is_told_from_none_and_from_underflow() -> None:
    profile = hw.measure(_LoRA(0.0), torch.randn(5, 6))
    # B = 0: ∂L/∂A = Bᵀ(...) is exactly zero, ∂L/∂B is not.
    assert profile.parameter("a.weight").state == "exact_zero"
    assert profile.parameter("a.weight").gradient.zero_fraction == 1.0
    assert profile.parameter("b.weight").state == "finite"
    assert profile.coverage.observed == 2


@pytest.mark.parametrize("scale", [1e-39, 1e-43])
def test_a_gradient_below_the_smallest_normal_number_is_underflow(scale: float) -> None:
    # float32's smallest normal number is 1.18e-38; a subnormal has lost digits.
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    profile = hw.measure(model, torch.ones(1, 4), loss_fn=lambda out: (out * scale).sum())
    assert profile.parameter("0.weight").state == "underflow"
    assert profile.parameter("0.weight").gradient.max_abs > 0


def test_a_gradient_that_fell_to_zero_on_the_way_is_underflow_not_an_exact_zero() -> None:
    # Each layer multiplies the gradient by 1e-10: 1 → 1e-10 → … → 1e-40 (subnormal) → 0 in float32.
    model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(7)])
    for layer in model:
        nn.init.constant_(layer.weight, 1e-10)
    x = torch.full((1, 1), 1e10)
    profile = hw.measure(model.requires_grad_(), x, loss_fn=lambda out: out.sum())
    assert profile.layer("0").gradient.max_abs == 0.0
    assert profile.parameter("0.weight").state == "underflow"


def test_a_gradient_with_nan_is_nonfinite_and_counted() -> None:
    class RootAtZero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.fc(x) * 0.0).sqrt()  # slope ∞ times 0: NaN

    profile = hw.measure(RootAtZero(), torch.randn(2, 4), loss_fn=lambda out: out.sum())
    row = profile.parameter("fc.weight")
    assert row.state == "nonfinite"
    assert row.gradient.nan_count == 12
    assert hw.Profile.from_json(profile.to_json()).parameter("fc.weight").gradient.nan_count == 12


# -------------------------------------------------------------------- roles and places


class _Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        h = self.conv(h.transpose(1, 2)).transpose(1, 2)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(self.gru(self.norm(h) * self.scale)[0])


def test_every_parameter_has_a_role() -> None:
    profile = hw.measure(_Mixed(), torch.randint(0, 10, (3, 5)))
    roles = {p.name: p.role for p in profile.parameters}
    assert roles["embed.weight"] == "embedding"
    assert roles["conv.weight"] == roles["head.weight"] == "weight"
    assert roles["conv.bias"] == roles["head.bias"] == roles["gru.bias_hh_l0"] == "bias"
    assert roles["norm.weight"] == roles["norm.bias"] == "normalization"
    assert roles["gru.weight_ih_l0"] == roles["gru.weight_hh_l0"] == "recurrent"
    assert roles["attention.in_proj_weight"] == "attention"
    assert roles["attention.out_proj.weight"] in ("attention", "weight")  # a Linear that attention owns
    assert roles["scale"] == "other"


def test_the_output_projection_of_attention_has_a_gradient_and_a_place() -> None:
    model, tokens = _Mixed(), torch.randint(0, 10, (3, 5))
    profile = hw.measure(model, tokens, loss_fn=lambda out: out.square().sum())
    row = profile.parameter("attention.out_proj.weight")
    assert row.state == "finite"
    assert row.layer == "attention"
    assert "attention.out_proj.weight" in profile.layer("attention").parameters
    order = [p.name for p in profile.parameters]
    assert order.index("conv.weight") < order.index("attention.out_proj.weight") < order.index("norm.weight")
    assert "out_proj" in "".join(profile.coverage.modules_unseen)
    model(tokens).square().sum().backward()
    assert_statistics_of(row.gradient, model.attention.out_proj.weight.grad)


def test_the_root_own_parameter_is_owned_by_the_model() -> None:
    profile = hw.measure(_Mixed(), torch.randint(0, 10, (3, 5)))
    assert profile.coverage.observed == profile.coverage.trainable == len(profile.parameters)
    owner = profile.parameter("scale").layer
    assert owner is None or profile.layer(owner).type in ("_Mixed", "Linear")


def test_a_parametrized_weight_belongs_to_the_layer_it_is_for() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2))
    profile = hw.measure(model, torch.randn(3, 4))
    for index in (0, 1):
        row = profile.parameter(f"0.parametrizations.weight.original{index}")
        assert row.layer == "0"
        assert row.state == "finite"
    assert [row.name for row in profile.layers] == ["0", "1", "2"]


def test_fans_follow_the_layout_of_each_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, (3, 5), padding=(1, 2)), nn.ConvTranspose2d(8, 4, 3, padding=1), nn.Flatten(),
                          nn.Linear(4 * 36, 2))  # fmt: skip
    profile = hw.measure(model, torch.randn(2, 3, 6, 6))
    fans = {p.name: (p.fan_in, p.fan_out) for p in profile.parameters}
    assert fans["0.weight"] == (3 * 15, 8 * 15)
    assert fans["1.weight"] == (8 * 9, 4 * 9)  # stored (in, out, k, k)
    assert fans["3.weight"] == (144, 2)
    assert fans["0.bias"] == (None, None)


def test_grouped_convolutions_have_the_fan_in_of_one_group_and_the_fan_out_too() -> None:
    # 8 channels in 4 groups: each output sees 2 · 9 inputs, each input feeds 12 / 4 · 9 = 27 outputs.
    profile = hw.measure(nn.Conv2d(8, 12, 3, groups=4), torch.randn(2, 8, 6, 6))
    row = profile.parameter("weight")
    assert (row.fan_in, row.fan_out) == (18, 27)


def test_sparse_gradients_have_the_statistics_of_the_dense_ones() -> None:
    case_ = models.case("sparse-embedding")
    model, tokens, targets = case_.make()
    tokens[0] = tokens[0, 0]  # repeated indices: uncoalesced entries must be added before they are squared
    profile = hw.measure(model, tokens, targets, case_.loss_fn)
    for module in (model.embed, model.bag):
        module.sparse = False
    case_.loss_fn(model(tokens), targets).backward()
    for name in ("embed", "bag"):
        row = profile.parameter(f"{name}.weight")
        assert row.role == "embedding"
        assert_statistics_of(row.gradient, model.get_submodule(name).weight.grad)


# -------------------------------------------------------------------- rows and columns


def test_equal_rows_of_a_weight_with_equal_gradients_are_counted() -> None:
    # Three units start equal and stay equal: two repeat an earlier one.
    model = mlp(4, 5, 2)
    with torch.no_grad():
        model[0].weight.abs_()  # with positive inputs every ReLU is open
        model[0].weight[[1, 4]] = model[0].weight[3].clone()
        model[0].bias[:] = 0.1
        model[2].weight[:, [1, 4]] = model[2].weight[:, 3:4]
    x = torch.rand(6, 4)
    assert hw.measure(model, x).parameter("0.weight").duplicate_units == 2
    with torch.no_grad():
        model[2].weight[0, 1] += 1.0  # now unit 1 sends on something else, and its gradient differs
    assert hw.measure(model, x).parameter("0.weight").duplicate_units == 1


def test_zero_rows_and_columns_of_a_gradient_are_counted() -> None:
    dead = (1, 4, 5)
    model = models.dead_relu_mlp(dead)
    x = torch.randn(6, 8)
    x[:, [2, 7]] = 0.0  # two inputs that are always zero
    profile = hw.measure(model, x)
    assert profile.parameter("0.weight").zero_rows == len(dead)
    assert profile.parameter("0.weight").zero_columns == 2
    assert profile.parameter("2.weight").zero_columns == len(dead)
    assert profile.parameter("0.bias").zero_rows is None


def test_batch_normalisation_makes_the_bias_before_it_a_rounding_error() -> None:
    # BN subtracts the mean, so ∂L/∂bias is zero up to rounding: seen, and far below the weight's.
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    profile = hw.measure(model, torch.randn(16, 4), loss_fn=lambda out: F.mse_loss(out, torch.ones(16, 1)))
    assert profile.parameter("0.bias").gradient.rms < 1e-5 * profile.parameter("0.weight").gradient.rms
