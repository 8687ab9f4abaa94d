"""What diagnose says of an optimizer's steps, and that it leaves model, optimizer and random states alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import he_relu_mlp, mlp
from tests.unit.detectors.planted import (
    HEALTHY,
    Healthy,
)
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw

# -------------------------------------------------------------------- the user's optimizer

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
}


def _trained(name: str, steps: int) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    """A model a few steps into its training, so that the optimizer has a state."""
    torch.manual_seed(5)
    model, x, y = he_relu_mlp(3, 16), torch.randn(16, 8), torch.randn(16, 1)
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(steps):
        _real_step(model, optimizer, x, y)
    return model, optimizer, x, y


def _real_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_ratios_are_those_of_a_real_step(name: str, steps: int) -> None:
    model, optimizer, x, y = _trained(name, steps)
    look = hw.diagnose(model, x, y, F.mse_loss, optimizer=optimizer).profile.second_look
    assert look is not None
    assert look.optimizer == name
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    _real_step(model, optimizer, x, y)
    updates = {u.name: u for u in look.updates}
    assert set(updates) == set(before)
    for parameter_name, parameter in model.named_parameters():
        old, gradient = before[parameter_name], parameter.grad
        assert gradient is not None
        moved, size = (parameter.detach() - old).norm(), old.norm()
        ratio = updates[parameter_name].update_ratio
        if size == 0:
            assert ratio is None
        else:
            assert ratio == pytest.approx(float(moved / size), rel=1e-5)
        assert updates[parameter_name].gradient_rms == pytest.approx(float(gradient.square().mean().sqrt()), rel=1e-5)


def _bits(value: Any) -> Any:
    """Anything with tensors in it, as something that compares bit for bit."""
    if isinstance(value, Tensor):
        return value.detach().clone().contiguous().view(-1).view(torch.uint8).tolist(), value.requires_grad
    if isinstance(value, dict):
        return {k: _bits(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_bits(v) for v in value]
    return value


def _everything(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Any:
    return (
        {n: _bits(v) for n, v in model.state_dict(keep_vars=True).items()},
        {n: None if p.grad is None else _bits(p.grad) for n, p in model.named_parameters()},
        [(n, m.training, sorted(m.__dict__)) for n, m in model.named_modules()],
        None if optimizer is None else _bits(optimizer.state_dict()),
        _bits(torch.get_rng_state()),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_model_optimizer_and_random_states_are_left_bit_for_bit(name: str) -> None:
    model, optimizer, x, y = _trained(name, 2)
    before, kept = _everything(model, optimizer), [p.grad for p in model.parameters()]
    hw.diagnose(model, x, y, F.mse_loss, optimizer=optimizer)
    assert _everything(model, optimizer) == before
    assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))


@pytest.mark.parametrize("case", [c for c in HEALTHY if c.name in ("resnet with zero gamma", "rezero")], ids=str)
def test_the_look_at_a_copy_leaves_the_model_its_buffers_and_the_random_state(case: Healthy) -> None:
    task = case.make()
    task.model.append(nn.Dropout(0.5)) if isinstance(task.model, nn.Sequential) else None
    before = _everything(task.model, None)
    assert task.diagnose().profile.second_look is not None
    assert _everything(task.model, None) == before


def test_training_with_a_diagnosis_before_each_step_is_training_without() -> None:
    results = []
    for diagnosing in (False, True):
        torch.manual_seed(8)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        nn.init.zeros_(model[-1].weight)  # exact zeros below: a copy is looked at
        optimizer, x, y = torch.optim.Adam(model.parameters()), torch.randn(8, 6), torch.randn(8, 2)
        for _ in range(4):
            if diagnosing:
                hw.diagnose(model, x, y, F.mse_loss, optimizer=optimizer)
            _real_step(model, optimizer, x, y)
        results.append(_everything(model, optimizer))
    assert results[0] == results[1]


def _adam_ratios(scale: float, eps: float) -> tuple[dict[str, float], list[str]]:
    torch.manual_seed(6)
    model, x, y = he_relu_mlp(3, 16), torch.randn(16, 8), torch.randn(16, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=eps)
    result = hw.diagnose(model, x, y, lambda out, t: scale * F.mse_loss(out, t), optimizer=optimizer)
    assert result.ok
    assert result.profile.second_look is not None
    ratios = {u.name: u.update_ratio for u in result.profile.second_look.updates if u.update_ratio is not None}
    return ratios, [f.defect for f in result.findings]


def test_adams_ratio_does_not_depend_on_the_scale_of_the_loss_above_its_eps() -> None:
    plain, scaled = _adam_ratios(1.0, 1e-16), _adam_ratios(1e-6, 1e-16)
    assert scaled[0] == pytest.approx(plain[0], rel=1e-4)
    assert plain[1] == scaled[1] == []


def test_eps_that_sets_the_step_is_flagged_and_where() -> None:
    # Gradients are of rms 0.17 in the first layer and 1.7 in the head: times 1e-8, the first lie below eps = 1e-8 and
    # the head above it. One step of Adam is lr·g/(|g| + eps): at g = 0.17 eps, 0.15 of what it is at g ≫ eps.
    (plain, nothing), (scaled, flagged) = _adam_ratios(1.0, 1e-8), _adam_ratios(1e-8, 1e-8)
    assert nothing == []
    assert flagged == ["eps dominates the step"]
    # rms over elements of very different |g|: between the 0.15 of a typical one and 1
    assert 0.1 < scaled["0.weight"] / plain["0.weight"] < 0.2
    assert 0.4 < scaled["6.weight"] / plain["6.weight"] < 0.7


def test_sgds_ratio_is_proportional_to_the_scale_of_the_loss() -> None:
    def ratios(scale: float) -> dict[str, float]:
        torch.manual_seed(6)
        model = he_relu_mlp(3, 16)
        look = hw.diagnose(
            model, torch.randn(16, 8), torch.randn(16, 1), lambda out, t: scale * F.mse_loss(out, t),
            optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        ).profile.second_look  # fmt: skip
        assert look is not None
        return {u.name: u.update_ratio for u in look.updates if u.update_ratio is not None}

    plain, scaled = ratios(1.0), ratios(1e2)
    assert scaled == pytest.approx({n: 1e2 * r for n, r in plain.items()}, rel=1e-3)


def test_parameters_the_optimizer_does_not_know_are_named() -> None:
    model = mlp(8, 16, 16, 1)
    model[2].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.01)
    result = hw.diagnose(model, torch.randn(16, 8), torch.randn(16, 1), F.mse_loss, optimizer=optimizer)
    found = {f.defect: f.where for f in result.findings}
    assert found["parameters in no optimizer group"] == ("4.weight", "4.bias")
    assert found["frozen parameters in the optimizer"] == ("2.bias",)
