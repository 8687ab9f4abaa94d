"""A run in short: what happened first, sizes that do not grow with the run, an equal record from its JSON."""

from __future__ import annotations

import json
import math

import pytest
from tests import runs

from headwater.records import RunEvent, Severity, WatchedTensor
from headwater.records.run_matrix import observed_log10
from headwater.records.run_summary import RunSummary, is_finished, summarize_run


@pytest.mark.parametrize("run", [runs.healthy(), runs.spiking(), runs.vanishing(), runs.hostile(), runs.nothing()])
def test_a_summary_reads_back_equal(run: runs.FormulaRun) -> None:
    summary = summarize_run(run)
    assert RunSummary.from_json(summary.to_json()) == summary


def test_the_earliest_critical_finding_comes_before_an_earlier_warning() -> None:
    run = runs.healthy()
    run.findings = (
        runs.finding("HW102", step=40),
        runs.finding("HW703", Severity.WARNING, step=4),
        runs.finding("HW101", step=20),
    )
    summary = summarize_run(run)
    assert not summary.ok
    assert [f.code for f in summary.findings] == ["HW703", "HW101", "HW102"]
    assert summary.first_finding is not None
    assert summary.first_finding.code == "HW101"


def test_warnings_alone_leave_a_run_healthy() -> None:
    run = runs.spiking()
    summary = summarize_run(run)
    assert summary.ok
    assert summary.first_finding == run.findings[0]


def test_the_weights_are_told_without_the_biases() -> None:
    # healthy(): rms 1e-3 at the first step and 10**(-3 - 0.5) at the last, updates 1e-3·(1 + 0.1·(order % 3)).
    summary = summarize_run(runs.healthy(depth=3))
    assert [w.name for w in summary.weights] == ["layers.0.weight", "layers.1.weight", "layers.2.weight"]
    for weight in summary.weights:
        assert weight.first_log10 == pytest.approx(-3.0)
        assert weight.last_log10 == pytest.approx(-3.5)
    assert [w.update_ratio for w in summary.weights] == pytest.approx([1.0e-3, 1.2e-3, 1.1e-3])


def test_a_model_without_weights_tells_all_its_parameters() -> None:
    run = runs.healthy(depth=2)
    run.tensors = tuple(t for t in run.tensors if t.role == "bias")
    assert [w.name for w in summarize_run(run).weights] == ["layers.0.bias", "layers.1.bias"]


def test_a_spike_names_who_made_it_first() -> None:
    summary = summarize_run(runs.spiking(at=100, which=3))
    (spike,) = summary.spikes
    name, share = spike.contributors[0]
    # 300² = 90,000 against five weights and six quarter-sized biases of size one each.
    assert (spike.step, name) == (100, "layers.3.weight")
    assert share == pytest.approx(90_000 / (90_000 + 5 + 6 / 4))


def test_two_models_stay_apart() -> None:
    summary = summarize_run(runs.two_models())
    assert [w.name.partition(".")[0] for w in summary.weights] == ["G"] * 4 + ["D"] * 3
    (spike,) = summary.spikes
    assert (spike.group, spike.step, spike.contributors[0][0]) == ("G", 100, "G.layers.2.weight")
    assert sum(share for _, share in spike.contributors) == pytest.approx(1.0)
    groups = [point.group for point in summary.course]
    assert groups == ["G"] * 25 + ["D"] * 25
    largest = {g: max(p.gradient_norm_log10 or -9.0 for p in summary.course if p.group == g) for g in "GD"}
    assert largest["G"] - largest["D"] > 1.0


def test_an_exact_zero_and_a_nan_stay_what_they_are() -> None:
    run = runs.healthy(depth=2)
    run.formulas = {**run.formulas, "gradient": lambda t, s: 0.0 if t.order < 2 else math.nan}
    zero, nan = summarize_run(run).weights
    assert zero.last_log10 == -math.inf
    assert nan.last_log10 is not None
    assert math.isnan(nan.last_log10)


def test_the_size_does_not_grow_with_the_run() -> None:
    short, long = runs.healthy(last=20_000), runs.healthy(last=20_000)
    short.steps = runs.schedule(4_000)
    sizes = [len(json.dumps(summarize_run(run).to_dict())) for run in (short, long)]
    assert len(long.steps) > 4 * len(short.steps)
    assert sizes[1] < 1.2 * sizes[0]


def test_a_run_is_finished_until_it_is_resumed() -> None:
    def events(*kinds: str) -> list[RunEvent]:
        return [RunEvent(kind=kind, time=0.0, message="") for kind in kinds]

    assert not is_finished([])
    assert not is_finished(events("attached", "notice"))
    assert is_finished(events("attached", "detached", "notice"))
    assert not is_finished(events("attached", "detached", "resumed"))


def test_coverage_is_of_the_last_step_that_was_taken() -> None:
    run = runs.healthy(depth=2)
    run.tensors = (*run.tensors, WatchedTensor(kind="parameter", name="frozen", trainable=False, role="weight"))
    run.formulas = {**run.formulas, "gradient": lambda t, s: 1e-3 if t.trainable and s < 200 else None}
    run.skipped = lambda step: "amp" if step == 200 else None
    summary = summarize_run(run)
    assert (summary.skipped_steps, summary.observed, summary.trainable) == (1, 4, 4)
    assert summary.missing == {"frozen": "frozen"}


def test_what_has_no_logarithm() -> None:
    assert observed_log10(None) is None
    assert observed_log10(0.0) == -math.inf
    assert observed_log10(math.inf) == math.inf
    assert math.isnan(observed_log10(math.nan) or 0.0)


def test_first_and_last_gradient_are_of_steps_that_were_taken() -> None:
    # Steps 0, 1, 2, 4, 8. The scaler drops 0, 1 and 8, whose gradients have NaN; 2 and 4 are 10^-2 and 10^-4.
    run = runs.healthy(2, 8)
    run.formulas = {**run.formulas, "gradient": lambda t, s: math.nan if s in (0, 1, 8) else 10.0**-s}
    run.skipped = lambda s: "amp" if s in (0, 1, 8) else None
    weight = summarize_run(run).weights[0]
    assert (weight.first_log10, weight.last_log10) == (-2.0, -4.0)
    assert [v is not None and math.isnan(v) for v in weight.trend_log10] == [True, True, False, False, True]


def test_a_run_of_skipped_steps_alone_still_says_what_they_were() -> None:
    run = runs.healthy(2, 8)
    run.formulas = {**run.formulas, "gradient": lambda t, s: math.nan}
    run.skipped = lambda s: "amp"
    weight = summarize_run(run).weights[0]
    assert weight.first_log10 is not None


def test_no_nan_is_lost_when_a_long_run_is_thinned_to_24_moments() -> None:
    run = runs.healthy(1, 3000)
    run.formulas = {**run.formulas, "gradient": lambda t, s: math.nan if s == 1510 else 1e-3}
    trend = summarize_run(run).weights[0].trend_log10
    assert len(trend) == 24
    assert sum(v is not None and math.isnan(v) for v in trend) == 1


def test_the_coverage_is_of_the_last_step_with_a_gradient() -> None:
    run = runs.healthy(2, 8)
    usual = run.formulas["gradient"]
    run.formulas = {**run.formulas, "gradient": lambda t, s: None if s == 8 else usual(t, s)}
    assert summarize_run(run).observed == summarize_run(runs.healthy(2, 8)).observed > 0
