"""The second verb on live models: laws of the verdict, the look at a copy, the optimizer, and what stays untouched."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import he_relu_mlp, mlp
from tests.unit.detectors.planted import (
    FAULTS,
    HEALTHY,
    DetachedBranch,
    Healthy,
    Planted,
    Rezero,
    Task,
    dead_lora,
    exploding,
    saturated,
    vanishing,
)
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater.errors import InputError
from headwater.records import Evidence, Finding, Profile, Severity

V = hw.Verdict
# Underflow and update sizes do depend on the scale of the loss: that is what they are about.
SCALE_BOUND = {"HW303", "HW501"}
CASES = [c for c in (*FAULTS, *HEALTHY) if getattr(c, "code", "") not in SCALE_BOUND]


def _said(result: hw.Diagnosis) -> dict[tuple[str, str], tuple[Any, ...]]:
    """What the scale-free findings say of severity and place.

    Exact zeros that another finding explains are left out: a sum of rounding errors is zero or not by chance.
    """
    return {
        (f.code, f.defect): (f.severity, f.verdict, f.where, f.symptom_of)
        for f in result.findings
        if f.code not in SCALE_BOUND and not (f.code == "HW302" and f.symptom_of)
    }


# -------------------------------------------------------------------- the loss rescaled


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_scale_of_the_loss_changes_no_verdict_and_no_finding(case: Planted | Healthy) -> None:
    task = case.make()
    plain = task.diagnose()
    for scale in (1e-6, 1e6):
        scaled = task.diagnose(scale)
        assert scaled.verdict is plain.verdict
        assert _said(scaled) == _said(plain)


@given(st.floats(-12.0, 12.0), st.sampled_from([vanishing, exploding, saturated]))
@settings(max_examples=20, deadline=None)
def test_any_scale_gives_the_same_numbers(log10_scale: float, build: Callable[[], Task]) -> None:
    torch.manual_seed(3)
    task = build()
    plain, scaled = task.diagnose(), task.diagnose(10.0**log10_scale)
    assert scaled.verdict is plain.verdict
    assert _said(scaled) == _said(plain)
    for a, b in zip(plain.findings, scaled.findings, strict=True):
        # float32 rounds each operation to 6e-8; a rounding per layer and a subtraction of logarithms leave 1e-4
        assert [e.value for e in b.evidence] == pytest.approx([e.value for e in a.evidence], rel=1e-4, abs=1e-4)


# -------------------------------------------------------------------- the units permuted


def _permuted(model: nn.Sequential, seed: int) -> nn.Sequential:
    """The same function: the hidden units of every layer in another order."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    linears = [m for m in model if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for below, above in itertools.pairwise(linears):
            order = torch.randperm(below.out_features, generator=generator)
            below.weight.copy_(below.weight[order])
            below.bias.copy_(below.bias[order])
            above.weight.copy_(above.weight[:, order])
    return model


@pytest.mark.parametrize("name", [
    "deep sigmoid", "weights three times He's", "ordered phase", "bias -10", "tanh of large weights",
    "constant weights", "he relu", "orthogonal tanh", "selu", "zero head",
])  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_permuting_hidden_units_changes_nothing(name: str, seed: int) -> None:
    task = next(c for c in (*FAULTS, *HEALTHY) if c.name == name).make()
    assert isinstance(task.model, nn.Sequential)
    permuted = Task(_permuted(task.model, seed), task.inputs, task.targets, task.loss_fn)
    assert torch.allclose(permuted.model(task.inputs), task.model(task.inputs), rtol=1e-3, atol=1e-4)
    plain, other = task.diagnose(), permuted.diagnose()
    assert other.verdict is plain.verdict
    assert _said(other) == _said(plain)
    assert other.budget.total_decades == pytest.approx(plain.budget.total_decades, abs=1e-3)


# -------------------------------------------------------------------- zeros: transient, unused, cut off, dead


@pytest.mark.parametrize("name", ["rezero", "resnet with zero gamma", "fixup", "zero head", "lora"])
def test_zeros_that_a_few_steps_open_are_information(name: str) -> None:
    result = next(c for c in HEALTHY if c.name == name).make().diagnose()
    (finding,) = result.findings
    assert (finding.code, finding.defect, finding.severity) == ("HW302", "zero gradient for now", Severity.INFO)
    assert result.ok
    assert "3 steps on a copy" in finding.cause
    zero = {q.name for q in result.profile.parameters if q.state == "exact_zero"}
    assert set(finding.where) == zero
    assert zero


def test_lora_with_both_factors_zero_is_dead() -> None:
    result = dead_lora().diagnose()
    assert result.verdict is V.ZERO_GRADIENT
    assert result.root is not None
    assert set(result.root.where) == {"a.weight", "b.weight"}
    assert "after 3 steps on a copy" in result.root.cause


def test_a_detached_branch_is_named_and_its_mechanism_too() -> None:
    result = next(c for c in FAULTS if c.name == "detached branch").make().diagnose()
    assert result.root is not None
    assert set(result.root.where) == {"lost.weight", "lost.bias"}
    assert "moves the loss when its value is changed, and its gradient is None" in result.root.cause
    assert "detach" in result.root.cause


def test_an_unused_head_is_information() -> None:
    result = next(c for c in HEALTHY if c.name == "unused head").make().diagnose()
    (finding,) = result.findings
    assert (finding.defect, finding.severity) == ("unused parameters", Severity.INFO)
    assert set(finding.where) == {"second.weight", "second.bias"}


def test_twins_that_a_step_parts_are_not_symmetric() -> None:
    class Parted(nn.Module):
        """Two equal units; dropout-free noise of their own makes their gradients differ from the next step on."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)
            self.head = nn.Linear(8, 1)  # different weights above: different gradients below

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.fc(x)))

    result = hw.diagnose(Parted(), torch.randn(16, 8), torch.randn(16, 1), F.mse_loss)
    assert "HW203" not in {f.code for f in result.findings}
    assert result.ok


# -------------------------------------------------------------------- when a copy is looked at


def test_no_copy_is_made_where_one_backward_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater._diagnose.look_again", lambda *a, **k: pytest.fail("looked again"))
    for name in ("he relu", "resnet", "pre-LN transformer", "selu"):
        result = next(c for c in HEALTHY if c.name == name).make().diagnose()
        assert result.profile.second_look is None


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_copy_takes_the_steps_asked_for(steps: int) -> None:
    result = hw.diagnose(Rezero(), torch.randn(8, 8), torch.arange(8) % 5, F.cross_entropy, steps=steps)
    assert result.profile.second_look is not None
    assert result.profile.second_look.steps == steps
    assert result.ok


def test_a_model_that_cannot_be_copied_leaves_it_undecided() -> None:
    model = Rezero()
    model.remembered = model.stem(torch.randn(2, 8))  # a non-leaf tensor: deepcopy refuses it
    result = hw.diagnose(model, torch.randn(8, 8), torch.arange(8) % 5, F.cross_entropy)
    assert result.ok  # exact zeros are a warning as long as nobody knows
    assert [f.severity for f in result.findings if f.code == "HW302"] == [Severity.WARNING]
    (note,) = result.undecided
    assert "cannot be copied" in note
    assert "may be transient" in note


def test_a_loss_that_ignores_the_model_it_is_given_leaves_it_undecided() -> None:
    model, x = DetachedBranch(), torch.randn(8, 8)
    result = hw.diagnose(model, loss=lambda _: model(x).square().mean())
    (note,) = result.undecided
    assert "loss() should use the model it is given" in note


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


# -------------------------------------------------------------------- arguments


def test_a_saved_profile_takes_no_other_argument() -> None:
    task = HEALTHY[1].make()
    profile = hw.measure(task.model, task.inputs, task.targets, task.loss_fn)
    assert hw.diagnose(profile).ok
    with pytest.raises(InputError, match="pass it alone"):
        hw.diagnose(profile, task.inputs)
    with pytest.raises(InputError, match="pass it alone"):
        hw.diagnose(profile, optimizer=torch.optim.SGD(task.model.parameters(), lr=1.0))


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "3"])
def test_steps_must_be_a_positive_integer(steps: Any) -> None:
    with pytest.raises(InputError, match="steps should be a positive integer"):
        hw.diagnose(mlp(4, 2), torch.randn(3, 4), steps=steps)


def test_optimizer_must_be_one() -> None:
    with pytest.raises(InputError, match=r"torch\.optim\.Optimizer, got type"):
        hw.diagnose(mlp(4, 2), torch.randn(3, 4), optimizer=torch.optim.SGD)  # type: ignore[arg-type]


def test_the_detectors_asked_for_are_the_ones_that_run() -> None:
    class Counts:
        code = "HW900"

        def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
            yield Finding(
                code=self.code, defect="layers", severity=Severity.INFO, cause="c.", advice="a.",
                evidence=(Evidence("layers", len(profile.layers)),),
            )  # fmt: skip

    task = FAULTS[0].make()
    result = task.diagnose(detectors=[Counts()])
    assert [f.code for f in result.findings] == ["HW900"]
    assert result.ok
    assert task.diagnose(detectors=[]).findings == ()


def test_draws_are_passed_on_and_the_verdict_is_over_all_of_them() -> None:
    torch.manual_seed(1)
    result = hw.diagnose(mlp(8, *[16] * 10, 1, activation=nn.Sigmoid), torch.randn(8, 8), draws=5)
    assert result.profile.draws == 5
    assert result.verdict is V.VANISHING
