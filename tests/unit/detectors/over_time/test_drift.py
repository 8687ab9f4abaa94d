"""Slow trends over the whole run, in both directions, and none that is only learning."""

from __future__ import annotations

import random

import pytest
from tests.unit.detectors.over_time.synthetic import alarms, record

from headwater.detectors.over_time import Drift
from headwater.records import Finding, StepRecord

STEPS = 200


def run(change: dict[str, float], quantity: str = "value", *, steps: int = STEPS, **fields: object) -> list[StepRecord]:
    """Sizes that change by so many decades over the run in even steps, with noise of 0.02 decades; the loss stays."""
    draw = random.Random(0)
    known: dict[str, object] = {"loss": 1.0, **fields}
    sizes = [{n: 10 ** (d * s / steps + draw.gauss(0, 0.02)) for n, d in change.items()} for s in range(steps)]
    return [record(s, **{quantity: size}, **known) for s, size in enumerate(sizes)]


def evidence(finding: Finding) -> dict[str, float]:
    return {e.name: e.value for e in finding.evidence}


@pytest.mark.parametrize(("decades", "way"), [(2.0, "up"), (-2.0, "down")])
def test_a_weight_that_goes_on_growing_or_shrinking_is_found(decades: float, way: str) -> None:
    (finding,) = alarms(run({"a.weight": decades, "b.weight": 0.0}), Drift())
    assert (finding.defect, finding.where) == (f"weight drifts {way}", ("a.weight",))
    found = evidence(finding)
    assert found["95 % interval, from"] <= found["change"] <= found["95 % interval, to"]
    assert abs(found["change"]) >= 1.0


def test_the_interval_holds_the_change_that_was_planted() -> None:
    (finding,) = alarms(run({"a.weight": 2.0, "b.weight": 0.0}), Drift())
    found = evidence(finding)
    first, last = (int(x) for x in finding.evidence[0].reference.split("steps ")[1].split(";")[0].split(" to "))
    planted = 2.0 * (last - first) / STEPS
    assert found["95 % interval, from"] - 0.02 <= planted <= found["95 % interval, to"] + 0.02


def test_half_a_decade_is_none() -> None:
    assert alarms(run({"a.weight": 0.5}), Drift()) == []


def test_a_change_that_is_over_is_none() -> None:
    records = [
        record(s, value={"a.weight": 10 ** min(2.0, 2.0 * s / 60)}, loss=1.0) for s in range(400)
    ]  # two decades up to step 60, then flat: over before there is enough to judge, and out of the judged part later
    assert [f for f in alarms(records, Drift()) if f.step is not None and f.step > 100] == []


def test_one_jump_is_no_slow_trend() -> None:
    # A jump at 70 % of the run: the line through it is flat for most pairs of points.
    records = [record(s, value={"a.weight": 1.0 if s < 140 else 100.0}, loss=1.0) for s in range(STEPS)]
    assert alarms(records, Drift()) == []


def test_outputs_that_grow_while_the_loss_falls_are_learning() -> None:
    sizes = {"a": 2.0, "b": 0.0}
    falling = [record(s, activation={"a": 10 ** (2 * s / STEPS)}, loss=2.0 * 0.99**s) for s in range(STEPS)]
    assert alarms(falling, Drift()) == []
    assert [f.defect for f in alarms(run(sizes, "activation"), Drift())] == ["output drifts up"]


def test_without_a_loss_only_three_decades_are_a_drift() -> None:
    assert alarms(run({"a.weight": 2.0}, loss=None), Drift()) == []
    assert len(alarms(run({"a.weight": 6.0}, loss=None), Drift())) == 1


def test_gradients_are_compared_with_one_another_so_a_common_fall_is_none() -> None:
    together = {"a.weight": -6.0, "b.weight": -6.0, "c.weight": -6.0}
    assert alarms(run(together, "gradient"), Drift()) == []
    (finding,) = alarms(run({**together, "d.weight": -1.0}, "gradient"), Drift())
    assert (finding.defect, finding.where) == ("gradient drifts up", ("d.weight",))


def test_the_kept_points_stay_few_however_long_the_run_is() -> None:
    alert, memory = Drift(), {}
    from headwater.detectors.over_time import Moment

    for r in run({"a.weight": 0.0}, steps=1000):
        alert(Moment(r), memory)
    series = memory["value"]
    assert len(series["steps"]) <= alert.points
    assert len(series["sizes"]["a.weight"]) == len(series["steps"]) == len(series["losses"])
    assert series["steps"] == sorted(set(series["steps"]))
    assert series["steps"][0] == 0


def test_a_weight_that_appears_later_is_aligned_with_the_others() -> None:
    records = run({"a.weight": 0.0}, steps=100)
    records += [
        record(s, value={"a.weight": 1.0, "b.weight": 10 ** (2 * (s - 100) / 300)}, loss=1.0) for s in range(100, 400)
    ]
    found = alarms(records, Drift())
    assert [f.where for f in found] == [("b.weight",)]
