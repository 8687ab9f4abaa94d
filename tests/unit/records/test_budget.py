"""The gradient budget: its parts sum to the whole, and they are what autograd gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from tests.models import Recurrent, ResNet, Transformer, mlp
from tests.profiles import deep_sigmoid, layer, profile, statistics, troubled
from torch import nn
from torch.nn import functional as F

import headwater as hw
from headwater.records import Profile, gradient_budget


def _token_loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), targets.flatten())


def _tokens() -> torch.Tensor:
    return torch.randint(0, 20, (4, 6))


NETWORKS: dict[str, Callable[[], Profile]] = {
    "mlp": lambda: hw.measure(mlp(8, 16, 16, 4, activation=nn.Tanh), torch.randn(8, 8), torch.randn(8, 4), F.mse_loss),
    "resnet": lambda: hw.measure(ResNet(), torch.randn(4, 3, 6, 6), torch.arange(4), F.cross_entropy),
    "pre-LN transformer": lambda: hw.measure(Transformer(), _tokens(), _tokens(), _token_loss),
    "post-LN transformer": lambda: hw.measure(Transformer(norm_first=False), _tokens(), _tokens(), _token_loss),
    "lstm": lambda: hw.measure(Recurrent(), _tokens(), torch.arange(4) % 3, F.cross_entropy),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_sum_to_the_whole(name: str) -> None:
    measured = NETWORKS[name]()
    budget = gradient_budget(measured)
    points = [p for p in measured.trunk if p.gradient is not None]
    first, last = points[0].gradient, points[-1].gradient
    assert first is not None
    assert last is not None
    # The whole, without any part: the two ends alone.
    whole = first.rms_log10 - last.rms_log10
    assert len(budget.steps) == len(points) - 1 > 2
    assert math.fsum(s.decades for s in budget.steps) == pytest.approx(whole, abs=1e-6)
    assert budget.total_decades == pytest.approx(whole, abs=1e-6)
    assert math.fsum(budget.by_kind().values()) == pytest.approx(whole, abs=1e-6)
    norms = math.log10(first.l2_norm) - math.log10(last.l2_norm)
    assert math.fsum(s.norm_decades for s in budget.steps) == pytest.approx(norms, abs=1e-6)
    assert budget.cut_at is None


def test_each_step_of_an_mlp_is_what_autograd_says() -> None:
    model, x, y = mlp(8, 16, 16, 4, activation=nn.Tanh).double(), torch.randn(8, 8).double(), torch.randn(8, 4).double()
    tensors, h = [], x
    for module in model:
        h = module(h)
        h.retain_grad()
        tensors.append(h)
    F.mse_loss(h, y).backward()
    rms = [math.log10(t.grad.square().mean().sqrt()) for t in tensors if t.grad is not None]
    steps = gradient_budget(hw.measure(model, x, y, F.mse_loss)).steps
    # From the loss, whose own gradient is 1: through it to the output of 4, through 4 to that of 3, and so on.
    assert [s.name for s in steps] == ["loss", "4", "3", "2", "1"]
    assert [s.kind for s in steps] == ["loss", "weights", "activation", "weights", "activation"]
    expected = [lower - upper for lower, upper in itertools.pairwise([*rms, 0.0])][::-1]
    assert [s.decades for s in steps] == pytest.approx(expected, abs=1e-9)


def test_a_change_of_width_alone_moves_the_rms_and_not_the_norm() -> None:
    # 4 elements of 1 become 16 elements of 1/2: the norm is 2 both times, the rms falls by log10 2.
    rows = [
        layer("wide", "Linear", 0, 1.0, statistics(0.5, 16)),
        layer("narrow", "Linear", 1, 1.0, statistics(1.0, 4)),
    ]
    (step,) = gradient_budget(profile(rows)).steps
    assert step.decades == pytest.approx(-math.log10(2))
    assert step.norm_decades == pytest.approx(0.0, abs=1e-12)


def test_a_known_fall_gives_known_parts() -> None:
    # deep_sigmoid: -0.845 per layer in all, of which the sigmoid takes -0.6 and the weights the rest, 20 times.
    budget = gradient_budget(deep_sigmoid(20, -0.845))
    parts = budget.by_kind()
    assert parts["activation"] == pytest.approx(20 * -0.6)
    assert parts["weights"] == pytest.approx(20 * -0.245)
    assert budget.total_decades == pytest.approx(20 * -0.845)
    assert list(parts) == ["activation", "weights"]  # largest first
    assert "-16.90 decades" in budget.sentence()


def test_the_account_ends_where_the_gradient_is_lost() -> None:
    budget = gradient_budget(troubled())
    # From the head: squash has a gradient, gone is NaN.
    assert budget.cut_at == "gone"
    assert [s.name for s in budget.steps] == ["head"]
    assert math.isfinite(budget.total_decades)


def test_no_trunk_gives_no_steps() -> None:
    budget = gradient_budget(profile([], []))
    assert budget.steps == ()
    assert budget.total_decades == 0.0
    assert budget.by_kind() == {}
    assert budget.sentence() == "No gradient travels along the trunk."


@pytest.mark.parametrize("name", NETWORKS)
def test_a_weight_gradient_is_activation_and_gradient_and_alignment(name: str) -> None:
    measured = NETWORKS[name]()
    shares = gradient_budget(measured).weights
    assert shares
    for share in shares:
        row = measured.parameter(share.name)
        assert row.gradient is not None
        assert share.weight_gradient_log10 == pytest.approx(row.gradient.rms_log10, abs=1e-9)
        total = share.activation_log10 + share.gradient_log10 + share.alignment_log10
        assert total == pytest.approx(share.weight_gradient_log10, abs=1e-9)


def test_the_alignment_of_one_sample_is_zero_and_of_equal_samples_log10_of_their_number() -> None:
    # One sample: ∂W = δ aᵀ, whose rms is rms(δ)·rms(a) exactly. N equal samples: N times that.
    model, one = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(1, 6)
    for batch in (1, 10):
        measured = hw.measure(model, one.expand(batch, 6).contiguous(), loss_fn=lambda out: out.square().sum())
        for share in gradient_budget(measured).weights:
            assert share.alignment_log10 == pytest.approx(math.log10(batch), abs=1e-5)
