"""Activations and gradients along depth equal those of an obvious autograd program."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from tests import models
from tests.models import CASES, Case, mlp
from tests.unit.capture.twins import (
    assert_parameter_gradients_equal_backward,
    assert_same_statistics,
    assert_statistics_of,
    call,
    retained,
)
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw

# -------------------------------------------------------------------- layers


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.ELU])
def test_every_layer_equals_a_loop_with_retain_grad(activation: Callable[[], nn.Module]) -> None:
    model, x, y = mlp(8, 16, 16, 16, 3, activation=activation), torch.randn(10, 8), torch.randn(10, 3)
    profile = hw.measure(model, x, y, F.mse_loss)
    twin = retained(model, x, lambda out: F.mse_loss(out, y))
    assert [row.name for row in profile.layers] == [str(i) for i in range(len(model))]
    assert [row.order for row in profile.layers] == list(range(len(model)))
    for row, module, (output, gradient) in zip(profile.layers, model, twin, strict=True):
        assert row.type == type(module).__name__
        assert row.shape == tuple(output.shape)
        assert_statistics_of(row.activation, output)
        assert_statistics_of(row.gradient, gradient)


def test_the_layers_own_parameters_are_named() -> None:
    profile = hw.measure(mlp(4, 5, 2), torch.randn(3, 4))
    assert [row.parameters for row in profile.layers] == [("0.weight", "0.bias"), (), ("2.weight", "2.bias")]
    assert profile.parameter("2.bias").layer == "2"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_type_equals_the_loop(dtype: torch.dtype) -> None:
    model, x = mlp(8, 16, 16, 3).to(dtype), torch.randn(10, 8).to(dtype)
    profile = hw.measure(model, x, loss_fn=lambda out: out.float().square().mean())
    assert profile.dtype == str(dtype).removeprefix("torch.")
    for row, (output, gradient) in zip(
        profile.layers, retained(model, x, lambda out: out.float().square().mean()), strict=True
    ):
        assert row.dtype == profile.dtype
        assert_statistics_of(row.activation, output)
        assert_statistics_of(row.gradient, gradient)


def test_complex_layers_count_real_and_imaginary_parts() -> None:
    case = models.case("complex")
    model, x, y = case.make()
    profile = hw.measure(model, x, y, case.loss_fn)
    assert isinstance(model, models.ComplexNet)
    h = model.first(x)
    h.retain_grad()
    out = model.second(h * torch.sigmoid(h.abs()))
    out.retain_grad()
    case.loss_fn(out.abs(), y).backward()
    assert profile.layer("first").activation.count == 2 * 4 * 6
    for name, tensor in (("first", h), ("second", out)):
        assert tensor.grad is not None
        assert_statistics_of(profile.layer(name).activation, tensor)
        assert_statistics_of(profile.layer(name).gradient, tensor.grad)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parameter_gradients_equal_those_of_backward(case: Case) -> None:
    model, inputs, targets = case.make()
    profile = hw.measure(model, inputs, targets, case.loss_fn)
    plain_model = getattr(model, "_orig_mod", model)
    state = torch.get_rng_state()  # measure() restored it, so that this forward draws the same numbers

    def loss() -> Tensor:
        torch.set_rng_state(state)
        return case.loss_fn(call(plain_model, inputs), targets)

    if case.name in ("parametrized", "old-weight-and-spectral-norm"):
        # spectral_norm's power iteration moved on in the call above; evaluation mode stands still.
        profile = hw.measure(model.eval(), inputs, targets, case.loss_fn)
    assert_parameter_gradients_equal_backward(profile, plain_model, loss)
    assert profile.coverage.observed == sum(p.gradient is not None for p in profile.parameters)


# -------------------------------------------------------------------- in-place operations and views


def test_inplace_operations_give_the_profile_of_the_out_of_place_model() -> None:
    x, y = torch.randn(4, 3, 6, 6), torch.arange(4)
    inplace, plain = models.ResNet(inplace=True), models.ResNet(inplace=False)
    plain.load_state_dict(inplace.state_dict())
    a, b = (hw.measure(m, x, y, F.cross_entropy) for m in (inplace, plain))
    assert [r.name for r in a.layers] == [r.name for r in b.layers]
    assert [r.on_trunk for r in a.layers] == [r.on_trunk for r in b.layers]
    for left, right in zip(a.layers, b.layers, strict=True):
        assert_same_statistics(left.activation, right.activation)
        assert_same_statistics(left.gradient, right.gradient)
        assert left.dead_fraction == right.dead_fraction
    for p, q in zip(a.parameters, b.parameters, strict=True):
        assert p.name == q.name
        assert_same_statistics(p.gradient, q.gradient)
    assert a.loss == pytest.approx(b.loss, rel=1e-6)


def test_a_tensor_modified_in_place_after_the_module_returned_it_keeps_its_own_gradient() -> None:
    # y = fc(x) then y *= 3: the row is the value before, so ∂L/∂fc = 3 · ∂L/∂y and ∂L/∂y = 1 for L = Σ y.
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            self.before = y.detach().clone()
            y *= 3.0
            return y

    model, x = Scaled(), torch.randn(3, 4)
    profile = hw.measure(model, x, loss_fn=lambda out: out.sum())
    assert_statistics_of(profile.layer("fc").activation, model.fc(x))
    assert profile.layer("fc").gradient.rms == 3.0
    assert profile.layer("(model)").gradient.rms == 1.0
    assert_statistics_of(profile.layer("(model)").activation, 3 * model.fc(x))


def test_views_and_chunks_are_rows_of_their_own() -> None:
    class Split(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.chunk(2, dim=1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 6)
            self.split = Split()

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.split(self.fc(x))
            return a * 2.0 + b * 5.0

    model, x = Net(), torch.randn(3, 4)
    profile = hw.measure(model, x, loss_fn=lambda out: out.sum())
    a, b = model.fc(x).chunk(2, dim=1)
    assert_statistics_of(profile.layer("split").activation, a)
    assert_statistics_of(profile.layer("split[1]").activation, b)
    assert profile.layer("split").gradient.rms == 2.0
    assert profile.layer("split[1]").gradient.rms == 5.0
    # ∂L/∂fc holds 2 in one half and 5 in the other: rms √((4 + 25) / 2).
    assert profile.layer("fc").gradient.rms == pytest.approx(math.sqrt(14.5))


def test_the_same_tensor_is_one_row_with_aliases() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Identity()), nn.Dropout(0.5).eval())
    profile = hw.measure(model, torch.randn(3, 4))
    assert profile.layers[0].name == "0.0"
    assert {"0.1", "0"} <= set(profile.layers[0].aliases)
    assert profile.layer("0").name == "0.0"


# -------------------------------------------------------------------- structures


class Output(NamedTuple):
    logits: Tensor
    hidden: Tensor


@pytest.mark.parametrize("form", ["dict", "dataclass", "namedtuple", "list", "tuple"])
def test_tensors_are_found_in_any_output_structure(form: str) -> None:
    model, x, y = models.Structured(form), torch.randn(4, 5), torch.arange(4) % 3
    profile = hw.measure(model, {"x": x, "scale": 0.5}, y, lambda out, t: F.cross_entropy(models.logits_of(out), t))
    h = model.fc(x * 0.5).tanh()
    h.retain_grad()
    logits = model.head(h)
    logits.retain_grad()
    F.cross_entropy(logits, y).backward()
    assert_statistics_of(profile.layer("head").activation, logits)
    assert_statistics_of(profile.layer("head").gradient, logits.grad)
    assert profile.batch_size == 4
    assert profile.target_shape == (4,)
    # The hidden tensor is a row too (of the functional tanh or of the model); integers and None are passed over.
    assert h.grad is not None
    rms = float(h.grad.double().square().mean().sqrt())
    others = [row.gradient for row in profile.layers if row.shape == (4, 6) and row.name != "fc"]
    assert any(gradient is not None and math.isclose(gradient.rms, rms, rel_tol=1e-5) for gradient in others)
    assert not any("index" in row.name for row in profile.layers)


def test_further_tensors_of_an_output_are_named_by_their_path() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            y = self.fc(x)
            return {"a": y * 1, "b": [y * 2, Output(y * 3, y * 4)], "c": None, "d": 7}

    profile = hw.measure(Many(), torch.randn(3, 4))
    names = {row.name for row in profile.layers}
    assert names == {"fc", "(model)", "(model)['b'][0]", "(model)['b'][1].logits", "(model)['b'][1].hidden"}


def test_positional_and_keyword_arguments_reach_the_model() -> None:
    model, x = models.PackedGRU(), torch.randn(3, 4, 4)
    lengths = torch.tensor([4, 2, 3])
    positional = hw.measure(model, (x, lengths))
    named = hw.measure(model, {"x": x, "lengths": lengths})
    assert positional.to_json() == named.to_json()


# -------------------------------------------------------------------- order and repeated calls


def test_a_module_called_several_times_has_a_row_per_call() -> None:
    model, x = models.SharedModule(), torch.randn(4, 6)
    profile = hw.measure(model, x, torch.zeros(4, 2), F.mse_loss)
    names = ["fc#0", "act#0", "fc#1", "act#1", "fc#2", "act#2", "head"]
    assert [row.name for row in profile.layers] == names
    h, outputs = x, []
    for _ in range(3):
        for module in (model.fc, model.act):
            h = module(h)
            h.retain_grad()
            outputs.append(h)
    out = model.head(h)
    out.retain_grad()
    F.mse_loss(out, torch.zeros(4, 2)).backward()
    for name, tensor in zip(names, [*outputs, out], strict=True):
        assert_statistics_of(profile.layer(name).activation, tensor)
        assert_statistics_of(profile.layer(name).gradient, tensor.grad)
    assert [row.call for row in profile.layers] == [0, 0, 1, 1, 2, 2, 0]
    assert_statistics_of(profile.parameter("fc.weight").gradient, model.fc.weight.grad)
    assert profile.coverage.observed == profile.coverage.trainable == 4


def test_rows_come_in_execution_order_whatever_the_order_of_registration() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(5, 2)
            self.middle = nn.Linear(6, 5)
            self.first = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.first(x)))

    profile = hw.measure(Reversed(), torch.randn(3, 4))
    assert [row.name for row in profile.layers] == ["first", "middle", "last"]
    assert [p.name.split(".")[0] for p in profile.parameters] == ["first", "first", "middle", "middle", "last", "last"]


def test_one_module_under_two_names_is_one_module() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x)

    profile = hw.measure(Twice(), torch.randn(3, 4))
    assert [row.name for row in profile.layers] == ["a"]
    assert profile.layer("b").name == "a"
    assert profile.parameter("b.weight").name == "a.weight"
    assert profile.coverage.trainable == 2


# -------------------------------------------------------------------- losses


def test_without_a_loss_the_output_is_probed_with_unit_variance() -> None:
    profile = hw.measure(mlp(4, 8, 64), torch.randn(200, 4))
    assert profile.loss_source == "probe"
    # 12,800 draws: the rms of a unit Gaussian sample is 1 ± 1/√(2n) = 1 ± 0.0063; five deviations allowed.
    assert profile.layers[-1].gradient.rms == pytest.approx(1.0, abs=0.032)
    assert profile.layers[-1].gradient.kurtosis == pytest.approx(3.0, abs=0.3)


def test_the_models_own_loss_is_used_where_the_output_has_one() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            logits = self.fc(x)
            return {"loss": logits.square().mean(), "logits": logits}

    model, x = WithLoss(), torch.randn(3, 4)
    profile = hw.measure(model, x)
    assert profile.loss_source == "model"
    assert profile.loss == model(x)["loss"].item()
    assert hw.measure(model, x, None, lambda out: out["logits"].sum()).loss_source == "loss_fn"
    assert hw.measure(model, loss=lambda m: m(x)["loss"]).loss_source == "loss"


def test_a_loss_of_one_element_counts_as_a_scalar() -> None:
    model, x = mlp(4, 3, 1), torch.randn(1, 4)
    assert hw.measure(model, x, loss_fn=lambda out: out).loss == model(x).item()


def test_a_gradient_inside_the_loss_does_not_count_as_the_gradient_of_the_loss() -> None:
    model = mlp(4, 8, 1, activation=nn.Tanh)
    x = torch.randn(5, 4, requires_grad=True)

    def loss_of(out: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.mean() + (slope.norm(dim=1) - 1).square().mean()  # the gradient penalty of WGAN-GP

    profile = hw.measure(model, x, loss_fn=loss_of)
    hidden = model[0](x)
    out = model[2](model[1](hidden))
    gradients = torch.autograd.grad(loss_of(out), [hidden, out, model[0].weight])
    assert_statistics_of(profile.layer("0").gradient, gradients[0])
    assert_statistics_of(profile.layer("2").gradient, gradients[1])
    assert_statistics_of(profile.parameter("0.weight").gradient, gradients[2])


def test_the_profile_of_a_model_under_autocast_shows_the_types_that_ran() -> None:
    model, x = mlp(4, 8, 2), torch.randn(5, 4)

    def loss(m: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m(x).float().square().sum()

    profile = hw.measure(model, loss=loss)
    assert [row.dtype for row in profile.layers] == ["bfloat16"] * 3
    assert profile.dtype == "float32"


def test_an_exception_that_the_model_catches_itself_leaves_the_rows_in_order() -> None:
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                self.b(x[:, :3])
            except RuntimeError:
                return self.b(self.a(x))
            return x

    rows = hw.measure(Tries(), torch.randn(3, 4)).layers
    assert [(row.name.split("#")[0], row.gradient is not None) for row in rows] == [("a", True), ("b", True)]


def test_what_the_profile_says_about_the_run() -> None:
    torch.manual_seed(123)
    model, x = mlp(4, 3, 2).double(), torch.randn(5, 4).double()
    profile = hw.measure(model.eval(), x, torch.zeros(5, 2).double(), F.mse_loss)
    assert (profile.dtype, profile.device, profile.seed, profile.training) == ("float64", "cpu", 123, False)
    assert (profile.output_shape, profile.target_shape, profile.batch_size) == ((5, 2), (5, 2), 5)
    assert profile.model_type == "Sequential"
    assert profile.torch_version == torch.__version__
    assert hw.Profile.from_json(profile.to_json()) == profile


def test_warnings_of_the_loss_are_recorded_and_not_shown() -> None:
    profile = hw.measure(mlp(4, 3, 1), torch.randn(5, 4), torch.zeros(5), F.mse_loss)
    assert any("target size" in text for text in profile.warnings)


def test_gradients_far_below_the_range_of_float32_are_measured_in_float64() -> None:
    # Slope 1/4 at most, weights uniform in ±1/4: each layer multiplies the rms by at most √16 · 0.144 / 4 ≈ 0.14.
    model, x = models.deep_sigmoid_mlp(60, 16).double(), torch.randn(4, 8).double()
    first = hw.measure(model, x, loss_fn=lambda out: out.sum()).layers[0]
    assert first.gradient.rms < 1e-45
    assert_statistics_of(first.gradient, retained(model, x, lambda out: out.sum())[0][1])
