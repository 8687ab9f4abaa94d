"""What holds for all alerts together: the loss' scale decides nothing, and a resumed run goes on as if it had not stopped."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.detectors.over_time.synthetic import alarms, record

from headwater.detectors.over_time import DEFAULT_ALERTS, AlertDesk
from headwater.records import Finding, StepRecord

few = settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
NAMES = [f"{k}.weight" for k in range(6)]
SCHEDULE = (0, 1, 2, 4, 8, *range(10, 700, 10))


def run(seed: int, factor: float = 1.0) -> list[StepRecord]:
    """A run of random walks with faults here and there; the loss and its gradients times a factor, Adam's eps as well."""
    draw = random.Random(seed)
    level = {n: draw.uniform(-3, 0) for n in NAMES}
    slope = {n: draw.choice([0, 0, 0, -0.08, 0.08]) for n in NAMES}
    stops = {n: draw.choice([math.inf, math.inf, 30, 50]) for n in NAMES}
    records = []
    for k, step in enumerate(SCHEDULE):
        jump = 10 ** draw.choice([0] * 30 + [2, 4])
        sizes = {
            n: 0.0 if k >= stops[n] else 10 ** (level[n] + slope[n] * k + draw.gauss(0, 0.05)) * jump for n in NAMES
        }
        updates = {n: 1e-3 * (s > 0) * 10 ** draw.gauss(0, 0.1) for n, s in sizes.items()}
        clip = draw.choice([1.0, 1.0, 1e-3])
        records.append(
            record(
                step,
                {n: s * factor for n, s in sizes.items()},
                update=updates,
                value=dict.fromkeys(NAMES, 0.1 * 1.05**k),
                epsilon=1e-8 * factor,
                loss=factor * 10 ** draw.gauss(0, 0.02),
                learning_rate=0.1,
                clip_coefficient=clip,
                activation={"a": 1.02**k},
                output_gradient={"a": factor},
                dead={"r": (64, min(64, k), 4)},
                skipped=draw.choice([None] * 9 + ["amp"]),
            )
        )
    return records


def told(found: list[Finding]) -> list[tuple[object, ...]]:
    return [(f.step, f.code, f.defect, f.where, f.severity) for f in found]


@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1e6]))
@few
def test_the_loss_times_a_constant_changes_no_finding(seed: int, factor: float) -> None:
    assert told(alarms(run(seed, factor), *DEFAULT_ALERTS)) == told(alarms(run(seed), *DEFAULT_ALERTS))


@given(st.integers(0, 10_000), st.integers(0, len(SCHEDULE)))
@few
def test_a_resumed_run_gives_identical_alarms(seed: int, cut: int) -> None:
    records = run(seed)
    whole = alarms(records, *DEFAULT_ALERTS)
    first, second = AlertDesk(DEFAULT_ALERTS), AlertDesk(DEFAULT_ALERTS)
    before = alarms(records[:cut], desk=first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert before + alarms(records[cut:], desk=second) == whole


@given(st.integers(0, 10_000))
@few
def test_the_same_records_give_the_same_findings_with_finite_evidence(seed: int) -> None:
    found = alarms(run(seed), *DEFAULT_ALERTS)
    assert found == alarms(run(seed), *DEFAULT_ALERTS)
    assert all(math.isfinite(e.value) for f in found for e in f.evidence)
    assert not [f for f in found if f.defect == "alert failed"]


number = st.one_of(st.floats(0, 1e30), st.sampled_from([0.0, math.nan, math.inf, 1e-30]))
sizes = st.dictionaries(st.sampled_from(NAMES), number, max_size=6)


@st.composite
def anything(draw: st.DrawFn) -> StepRecord:
    gradient = draw(sizes)
    fields: dict[str, object] = {
        "loss": draw(st.one_of(st.none(), st.floats())),
        "learning_rate": draw(st.one_of(st.none(), st.floats(0, 10))),
        "loss_scale": draw(st.sampled_from([None, 1.0, 65536.0])),
        "clip_coefficient": draw(st.sampled_from([None, 1.0, 0.0, 1e-12, math.nan])),
        "skipped": draw(st.sampled_from([None, None, None, "amp", "not stepped"])),
    }
    return record(
        draw(st.integers(0, 10**9)), draw(st.sampled_from([gradient, None])),
        phase=draw(st.sampled_from(["backward", "pre_clip"])), value=draw(sizes), update=draw(sizes),
        epsilon=draw(st.sampled_from([None, 1e-8, 0.0, math.nan])), activation=draw(sizes), output_gradient=draw(sizes),
        norms=draw(st.booleans()), saturated={"s": draw(number)},
        dead={"r": (draw(st.integers(0, 9)), draw(st.integers(0, 9)), draw(st.integers(1, 9)))}, **fields,
    )  # fmt: skip


@given(st.lists(anything(), max_size=20))
@settings(few, max_examples=25)
def test_no_alert_crashes_on_records_of_anything_and_its_state_stays_json(records: list[StepRecord]) -> None:
    desk = AlertDesk(DEFAULT_ALERTS)
    for one in records * 2:
        for decision in desk.consider(one):
            assert decision.finding.defect != "alert failed", decision.finding
            assert all(math.isfinite(e.value) for e in decision.finding.evidence), decision.finding
    json.dumps(desk.state_dict(), allow_nan=False)


@pytest.mark.parametrize("alert", DEFAULT_ALERTS, ids=lambda a: a.code)
def test_an_empty_record_is_no_finding(alert: object) -> None:
    assert alarms([record(s) for s in range(40)], alert) == []
