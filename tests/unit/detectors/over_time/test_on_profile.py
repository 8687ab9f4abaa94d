"""A diagnosis on the steps of a run: the root cause, when the run shows it, and no guess where it does not."""

from __future__ import annotations

import math

import pytest
from tests.unit.detectors.over_time.digits import batches, mlp
from tests.unit.detectors.over_time.recorded import Training
from tests.unit.detectors.over_time.synthetic import record
from torch import nn
from torch.optim import SGD

import headwater as hw
from headwater.detectors.over_time import AlertDesk, Moment, OnProfile, StalledLayer
from headwater.records import Finding, Profile, RunContext, Statistics, StepRecord, profile_of_step


def deep_sigmoid(steps: int, depth: int = 12) -> tuple[list[tuple[StepRecord, Profile | None]], hw.Diagnosis]:
    import torch

    torch.manual_seed(0)
    model = mlp(nn.Sigmoid, depth=depth)
    x, y = batches()(0)
    diagnosis = hw.diagnose(model, x, y, nn.functional.cross_entropy)
    return list(Training(model, SGD(model.parameters(), lr=0.1), batches()).records(steps)), diagnosis


def test_at_step_zero_it_says_what_diagnose_says() -> None:
    ((record_, profile), *_), diagnosis = deep_sigmoid(1)
    (finding,) = OnProfile()(Moment(record_, profile), {}) or []
    assert finding.verdict is diagnosis.verdict is hw.Verdict.VANISHING
    assert finding.code == diagnosis.findings[0].code == "HW101"
    assert finding.cause[:60] == diagnosis.findings[0].cause[:60]  # the same fall per layer over the same layers


def test_a_network_that_cannot_learn_is_named_by_step_two() -> None:
    steps, _ = deep_sigmoid(3)
    desk = AlertDesk([OnProfile()])
    assert desk.needs_profile
    said = [(r.step, d.finding) for r, p in steps for d in desk.consider(r, p) if d.is_new]
    assert [(step, f.code, f.step) for step, f in said] == [(2, "HW101", 0)]


def test_steps_without_layers_are_not_judged_and_do_not_end_the_streak() -> None:
    steps, _ = deep_sigmoid(3)
    desk = AlertDesk([OnProfile()])
    mixed = [pair for step in steps for pair in (step, (record(step[0].step), None))]
    assert len([d for r, p in mixed for d in desk.consider(r, p) if d.is_new]) == 1


def test_what_stalls_where_the_gradient_vanishes_is_its_symptom() -> None:
    steps, _ = deep_sigmoid(10)
    desk = AlertDesk([OnProfile(), StalledLayer()])
    found = [d.finding for r, p in steps for d in desk.consider(r, p) if d.is_new]
    assert [(f.code, f.symptom_of) for f in found] == [("HW101", None), ("HW604", "HW101")]


class Warns:
    """Stands for a detector: one warning with a verdict."""

    code = "HW999"

    def __init__(self, verdict: hw.Verdict) -> None:
        self.verdict = verdict

    def __call__(self, profile: Profile, forecast: object) -> list[Finding]:
        text = {"cause": "c.", "advice": "a."}
        return [Finding(code=self.code, defect="d", severity=hw.Severity.WARNING, verdict=self.verdict, **text)]


def said_of_a_warning(verdict: hw.Verdict, profile: Profile) -> list[tuple[int, int | None, hw.Severity]]:
    desk = AlertDesk([OnProfile(detectors=(Warns(verdict),))])
    looks = ((step, desk.consider(record(step), profile)) for step in (0, 1, 2, 4, 8, 100))
    return [(step, d.finding.step, d.finding.severity) for step, found in looks for d in found if d.is_new]


def test_a_warning_of_growth_that_lasts_over_the_early_looks_is_passed_on_as_a_warning_once(healthy: Profile) -> None:
    assert said_of_a_warning(hw.Verdict.EXPLODING, healthy) == [(8, 0, hw.Severity.WARNING)]


def test_a_warning_of_a_gradient_that_shrinks_is_left_to_the_alert_on_stalled_layers(healthy: Profile) -> None:
    assert said_of_a_warning(hw.Verdict.VANISHING, healthy) == []


# ------------------------------------------------------------ what a run does not record


def judged(profile: Profile, **fields: object) -> list[Finding]:
    return list(OnProfile()(Moment(record(0, **fields), profile), {}) or [])


@pytest.fixture(scope="module")
def healthy() -> Profile:
    import torch

    torch.manual_seed(0)
    model = mlp(nn.Sigmoid, depth=3)
    (_, profile), *_ = Training(model, SGD(model.parameters(), lr=0.1), batches()).records(1)
    assert profile is not None
    return profile


def changed(profile: Profile, name: str, **fields: object) -> Profile:
    from dataclasses import replace

    return profile.replace(layers=tuple(replace(r, **fields) if r.name == name else r for r in profile.layers))


def test_a_saturated_hidden_activation_is_found(healthy: Profile) -> None:
    assert judged(healthy) == []
    (finding,) = judged(changed(healthy, "1", saturated_fraction=0.9))
    assert (finding.code, finding.where) == ("HW202", ("1",))


def test_a_relu6_is_not_judged_as_what_it_leaves_unsaturated_is_not_recorded(healthy: Profile) -> None:
    assert judged(changed(healthy, "1", saturated_fraction=0.9, type="ReLU6")) == []


def test_a_saturated_output_is_not_judged_as_its_loss_is_not_recorded(healthy: Profile) -> None:
    from dataclasses import replace

    last = healthy.layers[-1]
    output = replace(last, name="out", type="Sigmoid", kind="activation", order=last.order + 1, parameters=(),
                     saturated_fraction=0.99)  # fmt: skip
    assert judged(healthy.replace(layers=(*healthy.layers, output))) == []


def test_a_run_without_a_loss_is_no_nan(healthy: Profile) -> None:
    assert math.isnan(profile_of_step(record(0, {"a.weight": 1.0}, activation={"a": 1.0}), RunContext()).loss)
    assert judged(healthy.replace(loss=math.nan)) == []


def test_nan_is_left_to_its_own_alert(healthy: Profile) -> None:
    bad = Statistics.of([math.nan, 1.0])
    assert OnProfile()(Moment(record(0), changed(healthy, "2", activation=bad)), {}) is None


def test_half_precision_gradients_recorded_without_their_scale_are_no_underflow(healthy: Profile) -> None:
    from dataclasses import replace

    tiny = Statistics.of([1e-6, -1e-6] * 8)
    half = healthy.replace(
        parameters=tuple(replace(q, dtype="float16", gradient=tiny, state="underflow") for q in healthy.parameters)
    )
    assert [f.code for f in judged(half)] == ["HW303"]
    assert judged(half, loss_scale=65536.0) == []
