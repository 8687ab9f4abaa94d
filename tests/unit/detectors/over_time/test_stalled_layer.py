"""Weights that stop while the others go on; transient zeros are told from those that stay."""

from __future__ import annotations

import pytest
from tests.unit.detectors.over_time.synthetic import alarms, record

from headwater.detectors.over_time import StalledLayer
from headwater.records import Severity, StepRecord, Verdict

SCHEDULE = (0, 1, 2, 4, 8, *range(10, 200, 10))


def at(steps: tuple[int, ...], **sizes: object) -> list[StepRecord]:
    """Sizes as formulas of the step, given by name with ``__`` for the dot."""
    return [record(s, {n.replace("__", "."): f(s) for n, f in sizes.items()}) for s in steps]


def test_lora_a_is_transient_and_named_so_within_two_steps() -> None:
    records = at((0, 1, 2, 4), A__weight=lambda s: 0.0 if s == 0 else 1e-3, B__weight=lambda s: 1.0)
    (finding,) = alarms(records, StalledLayer())
    assert (finding.defect, finding.severity, finding.where, finding.step) == (
        "zero gradient at first", Severity.INFO, ("A.weight",), 1,
    )  # fmt: skip


def test_two_zero_factors_are_dead_by_construction_within_two_steps() -> None:
    records = at((0, 1, 2), A__weight=lambda s: 0.0, B__weight=lambda s: 0.0, head__weight=lambda s: 1.0)
    (finding,) = alarms(records, StalledLayer())
    assert (finding.severity, finding.verdict) == (Severity.CRITICAL, Verdict.ZERO_GRADIENT)
    assert finding.where == ("A.weight", "B.weight")
    assert "since watching began" in finding.cause
    assert alarms(records[:2], StalledLayer()) == []  # not before


def test_a_step_at_learning_rate_zero_does_not_count() -> None:
    sizes = {"A.weight": 0.0, "B.weight": 1.0}
    records = [record(s, sizes, learning_rate=0.0) for s in (0, 1, 2, 4)]
    assert alarms(records, StalledLayer()) == []


def test_zero_later_on_needs_eight_steps_in_a_row() -> None:
    dies = at(SCHEDULE, a__weight=lambda s: 1.0 if s < 50 else 0.0, b__weight=lambda s: 1.0)
    (finding,) = alarms(dies, StalledLayer())
    assert finding.step == 50  # when it began
    assert alarms([r for r in dies if r.step < 120], StalledLayer()) == []  # 50, 60 … 120 are eight
    assert "for 8 recorded steps, after it had one" in finding.cause
    flickers = at(SCHEDULE, a__weight=lambda s: 0.0 if s % 70 else 1.0, b__weight=lambda s: 1.0)
    assert alarms([r for r in flickers if r.step >= 70], StalledLayer()) == []


def test_when_nothing_has_ever_had_a_gradient_all_of_it_is_named() -> None:
    records = at(SCHEDULE, a__weight=lambda s: 0.0, b__weight=lambda s: 0.0)
    (finding,) = alarms(records, StalledLayer())
    assert (finding.severity, finding.where, finding.step) == (Severity.CRITICAL, ("a.weight", "b.weight"), 0)
    assert alarms(records[:2], StalledLayer()) == []


def test_zeros_everywhere_are_no_alarm_where_the_loss_is_zero_or_where_there_was_a_gradient_before() -> None:
    sizes = {"a.weight": 0.0, "b.weight": 0.0}
    assert alarms([record(s, sizes, loss=0.0) for s in SCHEDULE], StalledLayer()) == []
    ends = at(SCHEDULE, a__weight=lambda s: 1.0 if s < 50 else 0.0, b__weight=lambda s: 1.0 if s < 50 else 0.0)
    assert alarms(ends, StalledLayer()) == []


def test_biases_and_normalisation_may_be_zero() -> None:
    sizes = {"a.weight": 1.0, "a.bias": 0.0, "n.weight": 0.0}
    roles = {"a.bias": "bias", "n.weight": "normalization"}
    assert alarms([record(s, sizes, roles=roles) for s in SCHEDULE], StalledLayer()) == []


def updates(low: float, since: int = 0) -> list[StepRecord]:
    usual = {f"{k}.weight": 1e-3 for k in range(4)}
    return [record(s, update={**usual, "0.weight": low if s >= since else 1e-3}) for s in SCHEDULE]


@pytest.mark.parametrize(("decades", "found"), [(3.9, 0), (4.1, 1)])
def test_updates_four_decades_below_the_best_fed_quarter_are_stalled(decades: float, found: int) -> None:
    alarmed = alarms(updates(10 ** (-3 - decades)), StalledLayer())
    assert len(alarmed) == found
    if found:
        assert alarmed[0].where == ("0.weight",)
        assert alarmed[0].evidence[0].value == pytest.approx(decades)
        assert alarmed[0].step == 0


def test_a_weight_that_does_not_move_at_all_is_exactly_zero_and_no_number_of_decades_below() -> None:
    (finding,) = alarms(updates(0.0), StalledLayer())
    assert "the ‖Δw‖/‖w‖ of 0.weight has been exactly zero, against 0.001 of the best-fed weights'." in finding.cause
    assert (finding.evidence[0].name, finding.evidence[0].value) == ("‖Δw‖/‖w‖", 0.0)


def test_a_layer_that_falls_away_is_found_eight_recorded_steps_later() -> None:
    records = updates(1e-9, since=50)
    (finding,) = alarms(records, StalledLayer())
    assert finding.step == 50  # when it began
    assert alarms([r for r in records if r.step < 120], StalledLayer()) == []  # 50, 60 … 120 are eight


def test_all_updates_falling_together_stall_nothing() -> None:
    records = [record(s, update={f"{k}.weight": 10.0 ** (-3 - s / 10) for k in range(4)}) for s in SCHEDULE]
    assert alarms(records, StalledLayer()) == []


def test_without_updates_the_gradient_rms_is_judged() -> None:
    sizes = {"0.weight": 1e-6, "1.weight": 1.0, "2.weight": 1.0}
    (finding,) = alarms([record(s, sizes, norms=True) for s in SCHEDULE], StalledLayer())
    assert finding.where == ("0.weight",)
    assert "gradient (rms)" in finding.cause


def test_under_adam_a_small_gradient_with_the_usual_update_is_not_stalled() -> None:
    sizes = {"0.weight": 1e-6, "1.weight": 1.0, "2.weight": 1.0}
    records = [record(s, sizes, update=dict.fromkeys(sizes, 1e-3)) for s in SCHEDULE]
    assert alarms(records, StalledLayer()) == []


def test_another_layer_that_stalls_later_is_said_too() -> None:
    usual = {f"{k}.weight": 1e-3 for k in range(6)}
    records = [record(s, update={**usual, "0.weight": 1e-9, "1.weight": 1e-9 if s >= 100 else 1e-3}) for s in SCHEDULE]
    assert [f.where for f in alarms(records, StalledLayer())] == [("0.weight",), ("0.weight", "1.weight")]
