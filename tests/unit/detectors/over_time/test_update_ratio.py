"""Updates as large as the weights, below rounding, or off their own past."""

from __future__ import annotations

import math

import pytest
from tests.unit.detectors.over_time.synthetic import alarms, record

from headwater.detectors.over_time import UpdateRatio
from headwater.records import StepRecord

SCHEDULE = (0, 1, 2, 4, 8, *range(10, 200, 10))
NAMES = [f"{k}.weight" for k in range(4)]


def updates(*ratios: float, first: int = 0, **fields: object) -> list[StepRecord]:
    """The ratio of the first weight at the recorded steps; the others have 1e-3."""
    return [
        record(s, dict.fromkeys(NAMES, 1.0), update={**dict.fromkeys(NAMES, 1e-3), NAMES[0]: r}, **fields)
        for s, r in zip(SCHEDULE[first:], ratios, strict=False)
    ]


def test_steps_as_large_as_the_weight_are_caught_by_step_two() -> None:
    (finding,) = alarms(updates(0.6, 0.7, 0.6), UpdateRatio())
    assert (finding.defect, finding.where, finding.step) == ("updates as large as the weights", (NAMES[0],), 0)
    assert alarms(updates(0.6, 0.7, 0.4, 0.6, 0.7), UpdateRatio(own_decades=9.0)) == []


def test_a_weight_that_starts_at_zero_under_adam_is_none() -> None:
    # No ratio at step 0, as ‖w‖ = 0; then ‖w‖ grows by the learning rate per step, so the ratio at step t is 1/t.
    ratios = [math.nan, *(1.0 / s for s in SCHEDULE[1:])]
    assert alarms(updates(*ratios), UpdateRatio(own_decades=9.0)) == []


def test_a_weight_that_does_not_move_although_it_has_a_gradient_is_rounded_away() -> None:
    for ratio in (0.0, 5e-8):
        (finding,) = alarms(updates(*[ratio] * 6), UpdateRatio())
        assert (finding.defect, finding.where) == ("updates below rounding", (NAMES[0],))
    assert alarms(updates(*[7e-8] * 6), UpdateRatio()) == []


def test_a_weight_without_a_gradient_is_no_matter_of_rounding() -> None:
    records = [
        record(
            s,
            {n: 0.0 if n == NAMES[0] else 1.0 for n in NAMES},
            update={n: 0.0 if n == NAMES[0] else 1e-3 for n in NAMES},
        )
        for s in SCHEDULE
    ]
    assert alarms(records, UpdateRatio()) == []


def test_the_end_of_a_schedule_is_not_rounding() -> None:
    rates = [1e-1] * 10 + [1e-9] * 10
    records = [
        record(s, dict.fromkeys(NAMES, 1.0), update=dict.fromkeys(NAMES, rate), learning_rate=rate)
        for s, rate in zip(SCHEDULE, rates, strict=False)
    ]
    assert alarms(records, UpdateRatio()) == []


@pytest.mark.parametrize(("decades", "found"), [(1.9, 0), (2.1, 1), (-1.9, 0), (-2.1, 1)])
def test_two_decades_off_its_own_past_is_found_in_both_directions(decades: float, found: int) -> None:
    alarmed = alarms(updates(*[1e-3] * 12, *[1e-3 * 10**decades] * 6), UpdateRatio())
    assert [(f.defect, f.where) for f in alarmed] == [("update far off its own past", (NAMES[0],))] * found


def test_two_steps_off_and_back_are_a_blip() -> None:
    assert alarms(updates(*[1e-3] * 12, *[0.3] * 2, *[1e-3] * 5), UpdateRatio()) == []


def test_a_learning_rate_schedule_moves_all_and_is_none() -> None:
    records = [
        record(s, dict.fromkeys(NAMES, 1.0), update=dict.fromkeys(NAMES, 1e-3 if s < 100 else 3e-6), learning_rate=0.1)
        for s in SCHEDULE
    ]
    assert alarms(records, UpdateRatio()) == []


def test_steps_at_learning_rate_zero_or_skipped_are_not_judged() -> None:
    assert alarms(updates(*[0.0] * 8, learning_rate=0.0), UpdateRatio()) == []
    assert alarms(updates(*[0.9] * 8, skipped="amp"), UpdateRatio()) == []
