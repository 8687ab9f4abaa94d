"""A recurrence written as a Python loop: the weight it uses again and again shows the gradient over time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import headwater as hw

STEPS = 24


class TutorialRNN(nn.Module):
    """The loop of the character-RNN tutorials: two Linears, one of them over the hidden state."""

    def __init__(self, width: int = 16, every_step: bool = False) -> None:
        super().__init__()
        self.i2h, self.h2h, self.out = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2)
        self.every_step = every_step
        self.projected: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.h2h.in_features)
        self.projected = []
        outputs = []
        for t in range(x.shape[1]):
            recurrent = self.h2h(h)
            if recurrent.requires_grad:
                recurrent.retain_grad()
            self.projected.append(recurrent)
            h = torch.tanh(self.i2h(x[:, t]) + recurrent)
            outputs.append(self.out(h))
        return torch.stack(outputs, 1) if self.every_step else outputs[-1]


class RawLoop(nn.Module):
    """h ← a·h + x, with a plain parameter matrix."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.transition = nn.Parameter(factor * torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 4)
        for t in range(x.shape[1]):
            h = h @ self.transition + x[:, t]
        return h


def _loss(out: Tensor) -> Tensor:
    return out.square().mean()


def test_the_gradient_over_time_of_a_loop_is_that_of_each_use() -> None:
    torch.manual_seed(0)
    model, x = TutorialRNN(), torch.randn(5, STEPS, 3)
    series = hw.measure(model, x, loss_fn=_loss).through_time("h2h")
    _loss(model(x)).backward()
    expected = [t.grad.square().mean().sqrt().item() for t in model.projected if t.grad is not None]
    assert len(expected) == STEPS
    assert series == pytest.approx(expected, rel=1e-5)


def test_a_loop_that_forgets_is_vanishing_in_time_at_its_weight() -> None:
    torch.manual_seed(0)
    model = TutorialRNN()
    nn.init.normal_(model.h2h.weight, std=0.05)
    diagnosis = hw.diagnose(model, torch.randn(5, STEPS, 3), loss_fn=_loss)
    assert diagnosis.verdict is hw.Verdict.VANISHING_IN_TIME
    assert diagnosis.root is not None
    assert diagnosis.root.where == ("h2h",)


def test_a_loop_over_a_plain_parameter_is_named_after_it() -> None:
    # ∂L/∂h grows by exactly 1.5 per step towards the first.
    profile = hw.measure(RawLoop(1.5), torch.randn(5, STEPS, 4), loss_fn=_loss)
    series = profile.through_time("transition")
    # The first use multiplies the zero state: no gradient is asked for below it.
    growth = [math.log(a / b) for a, b in itertools.pairwise(series)]
    assert growth == pytest.approx([math.log(1.5)] * len(growth), rel=1e-5)
    assert hw.diagnose(RawLoop(1.5), torch.randn(5, STEPS, 4), loss_fn=_loss).verdict is hw.Verdict.EXPLODING_IN_TIME


def test_a_loss_at_every_step_leaves_no_single_path_through_time() -> None:
    profile = hw.measure(TutorialRNN(every_step=True), torch.randn(5, STEPS, 3), loss_fn=_loss)
    assert profile.times == ()


def test_a_layer_applied_side_by_side_is_no_loop() -> None:
    class SideBySide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.stack([torch.relu(self.shared(x[:, t])) for t in range(x.shape[1])]).mean(0))

    assert hw.measure(SideBySide(), torch.randn(5, STEPS, 3), loss_fn=_loss).times == ()
