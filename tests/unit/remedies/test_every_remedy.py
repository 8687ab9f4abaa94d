"""Promises that every built-in remedy keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.unit.remedies import patients
from tests.unit.remedies.patients import FOR, Sick
from torch import nn

import headwater as hw
from headwater.records.remedy import run_code
from headwater.remedies import DEFAULT_REMEDIES, NotApplicable, Patient, Remedy, Treatment, examine

BY_CODE = {remedy.code: remedy for remedy in DEFAULT_REMEDIES}


def patient_of(sick: Sick, **options: object) -> Patient:
    diagnosis = hw.diagnose(sick.model, sick.x, sick.y, sick.loss_fn)
    return examine(sick.model, lambda m: sick.loss_fn(m(sick.x), sick.y), diagnosis, **options)


def treatment(code: str, sick: Sick) -> Treatment:
    planned = BY_CODE[code](patient_of(sick))
    assert isinstance(planned, Treatment), planned
    return planned


def state(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_every_remedy_has_a_network_here_that_it_is_for() -> None:
    assert set(FOR) == set(BY_CODE)


def test_codes_are_unique() -> None:
    assert len(BY_CODE) == len(DEFAULT_REMEDIES)


@pytest.mark.parametrize("code", FOR)
def test_a_plan_changes_nothing_and_its_code_does_the_same_every_time(code: str) -> None:
    sick = FOR[code]()
    before, names = state(sick.model), [n for n, _ in sick.model.named_modules()]
    plan = treatment(code, sick)
    assert [n for n, _ in sick.model.named_modules()] == names
    assert all(torch.equal(a, b) for a, b in zip(before, sick.model.parameters(), strict=True))
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    first, second = copy.deepcopy(sick.model), copy.deepcopy(sick.model)
    run_code(plan.code, first)
    assert torch.equal(torch.get_rng_state(), random_state), "the code left the global random state changed"
    torch.manual_seed(6)
    run_code(plan.code, second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert plan.changes
    assert plan.kind == "training" or _differs(first, sick)


def _differs(model: nn.Module, sick: Sick) -> bool:
    old = {n: p for n, p in sick.model.named_parameters()}
    new = dict(model.named_parameters())
    types = [type(m) for m in model.modules()] != [type(m) for m in sick.model.modules()]
    hooks = len(model._forward_pre_hooks) + len(model._forward_hooks) > 0
    return types or hooks or set(old) != set(new) or any(not torch.equal(old[n], new[n]) for n in new)


@pytest.mark.parametrize("code", FOR)
def test_the_output_keeps_its_shape(code: str) -> None:
    sick = FOR[code]()
    model = copy.deepcopy(sick.model)
    run_code(treatment(code, sick).code, model)
    assert model(sick.x).shape == sick.model(sick.x).shape


@pytest.mark.parametrize("code", FOR)
def test_a_treated_model_can_be_copied_and_saved(code: str) -> None:
    sick = FOR[code]()
    model = copy.deepcopy(sick.model)
    run_code(treatment(code, sick).code, model)
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(sick.x), model(sick.x))


@pytest.mark.parametrize("code", ["HR101", "HR102", "HR103", "HR104", "HR105", "HR902", "HR903", "HR404"])
def test_what_draws_weights_anew_does_not_where_they_are_to_be_kept(code: str) -> None:
    sick = FOR[code]()
    planned = BY_CODE[code](patient_of(sick, keep_weights=True, weights_note="asked for"))
    assert isinstance(planned, NotApplicable)
    assert "asked for" in planned.reason


@pytest.mark.parametrize("remedy", DEFAULT_REMEDIES, ids=lambda r: r.code)
def test_a_remedy_that_does_not_fit_says_why(remedy: Remedy) -> None:
    """A single linear layer without activation has nothing to repair; what applies anyway must still run."""
    torch.manual_seed(0)
    sick = Sick(nn.Linear(4, 1), torch.randn(8, 4), torch.randn(8, 1), nn.functional.mse_loss)
    planned = remedy(patient_of(sick))
    if isinstance(planned, NotApplicable):
        assert len(planned.reason) > 10
    else:
        run_code(planned.code, sick.model)


def test_a_gate_and_an_output_sigmoid_stay() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.gate, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
            self.hidden, self.gating, self.last = nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.hidden(self.value(x))
            h = h * self.gating(self.gate(h))
            return self.last(self.out(h))

    torch.manual_seed(0)
    sick = Sick(Gated(), torch.randn(16, 8), torch.rand(16, 1), nn.functional.mse_loss)
    plan = BY_CODE["HR201"](patient_of(sick))
    assert isinstance(plan, Treatment)
    assert plan.changes == ("hidden: Sigmoid becomes ReLU",)


def test_shared_and_frozen_weights_are_not_drawn() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)
    )
    model[4].weight = model[2].weight
    model[0].weight.requires_grad_(False)
    sick = Sick(model, torch.randn(8, 6), torch.randn(8, 2), nn.functional.mse_loss)
    plan = BY_CODE["HR103"](patient_of(sick))
    assert isinstance(plan, Treatment)
    assert [c.split(":")[0] for c in plan.changes] == ["6"]


def test_only_dead_units_are_restarted() -> None:
    sick = patients.dead()
    model = copy.deepcopy(sick.model)
    run_code(treatment("HR602", sick).code, model)
    # Bias -30 switches units 0 to 19 of the first layer off for inputs of size ~1; the others may be off by chance.
    off = (torch.relu(sick.model[0](sick.x)) == 0).all(0)
    assert bool(off[:20].all())
    assert not bool(off.all())
    changed = (model[0].weight != sick.model[0].weight).all(1)
    assert torch.equal(changed, off)
    assert torch.equal(model[0].bias[off], torch.zeros(int(off.sum())))
    assert torch.equal(model[0].bias[~off], sick.model[0].bias[~off])


def test_standardised_inputs_have_mean_0_and_deviation_1_inside_the_model() -> None:
    sick = patients.raw_inputs()
    model = copy.deepcopy(sick.model)
    run_code(treatment("HR701", sick).code, model)
    entered = []
    model[0].register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    model(sick.x)
    assert torch.allclose(entered[0].mean(0), torch.zeros(12), atol=1e-4)
    assert torch.allclose(entered[0].std(0), torch.ones(12), atol=1e-4)
    assert {"input_mean", "input_std"} <= set(model.state_dict())


def test_the_forget_bias_is_the_logarithm_of_the_length() -> None:
    sick = patients.forgetful_lstm()
    model = copy.deepcopy(sick.model)
    run_code(treatment("HR901", sick).code, model)
    # 120 steps: log 120 = 4.7875; gates are stacked input, forget, cell, output of 16 units each.
    assert torch.allclose(model.rnn.bias_ih_l0[16:32], torch.full((16,), 4.787), atol=1e-3)
    assert torch.equal(model.rnn.bias_hh_l0[16:32], torch.zeros(16))
    assert torch.equal(model.rnn.weight_hh_l0, sick.model.rnn.weight_hh_l0)


def test_orthogonal_recurrence_makes_every_gate_orthogonal() -> None:
    sick = patients.forgetful_lstm()
    model = copy.deepcopy(sick.model)
    plan = BY_CODE["HR902"](patient_of(sick))
    assert isinstance(plan, Treatment)
    run_code(plan.code, model)
    for gate in model.rnn.weight_hh_l0.split(16):
        assert torch.allclose(gate @ gate.T, torch.eye(16), atol=1e-5)


def test_a_shortcut_lets_the_gradient_pass_beside_the_block() -> None:
    sick = patients.squashing_blocks()
    model = copy.deepcopy(sick.model)
    run_code(treatment("HR401", sick).code, model)
    # x + f(x)/√16 in 16 blocks: with f = 0 the blocks are the identity.
    with torch.no_grad():
        for block in model[1:-1]:
            block.branch.fc.weight.zero_()
            block.branch.fc.bias.zero_()
    assert torch.allclose(model(sick.x), model[-1](model[0](sick.x)))


def test_straight_through_passes_the_gradient_and_keeps_the_value() -> None:
    sick = patients.rounding()
    model = copy.deepcopy(sick.model)
    run_code(treatment("HRB02", sick).code, model)
    assert torch.allclose(model(sick.x), sick.model(sick.x), atol=1e-5)
    model(sick.x).sum().backward()
    assert float(model.enc[0].weight.grad.abs().max()) > 0.0
    assert isinstance(model, patients.Rounding)


def test_a_guarded_root_has_a_finite_gradient_where_it_was_nan() -> None:
    sick = patients.zero_distance()
    model = copy.deepcopy(sick.model)
    run_code(treatment("HRB01", sick).code, model)
    model(sick.x).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_query_and_key_are_scaled_to_unit_logits() -> None:
    sick = patients.one_hot_attention()
    model = copy.deepcopy(sick.model)
    run_code(treatment("HR501", sick).code, model)
    entered = []
    model.softmax.register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    model(sick.x)
    assert float(entered[0].detach().std()) == pytest.approx(1.0, rel=1e-3)
    assert torch.equal(model.v.weight, sick.model.v.weight)


def test_clipping_takes_its_threshold_from_the_measured_norm() -> None:
    sick = patients.residual()
    plan = treatment("HRA01", sick)
    model = copy.deepcopy(sick.model)
    sick.loss_fn(model(sick.x), sick.y).backward()
    run_code(plan.code, model)["before_step"](model, None)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()]))
    assert float(norm) <= 1.0 + 1e-5


def test_loss_scaling_gives_the_same_gradient_back() -> None:
    sick = patients.half_precision()
    functions = run_code(treatment("HRA02", sick).code, sick.model)
    scale = functions["loss_scale"]
    assert scale >= 2.0
    assert scale == 2.0 ** round(torch.log2(torch.tensor(scale)).item())
    functions["scale_loss"](sick.loss_fn(sick.model(sick.x), sick.y)).backward()
    scaled = sick.model[4].weight.grad.float().abs().max()
    functions["before_step"](sick.model, None)
    assert float(sick.model[4].weight.grad.float().abs().max()) == pytest.approx(
        float(scaled) / scale, rel=0.2, abs=1e-7
    )
