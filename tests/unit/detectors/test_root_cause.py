"""From findings to one verdict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.profiles import deep_sigmoid

import headwater as hw
from headwater.detectors import DEFAULT_DETECTORS, DeadUnits, VanishingGradient, diagnosis_of
from headwater.errors import InputError
from headwater.records import Evidence, Finding, Profile, Severity

V = hw.Verdict
# What explains what, strongest first, as promised in words by docs/detectors.md.
ORDER = (
    V.NAN, V.SYMMETRIC, V.EXPLODING_IN_TIME, V.EXPLODING, V.SATURATED, V.DEAD_UNITS, V.VANISHING_IN_TIME,
    V.ZERO_GRADIENT, V.VANISHING,
)  # fmt: skip


@dataclass(frozen=True)
class Says:
    """A detector that always reports the same."""

    code: str
    verdict: hw.Verdict | None = None
    severity: Severity = Severity.CRITICAL
    where: tuple[str, ...] = ()

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        yield Finding(
            code=self.code, defect="d", severity=self.severity, verdict=self.verdict, cause="c.", advice="a.",
            evidence=(Evidence("e", 1.0),), where=self.where,
        )  # fmt: skip


@dataclass(frozen=True)
class Crashes:
    """Yields one finding, then raises."""

    code: str = "HW900"

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        yield from Says(self.code, None, Severity.INFO)(profile)
        raise ZeroDivisionError("no layers to divide by")


def _overflowing() -> Profile:
    """The forward is not finite: a NaN verdict is then the strongest."""
    return deep_sigmoid(3).replace(loss=math.nan)


def test_no_finding_is_healthy() -> None:
    result = diagnosis_of(deep_sigmoid(3), [])
    assert result.verdict is V.HEALTHY
    assert result.ok
    assert result.findings == ()
    assert result.undecided == ()


@pytest.mark.parametrize(("stronger", "weaker"), list(itertools.combinations(ORDER, 2)))
def test_the_root_cause_gives_the_verdict_and_the_other_is_its_symptom(
    stronger: hw.Verdict, weaker: hw.Verdict
) -> None:
    for detectors in itertools.permutations([Says("HW1", stronger), Says("HW2", weaker)]):
        result = diagnosis_of(_overflowing(), detectors)
        assert result.verdict is stronger
        assert [f.code for f in result.findings] == ["HW1", "HW2"]
        assert [f.symptom_of for f in result.findings] == [None, "HW1"]
        assert result.root is result.findings[0]


def test_growth_explains_a_nan_of_the_backward_alone() -> None:
    # The loss is finite: gradients that overflow are the end of the growth, not its cause.
    result = diagnosis_of(deep_sigmoid(3), [Says("HW301", V.NAN), Says("HW102", V.EXPLODING)])
    assert result.verdict is V.EXPLODING
    assert diagnosis_of(deep_sigmoid(3), [Says("HW301", V.NAN), Says("HW202", V.SATURATED)]).verdict is V.NAN


@pytest.mark.parametrize(("zeros", "verdict"), [
    (("blocks.0.weight",), V.VANISHING),  # where it vanishes anyway
    (("blocks.0.weight", "side.weight"), V.ZERO_GRADIENT),  # and one elsewhere, which no fall explains
])  # fmt: skip
def test_zeros_where_the_gradient_vanishes_are_the_end_of_that(zeros: tuple[str, ...], verdict: hw.Verdict) -> None:
    fall = Says("HW101", V.VANISHING, where=("blocks.0", "blocks.1"))
    result = diagnosis_of(deep_sigmoid(3), [Says("HW302", V.ZERO_GRADIENT, where=zeros), fall])
    assert result.verdict is verdict


def test_only_a_critical_finding_can_be_the_verdict() -> None:
    warning = Says("HW1", V.NAN, Severity.WARNING)
    result = diagnosis_of(deep_sigmoid(3), [warning, Says("HW2", V.VANISHING)])
    assert result.verdict is V.VANISHING
    assert [f.code for f in result.findings] == ["HW2", "HW1"]
    assert result.findings[1].symptom_of is None  # a warning stands for itself
    assert diagnosis_of(deep_sigmoid(3), [warning]).ok


def test_a_critical_finding_without_a_verdict_is_listed_and_decides_nothing() -> None:
    result = diagnosis_of(deep_sigmoid(3), [Says("HW1", None)])
    assert result.ok
    assert result.worst() is Severity.CRITICAL


@given(st.lists(st.sampled_from(Severity), max_size=8))
def test_findings_come_worst_first_and_none_is_lost(severities: list[Severity]) -> None:
    detectors = [Says(f"HW{i}", None, s) for i, s in enumerate(severities)]
    result = diagnosis_of(deep_sigmoid(1), detectors)
    ranks = [f.severity.rank for f in result.findings]
    assert ranks == sorted(ranks, reverse=True)
    assert sorted(f.code for f in result.findings) == sorted(d.code for d in detectors)


def test_duplicate_codes_raise_and_are_named() -> None:
    with pytest.raises(InputError, match="HW201"):
        diagnosis_of(deep_sigmoid(1), [*DEFAULT_DETECTORS, DeadUnits(warning_fraction=0.9)])
    with pytest.raises(InputError, match="HW1, HW2"):
        hw.diagnose(deep_sigmoid(1), detectors=[Says("HW2"), Says("HW1"), Says("HW2"), Says("HW1")])


def test_a_detector_that_crashes_becomes_a_visible_finding() -> None:
    result = diagnosis_of(deep_sigmoid(12), [Crashes(), VanishingGradient()])
    assert result.verdict is V.VANISHING  # nobody else's finding is lost
    (failed,) = [f for f in result.findings if f.defect == "detector failed"]
    assert failed.code == "HW900"
    assert failed.severity is Severity.WARNING
    assert "Crashes raised ZeroDivisionError: no layers to divide by" in failed.cause
    assert [f.code for f in result.findings].count("HW900") == 2  # what it found before the crash stays


def test_a_detector_that_crashes_raises_when_called_directly() -> None:
    with pytest.raises(ZeroDivisionError):
        list(Crashes()(deep_sigmoid(1)))


def test_the_forecast_reaches_every_detector() -> None:
    seen = []

    class Listens:
        code = "HW901"

        def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
            seen.append(forecast)
            return ()

    diagnosis_of(deep_sigmoid(1), [Listens()], forecast="sunny")
    assert seen == ["sunny"]
