"""Promises every alert keeps: it documents itself, finds its own fault in real training, and is silent on healthy ones."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time

import pytest
from tests.unit.detectors.over_time.synthetic import record
from tests.unit.detectors.over_time.trainings import FAULTS, HEALTHY, Case

from headwater.detectors import DEFAULT_DETECTORS
from headwater.detectors.over_time import DEFAULT_ALERTS, Alert, AlertDesk
from headwater.records import Finding, Severity

HEADINGS = (
    "What it finds", "Why it matters", "Evidence and threshold", "Known false alarms", "What to try", "References",
)  # fmt: skip
POLICY = ("patience", "action")

every_alert = pytest.mark.parametrize("alert", DEFAULT_ALERTS, ids=lambda a: type(a).__name__)


def sections(alert: Alert) -> dict[str, str]:
    parts = re.split(r"^\s*## (.+)$", type(alert).__doc__ or "", flags=re.MULTILINE)
    return {heading.strip(): text.strip() for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_codes_are_unique_and_these() -> None:
    # Stable: users write them into configuration. A new alert adds a line; a line never changes.
    assert {a.code: type(a).__name__ for a in DEFAULT_ALERTS} == {
        "HW601": "NonFiniteStep",
        "HW602": "Spike",
        "HW603": "Drift",
        "HW604": "StalledLayer",
        "HW605": "GrowingDeadUnits",
        "HW606": "ClipStarved",
        "HW607": "UpdateRatio",
        "HW608": "OnProfile",
    }
    assert not {a.code for a in DEFAULT_ALERTS} & {d.code for d in DEFAULT_DETECTORS}


@every_alert
def test_is_a_frozen_dataclass_whose_thresholds_are_numbers_and_that_only_warns(alert: Alert) -> None:
    assert dataclasses.is_dataclass(alert)
    for field in dataclasses.fields(alert):
        value = getattr(alert, field.name)
        if field.name not in ("action", "detectors"):
            assert isinstance(value, int | float), field.name
            assert math.isfinite(value), field.name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(alert, field.name, value)
    assert alert.action == "warn"
    assert alert.patience >= 1


@every_alert
def test_docstring_has_every_heading_and_explains_every_threshold(alert: Alert) -> None:
    found = sections(alert)
    assert tuple(found) == HEADINGS
    assert all(len(text) > 10 for text in found.values())
    explained = found["Evidence and threshold"] + found["What it finds"]
    assert dataclasses.is_dataclass(alert)
    for field in dataclasses.fields(alert):
        if field.name not in (*POLICY, "detectors"):
            assert f"``{field.name}``" in explained, f"{field.name} of {type(alert).__name__} is not explained"


def test_every_alert_has_a_planted_fault() -> None:
    assert {case.code for case in FAULTS} == {a.code for a in DEFAULT_ALERTS}


def alarms_of(case: Case, steps: int, seed: int = 0, factor: float = 1.0) -> list[tuple[int, Finding]]:
    """Step at which it was said, and finding; strict JSON is the state at every tenth step."""
    run = case.make(seed, steps)
    run.layers, run.loss_factor = 3, factor
    for group in run.optimizer.param_groups:
        group["eps"] = group.get("eps", 0.0) * factor
    desk, said = AlertDesk(DEFAULT_ALERTS), []
    for one, profile in run.records(steps):
        said += [(one.step, d.finding) for d in desk.consider(one, profile) if d.is_new]
        if one.step % 50 == 0:
            state = json.loads(json.dumps(desk.state_dict(), allow_nan=False))
            desk = AlertDesk(DEFAULT_ALERTS)
            desk.load_state_dict(state)
    return said


@pytest.mark.parametrize("case", FAULTS, ids=str)
def test_finds_its_own_fault_in_real_training_at_its_place_and_in_time(case: Case) -> None:
    said = alarms_of(case, case.by_step + 1)
    hits = [
        (step, f)
        for step, f in said
        if f.code == (case.found_as or case.code)
        and (not case.where or case.where in f.where[: 2 if case.code == "HW604" else 1])
    ]
    assert hits, [str(f) for _, f in said]
    assert case.from_step <= hits[0][0] <= case.by_step
    for _, finding in said:
        assert finding.step is not None
        assert finding.evidence
        assert all(math.isfinite(e.value) for e in finding.evidence)
        assert len(set(finding.where)) == len(finding.where)
        assert not re.search(r"\s{2,}|\.\.", str(finding)), str(finding)


# Twelve healthy trainings of 200 steps, every step recorded: dense, convolutional, transformer, LSTM.
QUICK = ("mlp, sgd", "cnn, adamw", "transformer, adam", "lstm, adam")


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.name in QUICK else pytest.mark.slow) for c in HEALTHY]
)
def test_is_silent_on_healthy_training(case: Case) -> None:
    assert [str(f) for _, f in alarms_of(case, 200) if f.severity is not Severity.INFO] == []


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_healthy_training_under_adam_is_healthy_at_any_scale_of_the_loss(factor: float) -> None:
    case = next(c for c in HEALTHY if c.name == "mlp, adam")
    assert [str(f) for _, f in alarms_of(case, 100, factor=factor)] == []


def test_a_record_costs_microseconds_per_weight() -> None:
    # Measured by benchmarks/alerts.py: about 4 µs per weight; several times that leaves room for a busy machine.
    names = [f"{k}.weight" for k in range(500)]
    desk = AlertDesk(DEFAULT_ALERTS)
    records = [
        record(
            s,
            dict.fromkeys(names, 1.0),
            update=dict.fromkeys(names, 1e-3),
            value=dict.fromkeys(names, 1.0),
            epsilon=1e-8,
        )
        for s in range(40)
    ]
    start = time.process_time()
    for one in records:
        desk.consider(one)
    assert (time.process_time() - start) / (40 * 500) < 30e-6
