"""Trouble is named at its first producer, before the optimizer applies it, once, and told from harmless: R3, R6, R18, R19, R24."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.needs.kit import ALWAYS, Poison, loss_of, mlp, norm, sgd, train
from torch import Tensor, nn

import headwater as hw
from headwater.detectors.over_time import DEFAULT_ALERTS, with_actions
from headwater.errors import UnhealthyError


def said(findings: Any) -> list[str]:
    return [str(f) for f in findings]


# ---- R3: the first producer -----------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A linear layer with tanh that spoils its own backward, or its own output, when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.fault = ""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.fc(x))
        if self.fault == "backward":
            y = Poison.apply(y)
        if self.fault == "forward":
            y = y.clone()
            y[0, 0] = math.nan
        return y


class Twelve(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def spoil(k: int, fault: str, at: int, clip: bool, **options: Any) -> Any:
    model = Twelve()
    optimizer = sgd(model, lr=0.01)
    w = hw.watch(model, optimizer, **{**ALWAYS, **options})
    with w:
        for i in range(at + 1):
            layer: Any = model.layers[k]
            layer.fault = fault if i == at else ""
            optimizer.zero_grad()
            model(torch.ones(4, 8) * (i + 1)).square().mean().backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return w


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("fault", ["backward", "forward"])
@pytest.mark.parametrize("k", [0, 4, 11])
def test_the_layer_that_made_the_first_nan_is_named(k: int, fault: str, clip: bool) -> None:
    # Step 4 is one of those at which layers are looked at.
    w = spoil(k, fault, 4, clip)
    found = [f for f in w.findings if f.code == "HW301" or "NaN" in f.cause]
    assert found, said(w.findings)
    assert found[0].step == 4
    assert f"layers.{k}" in found[0].cause, found[0].cause
    others = [j for j in range(12) if j != k and f"layers.{j}." in found[0].cause + " "]
    assert len(others) <= 1, found[0].cause


@pytest.mark.parametrize("at", [4, 5])
def test_the_layers_that_a_bad_gradient_reached_are_listed_as_reached(at: int) -> None:
    # The fault sits at the output of layer 5: the gradients of layers 0 to 5 are NaN, those of 6 to 11 are not.
    w = spoil(5, "backward", at, clip=False)
    found = next(f for f in w.findings if "NaN" in f.cause)
    named = " ".join(found.where)
    assert all(f"layers.{j}" in named for j in range(6)), found
    assert not any(f"layers.{j}" in named for j in range(6, 12)), found


def test_clipping_changes_nothing_in_what_is_said_about_a_bad_gradient() -> None:
    plain = next(f for f in spoil(5, "backward", 4, clip=False).findings if "NaN" in f.cause)
    clipped = next(f for f in spoil(5, "backward", 4, clip=True).findings if "NaN" in f.cause)
    assert plain.where == clipped.where
    assert plain.cause == clipped.cause


class InADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.second = Both()
        self.third = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.first(x))
        return self.third(out["hidden"][0])


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.bad = False

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.fc(x)
        return {"other": None, "hidden": (y / 0.0 * 0.0 if self.bad else y,)}


def test_a_nan_in_a_dict_that_a_layer_returned_is_found_at_that_layer() -> None:
    model = InADict()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        for i in range(3):
            model.second.bad = i == 2
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()
    found = next(f for f in w.findings if "NaN" in f.cause)
    assert "second" in found.cause, found
    assert "third" not in found.cause.split("second")[0], found


def test_counts_of_nan_and_infinity_are_in_every_row(tmp_path: Path) -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", alerts=(), **ALWAYS):
        optimizer.zero_grad()
        # ∂/∂w_ij Σ_i c_i (Wx)_i = c_i x_j: row 0 is NaN, row 1 holds one infinity (x = [inf, 1, 1] would spoil both rows).
        model(torch.ones(1, 3)).sum().backward()
        assert model.weight.grad is not None
        model.weight.grad[0] = math.nan
        model.weight.grad[1, 0] = math.inf
        optimizer.step()
    run = hw.open_run(tmp_path / "a")
    # Written by hand after the backward: the gradient that the optimizer used.
    assert run.series("weight", "gradient.nan_count") == ((0, 3),)
    assert run.series("weight", "gradient.inf_count") == ((0, 1),)


# ---- R6: kinds of nothing -------------------------------------------------------------------------------------------


class LoRA(nn.Module):
    def __init__(self, dead: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(8, 8)
        self.base.requires_grad_(False)
        self.A = nn.Parameter(torch.zeros(2, 8) if dead else torch.randn(2, 8))
        self.B = nn.Parameter(torch.zeros(8, 2))
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.A.T @ self.B.T


def lora(dead: bool, path: Path, steps: int) -> tuple[Any, Any]:
    model = LoRA(dead)
    optimizer = torch.optim.SGD([model.A, model.B, model.spare, model.base.weight], lr=0.1)
    w = hw.watch(model, optimizer, run=path, **ALWAYS)
    with w:
        for i in range(steps):
            optimizer.zero_grad()
            x, _ = torch.randn(4, 8, generator=torch.Generator().manual_seed(i)), None
            F.mse_loss(model(x), x).backward()
            optimizer.step()
    return w, hw.open_run(path)


def test_a_lora_factor_that_is_zero_only_at_the_first_step_is_no_alarm(tmp_path: Path) -> None:
    w, run = lora(False, tmp_path / "a", 2)
    state = {n: run.profile(s).parameter(n).state for n, s in (("A", 0), ("B", 0))}
    assert state == {"A": "exact_zero", "B": "finite"}
    assert run.profile(1).parameter("A").state == "finite"
    critical = [f for f in w.findings if f.severity is hw.Severity.CRITICAL and "A" in f.where]
    assert not critical, said(critical)


def test_lora_factors_that_can_never_train_are_found_two_steps_after_the_first(tmp_path: Path) -> None:
    w, run = lora(True, tmp_path / "a", 3)
    assert {run.profile(1).parameter(n).state for n in "AB"} == {"exact_zero"}
    found = [f for f in w.findings if {"A", "B"} <= set(f.where)]
    assert found, said(w.findings)
    assert found[0].severity is not hw.Severity.INFO


def test_a_loss_that_is_zero_is_no_alarm() -> None:
    # A hinge that every sample has left behind: all gradients are exactly zero, and so is the loss.
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        for _ in range(6):
            optimizer.zero_grad()
            loss = F.relu(-model(torch.ones(4, 8)).square() - 1.0).mean()
            w.record(loss=loss)
            loss.backward()
            optimizer.step()
    assert not [f for f in w.findings if f.severity is hw.Severity.CRITICAL], said(w.findings)


def test_frozen_and_unused_parameters_are_told_apart(tmp_path: Path) -> None:
    _, run = lora(False, tmp_path / "a", 2)
    profile = run.profile(0)
    assert profile.parameter("base.weight").state == "frozen"
    assert profile.parameter("spare").state == "none"
    assert "spare" in profile.coverage.missing
    assert not run.series("spare", "gradient.rms")


def test_frozen_parameters_in_the_optimizer_and_trainable_ones_outside_are_both_listed(tmp_path: Path) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    w = hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS)
    with w:
        train(model, optimizer, 2)
    run = hw.open_run(tmp_path / "a")
    words = [(e.message, e.names) for e in run.events]
    assert any("4.weight" in names for m, names in words if "optimizer" in m), words
    assert any("0.weight" in names for m, names in words if "optimizer" in m), words


def test_an_underflow_is_not_an_exact_zero(tmp_path: Path) -> None:
    # fp16: a gradient of 1e-9 times anything is below the smallest subnormal 6e-8.
    model = nn.Linear(4, 4).half()
    optimizer = sgd(model, lr=0.1)
    with hw.watch(model, optimizer, run=tmp_path / "a", alerts=(), **ALWAYS):
        for _ in range(2):
            optimizer.zero_grad()
            (model(torch.ones(2, 4, dtype=torch.float16)) * 1e-7).sum().backward()
            optimizer.step()
    assert hw.open_run(tmp_path / "a").profile(1).parameter("weight").state in ("underflow", "exact_zero", "finite")


# ---- R18: policy -------------------------------------------------------------------------------------------------------


def stopping(patience: int, action: Any = "stop") -> tuple[Any, ...]:
    code = next(a.code for a in DEFAULT_ALERTS if type(a).__name__ == "NonFiniteStep")
    return with_actions(DEFAULT_ALERTS, {code: action}, patience=patience)


def finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def careful(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, bad: set[int]) -> int:
    """A loop that leaves out a bad step by itself, as many do; returns how many it went through."""
    for i in range(steps):
        optimizer.zero_grad()
        (loss_of(model, i) * (math.nan if i in bad else 1.0)).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        if all(bool(torch.isfinite(g).all()) for g in grads):
            optimizer.step()
    return i


def test_one_blip_does_not_stop_a_training_that_has_patience() -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, alerts=stopping(3), **ALWAYS)
    done = 0
    with w:
        done = careful(model, optimizer, 12, {5})
    assert done == 11
    assert not w.should_stop
    assert finite(model)


def test_trouble_that_goes_on_asks_to_stop_and_leaves_the_block_before_the_next_step_is_applied() -> None:
    # Steps 5 to 7 are bad and left out by the loop itself; the third of them asks to stop, and step 8 is not applied.
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, alerts=stopping(3), **ALWAYS)
    applied: list[int] = []
    with w:
        for i in range(40):
            optimizer.zero_grad()
            (loss_of(model, i) * (math.nan if 5 <= i < 8 else 1.0)).backward()
            if not 5 <= i < 8:
                optimizer.step()
                applied.append(i)
    assert w.should_stop, w.summary()
    assert applied[-1] <= 8
    assert finite(model)


def test_trouble_for_good_leaves_the_block_although_the_optimizer_never_steps_again() -> None:
    model = mlp()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    w = hw.watch(model, optimizer, alerts=stopping(1), **ALWAYS)
    reached = 0
    with w:
        for i in range(400):
            reached = i
            optimizer.zero_grad()
            scaler.scale(loss_of(model, i) * (math.nan if i > 5 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert w.should_stop
    assert reached < 399
    assert finite(model)


def test_a_loop_that_leaves_out_every_step_from_now_on_is_left() -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, alerts=stopping(3), **ALWAYS)
    reached = 0
    with w:
        for i in range(400):
            reached = i
            careful(model, optimizer, 1, {0} if i > 5 else set())
    assert w.should_stop
    assert reached < 399
    assert finite(model)
    train(model, optimizer, 2)


def test_a_scaler_that_skips_for_good_is_found_and_asks_to_stop() -> None:
    model = mlp()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    w = hw.watch(model, optimizer, alerts=stopping(1), **ALWAYS)
    with w:
        for i in range(40):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, i) * (math.nan if i > 5 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert w.should_stop
    assert any("skip" in f.defect for f in w.findings), said(w.findings)
    assert finite(model)


def test_without_patience_the_first_bad_step_stops_before_the_optimizer_applies_it() -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, alerts=stopping(1), **ALWAYS)
    reached = []
    with w:
        for i in range(10):
            reached.append(i)
            optimizer.zero_grad()
            (loss_of(model, i) * (math.nan if i == 6 else 1.0)).backward()
            optimizer.step()
    assert reached[-1] == 6
    assert w.should_stop
    assert finite(model)


def test_an_alert_that_raises_raises_with_its_findings_and_finite_weights() -> None:
    model = mlp()
    optimizer = sgd(model)

    def body() -> None:
        with hw.watch(model, optimizer, alerts=stopping(1, "raise"), **ALWAYS):
            train(model, optimizer, 3)
            train(model, optimizer, [3], factor=math.nan)

    with pytest.raises(UnhealthyError) as caught:
        body()
    assert caught.value.findings
    assert finite(model)


def test_a_callback_is_called_once_with_the_finding() -> None:
    model = mlp()
    optimizer = sgd(model)
    got: list[Any] = []
    with hw.watch(model, optimizer, alerts=stopping(1, got.append), **ALWAYS):
        train(model, optimizer, [0, 1])
        train(model, optimizer, range(2, 12), factor=math.nan)
    assert len(got) == 1
    assert got[0].step == 2


def test_the_default_never_stops_a_training() -> None:
    model = mlp()
    optimizer = sgd(model)
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        train(model, optimizer, 5, factor=math.nan)
    assert w.step == 5
    assert w.findings
    assert not w.should_stop


def test_the_warm_up_of_a_loss_scaler_is_no_alarm() -> None:
    # 2^120 times a gradient of about 0.1 … 1 is above the largest fp32 (2^128) only with a loss of 2^10: six halvings or so.
    model = mlp()
    optimizer = sgd(model, lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124)
    w = hw.watch(model, optimizer, alerts=stopping(1), **ALWAYS)
    with w:
        for i in range(20):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, i) * 1024.0).backward()
            scaler.step(optimizer)
            scaler.update()
    assert not w.should_stop
    assert not w.findings, said(w.findings)
    assert w.step == 20
    assert scaler.get_scale() < 2.0**124  # there were skips


def test_a_lasting_alarm_is_one_finding_however_warnings_are_filtered() -> None:
    counts = []
    for how in ("ignore", "always", "once"):
        model = mlp()
        optimizer = sgd(model)
        w = hw.watch(model, optimizer, **ALWAYS)
        with warnings.catch_warnings():
            warnings.simplefilter(how)  # type: ignore[arg-type]
            with w:
                train(model, optimizer, 3)
                train(model, optimizer, range(3, 60), factor=math.nan)
        counts.append([f.code for f in w.findings])
    assert counts[0] == counts[1] == counts[2]
    assert len(counts[0]) == len(set(counts[0]))


# ---- R19: spikes ------------------------------------------------------------------------------------------------------


class Many(nn.Module):
    """200 tensors, each with the gradient that the test wants."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(200)])

    def loss(self, i: int, factors: dict[int, float]) -> Tensor:
        # ∂/∂p_j = noise_j · factor_j for each of its four elements.
        slopes = torch.randn(200, generator=torch.Generator().manual_seed(i)).mul(0.1).add(1.0)
        for j, factor in factors.items():
            slopes[j] *= factor
        return (torch.stack(list(self.w)) * slopes[:, None]).sum()


def spiky(
    spikes: dict[int, int], steps: int, path: Path | None = None, resume_at: int | None = None, **options: Any
) -> Any:
    model = Many()
    optimizer = sgd(model, lr=1e-6)
    settings: dict[str, Any] = {**ALWAYS, "activations": None, **options}
    w = hw.watch(model, optimizer, run=path, **settings)
    found = []
    w.attach()
    for i in range(steps):
        if i == resume_at:
            w.detach()
            found = list(w.findings)
            state = w.state_dict()
            w = hw.watch(model, optimizer, run=path, **settings)
            w.load_state_dict(state)
            w.attach()
        optimizer.zero_grad()
        model.loss(i, {spikes[i]: 3000.0} if i in spikes else {}).backward()
        optimizer.step()
    w.detach()
    return w, found


def test_the_tensor_that_made_a_spike_is_named_first(tmp_path: Path) -> None:
    w, _ = spiky({60: 137}, 70, tmp_path / "a")
    found = [f for f in w.findings if f.step == 60]
    assert found, said(w.findings)
    assert "w.137" in (found[0].where[0] if found[0].where else found[0].cause)
    run = hw.open_run(tmp_path / "a")
    shares = run.top_contributors(60)
    assert shares[0][0] == "w.137"
    assert sum(s for _, s in shares) == pytest.approx(1.0)
    # 4 elements each: the spike has (3000·c)²·4 of it, the other 199 about c²·4 each: 1 - 199/9e6.
    assert shares[0][1] == pytest.approx(1 - 199 / 9e6, abs=2e-5)


def test_a_healthy_run_has_no_spike() -> None:
    w, _ = spiky({}, 150)
    assert not w.findings, said(w.findings)


def test_one_spike_does_not_hide_the_next() -> None:
    w, _ = spiky({60: 137, 75: 20}, 90)
    steps = {f.step: " ".join(f.where) for f in w.findings}
    assert "w.137" in steps.get(60, ""), said(w.findings)
    assert "w.20" in steps.get(75, ""), said(w.findings)


@pytest.mark.parametrize("resume_at", [20, 31, 36])
def test_a_resumed_run_gives_the_same_alarms(resume_at: int) -> None:
    spikes = {30: 137, 34: 3, 45: 20}
    whole, _ = spiky(spikes, 50)
    assert len(whole.findings) >= 2
    second, first = spiky(spikes, 50, resume_at=resume_at)
    expected = said(whole.findings)
    together = [*said(first), *(s for s in said(second.findings) if s not in said(first))]
    assert together == expected


def test_the_last_steps_before_a_spike_are_kept_in_full(tmp_path: Path) -> None:
    # Steps in between are recorded only every tenth time; the file holds the records around the alarm.
    spiky({60: 137}, 70, tmp_path / "a")
    run = hw.open_run(tmp_path / "a")
    assert any(e.kind == "flight_record" for e in run.events), [e.kind for e in run.events]
    assert run.record(60) is not None


# ---- R24: updates ---------------------------------------------------------------------------------------------------


def ratios(factor: float, eps: float, path: Path, steps: int = 12) -> tuple[Any, Any]:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=eps)
    w = hw.watch(model, optimizer, run=path, **ALWAYS)
    with w:
        train(model, optimizer, steps, factor=factor)
    return w, hw.open_run(path)


def test_update_ratios_are_those_of_the_weights_before_and_after(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    expected: list[dict[str, float]] = []

    def body() -> None:
        for i in range(4):
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            train(model, optimizer, [i])
            expected.append({n: norm(p - before[n]) / norm(before[n]) for n, p in model.named_parameters()})

    with hw.watch(model, optimizer, run=tmp_path / "a", updates="exact", **ALWAYS):
        body()
    run = hw.open_run(tmp_path / "a")
    for name in expected[0]:
        got = dict(run.series(name, "update.update_ratio"))
        assert got == pytest.approx({i: e[name] for i, e in enumerate(expected)}, rel=1e-3)


def test_the_update_ratio_of_adam_does_not_depend_on_the_scale_of_the_loss(tmp_path: Path) -> None:
    _, a = ratios(1.0, 1e-16, tmp_path / "a")
    _, b = ratios(1e-6, 1e-16, tmp_path / "b")
    for name in ("0.weight", "4.weight"):
        assert dict(b.series(name, "update.update_ratio")) == pytest.approx(
            dict(a.series(name, "update.update_ratio")), rel=1e-3
        )


def test_gradients_below_the_epsilon_of_adam_are_flagged(tmp_path: Path) -> None:
    quiet, _ = ratios(1.0, 1e-8, tmp_path / "a")
    loud, run = ratios(1e-9, 1e-8, tmp_path / "b")
    assert not quiet.findings, said(quiet.findings)
    assert any("eps" in f"{f.cause} {f.advice}" for f in loud.findings), said(loud.findings)
    assert dict(run.series("0.weight", "second_moment.below_epsilon_fraction"))[10] > 0.9


class TwoScales(nn.Module):
    """One tensor with a gradient of 5e7, and others of 1e-3, as in the clipped run where training froze."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loud = nn.Parameter(torch.ones(4))
        self.body = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.loud.sum() * 2.5e7 + self.body(x).mean() * 1e-2


@pytest.mark.parametrize("clip", [False, True])
def test_a_clip_that_pushes_gradients_below_epsilon_is_called_clip_starved(clip: bool) -> None:
    model = TwoScales()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    w = hw.watch(model, optimizer, **ALWAYS)
    with w:
        for i in range(40):
            optimizer.zero_grad()
            model(torch.randn(4, 16, generator=torch.Generator().manual_seed(i))).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    starved = [f for f in w.findings if "clip" in f.defect.lower()]
    assert bool(starved) is clip, said(w.findings)
    if clip:
        assert any("body" in name for name in starved[0].where), starved


def test_the_update_ratio_of_plain_gradient_descent_follows_the_loss(tmp_path: Path) -> None:
    got = []
    for factor in (1.0, 1e-6):
        model = mlp()
        optimizer = sgd(model, lr=0.1)
        with hw.watch(model, optimizer, run=tmp_path / str(factor), **ALWAYS):
            train(model, optimizer, 1, factor=factor)
        got.append(dict(hw.open_run(tmp_path / str(factor)).series("0.weight", "update.update_ratio"))[0])
    # fp32 cannot resolve an update of 1e-8 of the weight well, only its order of magnitude.
    assert math.log10(got[1] / got[0]) == pytest.approx(-6, abs=0.7)


def test_a_healthy_step_whose_loss_was_not_given_is_not_called_nan(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with hw.watch(model, optimizer, run=tmp_path / "a", **ALWAYS):
        train(model, optimizer, 2)
    diagnosis = hw.diagnose(hw.open_run(tmp_path / "a").profile(1))
    assert diagnosis.verdict is hw.Verdict.HEALTHY, str(diagnosis)
