"""The second verb on live models: laws of the verdict, the look at a copy, and the arguments."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import mlp
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


def test_data_that_holds_nan_is_the_cause_when_it_spreads() -> None:
    inputs = torch.randn(8, 4)
    inputs[2, 1] = math.nan
    diagnosis = hw.diagnose(nn.Linear(4, 1), inputs, loss_fn=lambda out: out.square().mean())
    assert diagnosis.verdict is hw.Verdict.NAN
    assert diagnosis.root is not None
    assert "inputs holds 1 NaN" in diagnosis.root.cause


def test_data_that_holds_nan_is_no_fault_of_a_model_that_fills_it_in() -> None:
    class Imputing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.default, self.fc = nn.Parameter(torch.zeros(4)), nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.where(x.isnan(), self.default, x))

    inputs = torch.randn(8, 4)
    inputs[2, 1] = math.nan
    assert hw.diagnose(Imputing(), inputs, loss_fn=lambda out: out.square().mean()).ok
