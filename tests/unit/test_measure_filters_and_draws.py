"""include and exclude save the work, not only the rows; draws re-initialise a copy and say how much numbers vary."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from tests import models
from tests.models import mlp
from tests.unit.capture.twins import assert_same_statistics
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater.errors import InputError

# -------------------------------------------------------------------- filters


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.body = mlp(6, 6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


LINEARS = {"stem", "body.0", "body.2", "head"}


@pytest.mark.parametrize(
    ("include", "rows"),
    [
        ("body*", {"body.0", "body.1", "body.2"}),
        (re.compile(r"\.[02]$"), {"body.0", "body.2"}),
        (nn.Linear, LINEARS),
        (lambda name, module: isinstance(module, nn.ReLU), {"body.1"}),
        (["stem", nn.ReLU], {"stem", "body.1"}),
    ],
    ids=["glob", "regex", "class", "callable", "list"],
)
def test_include_keeps_what_matches(include: Any, rows: set[str]) -> None:
    model, x = _Net(), torch.randn(3, 4)
    everything, some = hw.measure(model, x), hw.measure(model, x, include=include)
    assert {row.name for row in some.layers} == rows
    for row in some.layers:
        assert_same_statistics(row.activation, everything.layer(row.name).activation, rtol=0)
        assert_same_statistics(row.gradient, everything.layer(row.name).gradient, rtol=0)
        assert row.on_trunk == everything.layer(row.name).on_trunk
    # The parameters of a kept layer are kept with it.
    assert {p.name for p in some.parameters} == {
        name for row in everything.layers if row.name in rows for name in row.parameters
    }


@pytest.mark.parametrize(
    ("exclude", "rows"),
    [
        ("body*", {"stem", "head"}),
        # Where a container's last child is left out, the container itself is the row of the tensor it returns.
        (re.compile("^(stem|head)$"), {"body.0", "body.1", "body.2", "(model)"}),
        (nn.Linear, {"body.1", "body", "(model)"}),
        ([nn.Linear, nn.Sequential, _Net], {"body.1"}),
        (lambda name, module: "body" in name, {"stem", "head"}),
    ],
    ids=["glob", "regex", "class", "list", "callable"],
)
def test_exclude_leaves_out_what_matches(exclude: Any, rows: set[str]) -> None:
    profile = hw.measure(_Net(), torch.randn(3, 4), exclude=exclude)
    assert {row.name for row in profile.layers} == rows
    left_out = [name for name in profile.coverage.missing if profile.coverage.missing[name] == "excluded"]
    assert set(left_out) == {name for name, _ in _Net().named_parameters()} - {p.name for p in profile.parameters}
    assert profile.coverage.trainable == 8


def test_include_and_exclude_together_keep_what_is_wanted_and_not_unwanted() -> None:
    profile = hw.measure(_Net(), torch.randn(3, 4), include=nn.Linear, exclude="body.*")
    assert {row.name for row in profile.layers} == {"stem", "head"}


def test_a_glob_over_parameter_names_keeps_those_parameters() -> None:
    profile = hw.measure(_Net(), torch.randn(3, 4), include="*.weight")
    assert {p.name for p in profile.parameters} == {"stem.weight", "body.0.weight", "body.2.weight", "head.weight"}


def test_an_excluded_module_gets_no_hook_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked: list[nn.Module] = []
    original = nn.Module.register_forward_hook

    def counting(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hooked.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "register_forward_hook", counting)
    model = _Net()
    hw.measure(model, torch.randn(3, 4), exclude="body*")
    assert not set(hooked) & set(model.body.modules())
    assert model.stem in hooked


def test_an_excluded_tensor_is_never_summarised(monkeypatch: pytest.MonkeyPatch) -> None:
    import headwater.capture.recorder as recorder

    shapes: list[tuple[int, ...]] = []
    original = recorder.summarize

    def counting(tensor: Tensor) -> Any:
        shapes.append(tuple(tensor.shape))
        return original(tensor)

    monkeypatch.setattr(recorder, "summarize", counting)
    model = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 9), nn.Linear(9, 2))
    hw.measure(model, torch.randn(3, 4), exclude=["2", ""])
    assert (3, 9) in shapes
    assert (3, 2) not in shapes


# -------------------------------------------------------------------- draws


def test_draws_equal_a_loop_over_reset_parameters() -> None:
    model, x, y = mlp(4, 8, 8, 2, activation=nn.Tanh), torch.randn(6, 4), torch.randn(6, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    profile = hw.measure(model, x, y, F.mse_loss, draws=5)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert profile.draws == 5

    torch.manual_seed(5)
    squares, logs, values = [], [], []
    for _ in range(5):
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        model.zero_grad()
        F.mse_loss(model(x), y).backward()
        gradient = model[0].weight.grad.double()
        squares.append(float(gradient.square().mean()))
        logs.append(0.5 * math.log10(squares[-1]))
        values.append(float(model[0].weight.detach().abs().max()))
    row = profile.parameter("0.weight")
    mean = sum(logs) / 5
    spread = row.spread["gradient.rms"]
    assert spread.mean == pytest.approx(mean, abs=1e-6)
    assert spread.std == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in logs) / 4), rel=1e-5)
    assert spread.count == 5
    assert row.gradient.rms == pytest.approx(math.sqrt(sum(squares) / 5), rel=1e-6)
    assert row.gradient.count == 5 * 32
    assert row.value.max_abs == pytest.approx(max(values), rel=1e-6)
    layer = profile.layer("1")
    assert {"activation.rms", "gradient.rms", "gradient.mean_abs", "gradient.l2_norm", "gradient.max_abs"} <= set(
        layer.spread
    )


def test_draws_do_not_depend_on_the_weights_that_the_model_came_with() -> None:
    x = torch.randn(6, 4)
    profiles = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = mlp(4, 8, 2)
        torch.manual_seed(9)
        profiles.append(hw.measure(model, x, draws=3).parameters)
    assert profiles[0] == profiles[1]


def test_draws_leave_the_random_state_alone_and_differ_among_each_other() -> None:
    model, x = mlp(4, 8, 2), torch.randn(6, 4)
    state = torch.get_rng_state()
    profile = hw.measure(model, x, draws=4)
    assert torch.equal(state, torch.get_rng_state())
    assert profile.parameter("0.weight").spread["gradient.rms"].std > 0


def test_draws_reset_normalisation_embeddings_recurrent_layers_and_attention() -> None:
    for name in ("lstm", "resnet-inplace", "transformer-pre-ln", "gru-packed"):
        case = models.case(name)
        model, inputs, targets = case.make()
        profile = hw.measure(model, inputs, targets, case.loss_fn, draws=2)
        assert profile.coverage.observed == profile.coverage.trainable
        assert all(p.spread["gradient.rms"].count == 2 for p in profile.parameters if p.state == "finite")


def test_draws_refuse_a_module_that_cannot_be_reset_and_name_it() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    with pytest.raises(InputError, match=r"2 \(Scale\).*measure\(draws=1\)|2 \(Scale\)"):
        hw.measure(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Scale()), torch.randn(2, 4), draws=3)


def test_a_loss_with_a_model_of_its_own_is_not_redrawn() -> None:
    # loss=callable(model): the callable must be given the re-initialised copy, not the user's model.
    model, x = mlp(4, 8, 2), torch.randn(6, 4)
    seen: list[int] = []

    def loss(m: nn.Module) -> Tensor:
        seen.append(id(m))
        return m(x).square().mean()

    profile = hw.measure(model, loss=loss, draws=3)
    assert len(seen) == 3
    assert id(model) not in seen
    assert profile.parameter("0.weight").spread["gradient.rms"].std > 0
