"""The first tensor that is not finite, in the order it was computed, before clipping spreads it."""

from __future__ import annotations

import math

import pytest
from tests.unit.detectors.over_time.synthetic import alarms, record

from headwater.detectors.over_time import NonFiniteStep
from headwater.records import Finding, Severity, Verdict

NAN, INF = math.nan, math.inf
NAMES = [f"{k}.weight" for k in range(12)]


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1
    return found[0]


def gradients(bad: int) -> dict[str, float]:
    """Twelve layers; a NaN made in the backward of layer ``bad`` reaches it and everything before it."""
    return {name: NAN if k <= bad else 1.0 for k, name in enumerate(NAMES)}


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("k", [0, 4, 10])
def test_of_parameter_gradients_alone_the_last_in_execution_order_is_the_producer(k: int, norms: bool) -> None:
    finding = only(alarms([record(7, gradients(k), norms=norms)], NonFiniteStep()))
    assert finding.where == tuple(reversed(NAMES[: k + 1]))  # the producer, then the propagators, on the gradient's way
    assert (finding.step, finding.verdict, finding.severity) == (7, Verdict.NAN, Severity.CRITICAL)
    assert f"the first in the backward that is not: {'1 NaN elements'}" in finding.cause


def test_the_answer_is_the_same_with_clipping_that_spreads_it() -> None:
    plain = only(alarms([record(0, gradients(4))], NonFiniteStep()))
    clipped = only(
        alarms([record(0, gradients(4), post_clip=dict.fromkeys(NAMES, NAN), clip_coefficient=NAN)], NonFiniteStep())
    )
    assert clipped == plain


def test_all_gradients_without_layers_point_above_the_last_one_and_say_what_was_not_seen() -> None:
    finding = only(alarms([record(0, dict.fromkeys(NAMES, NAN))], NonFiniteStep()))
    assert finding.where[0] == "11.weight"
    assert 'layers were not looked at at this step (activations="recorded" looks' in finding.cause


def test_of_one_layer_the_weight_stands_for_it() -> None:
    sizes = {"a.weight": NAN, "a.bias": NAN, "b.weight": 1.0}
    assert only(alarms([record(0, sizes)], NonFiniteStep())).where[0] == "a.weight"


def test_a_forward_nan_is_named_first_whatever_the_gradients_are() -> None:
    layers = {"a": 1.0, "b": NAN, "c": NAN}
    bad = record(3, dict.fromkeys(["a.weight", "c.weight"], NAN), activation=layers, output_gradient=layers, loss=NAN)
    finding = only(alarms([bad], NonFiniteStep()))
    assert finding.where == ("b", "c", "c.weight", "a.weight")
    assert "The output of b (Linear) is the first that is not finite: 1 NaN elements." in finding.cause


def test_the_first_layer_points_at_the_data_too() -> None:
    assert "look at the data too" in only(alarms([record(0, activation={"a": INF, "b": NAN})], NonFiniteStep())).cause


def test_a_backward_nan_names_the_gradient_and_the_layer_whose_backward_made_it() -> None:
    finite = dict.fromkeys("abcd", 1.0)
    bad = record(0, {"a.weight": NAN}, activation=finite, output_gradient={**finite, "a": NAN, "b": NAN})
    finding = only(alarms([bad], NonFiniteStep()))
    assert finding.where == ("b", "a", "a.weight")
    assert "made in the backward of c" in finding.cause


def test_a_loss_made_nan_behind_finite_activations_is_made_at_the_loss() -> None:
    finite = {"a": 1.0, "b": 1.0}
    bad = record(0, {"a.weight": NAN}, activation=finite, output_gradient=dict.fromkeys("ab", NAN), loss=NAN)
    assert "made at the loss" in only(alarms([bad], NonFiniteStep())).cause


def test_a_parameter_that_holds_nan_comes_before_everything() -> None:
    bad = record(9, {"a.weight": NAN, "b.weight": NAN}, value={"a.weight": 1.0, "b.weight": NAN}, activation={"a": NAN})
    finding = only(alarms([bad], NonFiniteStep()))
    assert finding.where[0] == "b.weight"
    assert "itself holds 1 NaN" in finding.cause


def test_infinities_that_nothing_feels_are_a_mask() -> None:
    assert alarms([record(0, {"a.weight": 1.0}, activation={"a": INF, "b": 1.0}, loss=1.0)], NonFiniteStep()) == []


def test_a_finite_step_is_no_finding_and_one_without_rows_neither() -> None:
    assert alarms([record(0, {"a.weight": 0.0}, loss=0.5), record(1)], NonFiniteStep()) == []


# ------------------------------------------------------------ policy (R18)


def test_the_warm_up_of_a_gradient_scaler_is_no_alarm() -> None:
    # 65536 is halved until the scale fits: eight skipped steps, then all is well.
    skips = [record(s, {"a.weight": INF}, skipped="amp", loss_scale=2.0 ** (16 - s)) for s in range(8)]
    well = [record(s, {"a.weight": 1.0}, loss_scale=256.0) for s in range(8, 40)]
    assert alarms(skips + well, NonFiniteStep()) == []


def test_a_scaler_that_skips_all_the_time_is_one() -> None:
    skips = [record(s, {"a.weight": INF}, skipped="amp", loss_scale=2.0 ** (16 - s)) for s in range(30)]
    finding = only(alarms(skips, NonFiniteStep()))
    # The 16th skip in a row, with the scale at 2.
    assert finding.step == 15
    assert "skipped 16 recorded steps in a row, the last at a loss scale of 2" in finding.cause


def test_one_blip_does_not_stop_and_n_in_a_row_do() -> None:
    alert = NonFiniteStep(patience=3, action="stop")
    blip = [record(s, {"a.weight": NAN if s == 5 else 1.0}) for s in range(10)]
    assert alarms(blip, alert) == []
    streak = [record(s, {"a.weight": NAN if s >= 5 else 1.0}) for s in range(10)]
    assert only(alarms(streak, alert)).step == 5


def test_a_step_the_loop_itself_dropped_is_a_warning() -> None:
    finding = only(alarms([record(0, {"a.weight": NAN}, skipped="not stepped")], NonFiniteStep()))
    assert finding.severity is Severity.WARNING
    assert "dropped this step" in finding.cause
