"""Promises every detector keeps: it names itself, documents itself, finds its own fault, and never raises."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from tests.unit.detectors.planted import FAULTS, HEALTHY, Healthy, Planted
from tests.unit.detectors.profile_strategies import any_profile, damaged_profile

import headwater as hw
from headwater.detectors import DEFAULT_DETECTORS, Detector, diagnosis_of
from headwater.records import Profile, Severity

HEADINGS = (
    "What it finds", "Why it matters", "Evidence and threshold", "Known false alarms", "What to try", "References",
)  # fmt: skip

every_detector = pytest.mark.parametrize("detector", DEFAULT_DETECTORS, ids=lambda d: type(d).__name__)
every_fault = pytest.mark.parametrize("fault", FAULTS, ids=str)


@cache
def diagnosis(case: Planted | Healthy) -> hw.Diagnosis:
    return case.make().diagnose()


def sections(detector: Detector) -> dict[str, str]:
    """Heading to text of a detector's docstring."""
    parts = re.split(r"^\s*## (.+)$", type(detector).__doc__ or "", flags=re.MULTILINE)
    return {heading.strip(): text.strip() for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def known_names(profile: Profile) -> set[str]:
    """Every name a finding may use: rows, parameters, their aliases, and layers on the trunk."""
    names = {n for row in profile.layers for n in (row.name, *row.aliases)}
    names |= {n for row in profile.parameters for n in (row.name, *row.aliases)}
    return names | {point.layer for point in profile.trunk if point.layer}


# -------------------------------------------------------------------- what it says about itself


def test_codes_are_unique_and_these() -> None:
    # Stable: users write them into configuration. A new detector adds a line; a line never changes.
    assert {d.code: type(d).__name__ for d in DEFAULT_DETECTORS} == {
        "HW101": "VanishingGradient",
        "HW102": "ExplodingGradient",
        "HW103": "SignalCollapse",
        "HW104": "StarvedWeights",
        "HW201": "DeadUnits",
        "HW202": "SaturatedActivation",
        "HW203": "SymmetricUnits",
        "HW301": "NonFiniteValues",
        "HW302": "ZeroGradient",
        "HW303": "Underflow",
        "HW401": "VanishingInTime",
        "HW402": "ExplodingInTime",
        "HW501": "UpdateSize",
        "HW502": "LossBroadcast",
        "HW503": "LossSaturation",
    }
    assert len({d.code for d in DEFAULT_DETECTORS}) == len(DEFAULT_DETECTORS)


@every_detector
def test_is_a_frozen_dataclass_whose_fields_are_numbers(detector: Detector) -> None:
    assert dataclasses.is_dataclass(detector)
    for field in dataclasses.fields(detector):
        value = getattr(detector, field.name)
        assert isinstance(value, int | float), field.name
        assert math.isfinite(value), field.name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(detector, field.name, value)
    assert "code" not in {f.name for f in dataclasses.fields(detector)}  # a code is no threshold


@every_detector
def test_docstring_has_every_heading_in_order_with_text(detector: Detector) -> None:
    found = sections(detector)
    assert tuple(found) == HEADINGS
    assert all(len(text) > 10 for text in found.values())


@every_detector
def test_every_threshold_is_explained(detector: Detector) -> None:
    explained = sections(detector)["Evidence and threshold"] + sections(detector)["What it finds"]
    assert dataclasses.is_dataclass(detector)
    for field in dataclasses.fields(detector):
        assert f"``{field.name}``" in explained, f"{field.name} of {type(detector).__name__} is not explained"


# -------------------------------------------------------------------- its own fault, and no other network


def test_every_detector_has_a_planted_fault() -> None:
    assert {fault.code for fault in FAULTS} == {d.code for d in DEFAULT_DETECTORS}
    assert len(HEALTHY) >= 8


@every_fault
def test_fires_on_its_own_fault_at_its_place(fault: Planted) -> None:
    result = diagnosis(fault)
    own = [f for f in result.findings if f.code == fault.code]
    assert own
    assert max(f.severity.rank for f in own) >= Severity.WARNING.rank
    assert result.verdict is fault.verdict
    named = [w for f in own for w in f.where]
    for pattern in fault.place[:1]:
        assert any(fnmatch.fnmatch(name, p) for name in named for p in fault.place), (pattern, named)


@pytest.mark.parametrize("net", HEALTHY, ids=str)
def test_is_silent_on_a_healthy_network(net: Healthy) -> None:
    result = diagnosis(net)
    assert [str(f) for f in result.findings if f.severity is not Severity.INFO] == []
    assert result.ok
    result.raise_if_unhealthy("warning")


@pytest.mark.parametrize("case", [*FAULTS, *HEALTHY], ids=str)
def test_findings_are_complete(case: Planted | Healthy) -> None:
    result = diagnosis(case)
    codes = {d.code for d in DEFAULT_DETECTORS}
    for finding in result.findings:
        assert finding.code in codes
        assert finding.defect
        assert finding.severity in Severity
        assert set(finding.where) <= known_names(result.profile)
        assert len(set(finding.where)) == len(finding.where)
        assert finding.evidence
        assert all(math.isfinite(e.value) for e in finding.evidence), finding.evidence
        assert finding.cause.strip()
        assert finding.advice.strip()
        assert "nan" not in str(finding).replace("NaN", "").split()
        assert not re.search(r"\s{2,}|\.\.", str(finding)), str(finding)


@every_fault
def test_says_the_same_of_the_saved_profile(fault: Planted) -> None:
    result = diagnosis(fault)
    saved = Profile.from_json(result.profile.to_json())
    again = hw.diagnose(saved)
    assert again.verdict is result.verdict
    assert [str(f) for f in again.findings] == [str(f) for f in result.findings]
    assert again.budget == result.budget


# -------------------------------------------------------------------- on anything at all


def _must_not_raise(profile: Profile) -> None:
    for detector in DEFAULT_DETECTORS:
        for finding in detector(profile, None):
            assert all(math.isfinite(e.value) for e in finding.evidence), (detector, finding.evidence)
            assert str(finding)
    result = diagnosis_of(profile, DEFAULT_DETECTORS)
    assert not [f for f in result.findings if f.defect == "detector failed"]
    assert hw.Diagnosis.from_json(result.to_json()).to_json() == result.to_json()
    if math.isfinite(profile.loss):
        assert math.isfinite(result.budget.total_decades)


no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@given(any_profile())
@settings(no_deadline, max_examples=60)
def test_never_raises_on_a_profile_made_of_anything(profile: Profile) -> None:
    _must_not_raise(profile)


@given(damaged_profile())
@settings(no_deadline, max_examples=60)
def test_never_raises_on_a_real_profile_with_anything_replaced(profile: Profile) -> None:
    _must_not_raise(profile)


def test_never_raises_on_a_profile_of_nothing() -> None:
    from tests.profiles import profile

    nothing = profile([], [])
    _must_not_raise(nothing)
    assert hw.diagnose(nothing).ok
