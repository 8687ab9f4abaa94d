"""A diagnosis as a record: JSON, severities, raising."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.profiles import deep_sigmoid, troubled
from tests.unit.detectors.planted import FAULTS, HEALTHY, Healthy, Planted

import headwater as hw
from headwater.errors import RecordError, UnhealthyError
from headwater.records import Evidence, Finding, gradient_budget


def _finding(severity: str, verdict: hw.Verdict | None = None, code: str = "HW999") -> Finding:
    return Finding(
        code=code, defect="cold", severity=hw.Severity(severity), verdict=verdict, where=("0",), cause="Winter.",
        advice="Wait.", evidence=(Evidence("degrees", -3.0, "K", "freezing 0"),),
    )  # fmt: skip


def _diagnosis(*findings: Finding, verdict: hw.Verdict = hw.Verdict.HEALTHY) -> hw.Diagnosis:
    profile = deep_sigmoid(3)
    return hw.Diagnosis(verdict=verdict, findings=findings, budget=gradient_budget(profile), profile=profile)


@pytest.mark.parametrize("case", [FAULTS[0], FAULTS[7], FAULTS[12], HEALTHY[8]], ids=str)
def test_json_gives_the_same_diagnosis_back(case: Planted | Healthy, tmp_path: Path) -> None:
    result = case.make().diagnose()
    path = tmp_path / "diagnosis.json"
    text = result.to_json(path)
    assert hw.Diagnosis.from_json(path).to_json() == text
    back = hw.Diagnosis.from_json(text)
    assert back.verdict is result.verdict
    assert back.findings == result.findings
    assert back.budget == result.budget
    assert back.ok == result.ok


def test_json_survives_nan_everywhere() -> None:
    result = hw.diagnose(troubled())
    assert hw.Diagnosis.from_json(result.to_json()).to_json() == result.to_json()
    json.loads(result.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_json_names_its_schema_and_refuses_another() -> None:
    data = _diagnosis().to_dict()
    assert (data["schema"], data["schema_version"]) == ("headwater.diagnosis", 1)
    assert data["profile"]["schema"] == "headwater.profile"
    with pytest.raises(RecordError, match=r"headwater\.diagnosis"):
        hw.Diagnosis.from_json(deep_sigmoid(2).to_json())
    with pytest.raises(RecordError, match="newer"):
        hw.Diagnosis.from_dict({**data, "schema_version": 2})


def test_ok_is_the_verdict_and_not_the_warnings() -> None:
    assert _diagnosis(_finding("warning")).ok
    assert not _diagnosis(_finding("critical", hw.Verdict.NAN), verdict=hw.Verdict.NAN).ok


def test_root_is_the_critical_finding_of_the_verdict() -> None:
    nan, fall = _finding("critical", hw.Verdict.NAN, "HW1"), _finding("critical", hw.Verdict.VANISHING, "HW2")
    assert _diagnosis(fall, nan, verdict=hw.Verdict.NAN).root is nan
    assert _diagnosis(_finding("warning", hw.Verdict.NAN)).root is None


def test_worst_is_the_highest_severity() -> None:
    assert _diagnosis().worst() is None
    assert _diagnosis(_finding("info"), _finding("warning")).worst() is hw.Severity.WARNING


@pytest.mark.parametrize(
    ("severity", "at", "raises"),
    [
        ("critical", "critical", True), ("warning", "critical", False), ("warning", "warning", True),
        ("info", "warning", False), ("info", "info", True),
    ],
)  # fmt: skip
def test_raise_if_unhealthy_raises_from_the_given_severity_on(severity: str, at: str, raises: bool) -> None:
    result = _diagnosis(_finding(severity))
    if not raises:
        result.raise_if_unhealthy(at)
        return
    with pytest.raises(UnhealthyError, match=r"HW999 \w+: cold at 0\. Winter\. Wait\.") as caught:
        result.raise_if_unhealthy(at)
    assert caught.value.findings == result.findings
    assert isinstance(caught.value, AssertionError)  # so that a test that uses it fails rather than errors
