from __future__ import annotations

from typing import Any

import torch
from torch import nn

from headwater.capture.training.loss_scale import ScaledSteps, current_scale


class Listener:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def scaled_step_begins(self, scaler: Any, optimizer: Any) -> None:
        self.heard.append("begins")

    def scaled_step_ends(self, scaler: Any, optimizer: Any) -> None:
        self.heard.append("ends")


def scaled_step(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    scaler.step(optimizer)


def test_only_the_listener_of_this_optimizer_hears_and_the_original_comes_back() -> None:
    original = torch.amp.GradScaler.step
    model = nn.Linear(2, 1)
    watched, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    first, second = Listener(), Listener()
    ScaledSteps.listen(watched, first)
    ScaledSteps.listen(other, second)
    scaled_step(watched, model)
    assert (first.heard, second.heard) == (["begins", "ends"], [])
    ScaledSteps.forget(watched, id(watched))
    assert torch.amp.GradScaler.step is not original
    ScaledSteps.forget(other, id(other))
    assert torch.amp.GradScaler.step is original


def test_a_method_that_somebody_else_put_over_it_is_left_alone(monkeypatch: Any) -> None:
    original = torch.amp.GradScaler.step
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    listener = Listener()
    ScaledSteps.listen(optimizer, listener)
    ours = torch.amp.GradScaler.step
    theirs = lambda self, *a, **k: ours(self, *a, **k)  # noqa: E731
    torch.amp.GradScaler.step = theirs  # type: ignore[method-assign, assignment]
    try:
        ScaledSteps.forget(optimizer, id(optimizer))
        assert torch.amp.GradScaler.step is theirs
        scaled_step(optimizer, model)
        assert listener.heard == []
        ScaledSteps.listen(optimizer, listener)
        torch.amp.GradScaler.step = ours  # type: ignore[method-assign]
        ScaledSteps.forget(optimizer, id(optimizer))
        assert torch.amp.GradScaler.step is original
    finally:
        torch.amp.GradScaler.step = original  # type: ignore[method-assign]


def test_the_scale_is_that_of_the_scaler_and_one_when_it_is_off() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    assert current_scale(scaler) == 128.0
    scaler.scale(torch.ones(()))
    assert current_scale(scaler) == 128.0
    assert current_scale(torch.amp.GradScaler("cpu", enabled=False)) == 1.0
