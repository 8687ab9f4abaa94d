"""Shares of dead and saturated units that rise from window to window."""

from __future__ import annotations

import math

import pytest
from tests.unit.detectors.over_time.synthetic import alarms, record

from headwater.detectors.over_time import GrowingDeadUnits
from headwater.records import Severity, StepRecord, Verdict


def dead(*counts: int, units: int = 100, window: int = 4) -> list[StepRecord]:
    return [record(10 * k, dead={"relu": (units, count, window)}) for k, count in enumerate(counts)]


def test_a_share_that_rises_by_a_third_and_stays_is_found_where_it_began() -> None:
    (finding,) = alarms(dead(10, 5, 20, 40, 45), GrowingDeadUnits())
    # 5 % was the least; 40 % and 45 % are 35 and 40 points above it, twice in a row.
    assert (finding.defect, finding.step, finding.where) == ("units die", 30, ("relu",))
    assert (finding.severity, finding.verdict) == (Severity.WARNING, Verdict.DEAD_UNITS)
    assert "In relu 45% of 100 units are off for every sample looked at; it was 5%." in finding.cause


def test_one_window_that_comes_back_is_none() -> None:
    assert alarms(dead(5, 40, 5, 40, 5), GrowingDeadUnits()) == []


def test_a_share_that_was_high_from_the_start_has_not_risen() -> None:
    assert alarms(dead(60, 62, 65, 61), GrowingDeadUnits()) == []


def test_nearly_all_units_dead_is_critical() -> None:
    (finding,) = alarms(dead(5, 95, 95), GrowingDeadUnits())
    assert finding.severity is Severity.CRITICAL


def test_a_shorter_window_finds_more_dead_units_and_shows_no_rise() -> None:
    long = [record(s, dead={"relu": (100, 5, 8)}) for s in range(3)]
    short = [record(s, dead={"relu": (100, 50, 1)}) for s in range(3, 9)]
    assert alarms(long + short, GrowingDeadUnits()) == []


def test_a_window_that_starts_anew_is_compared_with_the_early_ones_of_its_length() -> None:
    # Looks 0, 1, 2 fill a window of three; at 100 it starts anew, with one look, then two.
    shares = [(0, 50, 1), (1, 10, 2), (2, 5, 3), (100, 97, 1), (200, 97, 2)]
    (finding,) = alarms([record(s, dead={"relu": (100, n, looks)}) for s, n, looks in shares], GrowingDeadUnits())
    assert "In relu 97% of 100 units are off for every sample looked at; it was 10%." in finding.cause


def test_steps_at_which_the_network_is_nan_are_not_judged() -> None:
    sound = [record(s, {"a": 1.0}, dead={"relu": (100, 5, 1)}) for s in range(2)]
    assert (
        alarms(
            sound + [record(s, {"a": math.nan}, dead={"relu": (100, 100, 1)}) for s in range(2, 6)], GrowingDeadUnits()
        )
        == []
    )


def test_four_units_are_too_few_to_tell_a_rise_from_chance() -> None:
    # From 1 to 3 of 4: 0.5 up; three standard deviations of a share of 1/4 or 3/4 among four are 0.65.
    assert alarms(dead(1, 3, 3, 3, units=4), GrowingDeadUnits()) == []
    assert len(alarms(dead(10, 30, 30, units=40), GrowingDeadUnits())) == 1


def saturated(*shares: float) -> list[StepRecord]:
    return [record(s, saturated={"gate": share, "out": share}) for s, share in enumerate(shares)]


def test_saturation_that_rises_past_one_half_is_found_except_at_the_output() -> None:
    (finding,) = alarms(saturated(0.1, 0.2, 0.6, 0.7), GrowingDeadUnits())
    assert (finding.defect, finding.where) == ("activation saturates", ("gate",))


@pytest.mark.parametrize("shares", [(0.1, 0.45, 0.45, 0.45), (0.6, 0.65, 0.7, 0.7)])
def test_saturation_below_one_half_or_there_from_the_start_is_none(shares: tuple[float, ...]) -> None:
    assert alarms(saturated(*shares), GrowingDeadUnits()) == []


def test_steps_without_layers_are_not_judged() -> None:
    records = [r for pair in zip(dead(5, 40, 45), [record(s) for s in (5, 15, 25)], strict=True) for r in pair]
    assert len(alarms(records, GrowingDeadUnits())) == 1
