"""From findings to one verdict: the root cause, not its symptom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headwater.detectors.neighbours import behind_function
from headwater.detectors.protocol import Detector
from headwater.errors import InputError
from headwater.records import Diagnosis, Finding, Profile, Severity, Verdict, gradient_budget

__all__ = ["diagnosis_of"]

# Which explains which, strongest first. A NaN hides every other number. Copies of one unit, whatever their weights,
# shrink or grow the gradient of the layer. A forward that explodes saturates what it meets, so a growing gradient comes
# before saturation; a saturated or dead layer lets nothing pass, so it comes before zero gradients and the fall over
# depth. Underflow is a fall over depth (or time) that met the end of the dtype.
_ORDER = (
    Verdict.NAN,
    Verdict.SYMMETRIC,
    Verdict.EXPLODING_IN_TIME,
    Verdict.EXPLODING,
    Verdict.SATURATED,
    Verdict.DEAD_UNITS,
    Verdict.VANISHING_IN_TIME,
    Verdict.ZERO_GRADIENT,
    Verdict.VANISHING,
)


def _places(profile: Profile, where: Sequence[str]) -> tuple[str, ...]:
    """Names people can look up: a function's row is followed by the modules and parameters around it."""
    return tuple(dict.fromkeys(name for place in where for name in (place, *behind_function(profile, place))))


def _covers(places: Sequence[str], names: Sequence[str]) -> bool:
    """Whether every name is one of the places, or belongs to one."""
    return bool(names) and all(any(name == place or name.startswith(f"{place}.") for place in places) for name in names)


def diagnosis_of(
    profile: Profile,
    detectors: Sequence[Detector],
    forecast: Any | None = None,
    undecided: Sequence[str] = (),
) -> Diagnosis:
    """Run detectors over a profile and decide which finding is the root cause.

    Args:
        profile: what was measured.
        detectors: objects with a ``code`` and one call.
        forecast: what theory predicts, or None.
        undecided: what could not be settled, in words.

    Returns:
        The diagnosis.

    Raises:
        InputError: two detectors share a code.
    """
    codes = [d.code for d in detectors]
    twice = sorted({c for c in codes if codes.count(c) > 1})
    if twice:
        raise InputError(f"two detectors share the code {', '.join(twice)}: give each its own")
    findings: list[Finding] = []
    for detector in detectors:
        try:
            findings.extend(detector(profile, forecast))
        except Exception as error:  # one detector's fault must not lose the others' findings: it becomes a visible one
            findings.append(
                Finding(
                    code=detector.code,
                    defect="detector failed",
                    severity=Severity.WARNING,
                    cause=f"{type(detector).__name__} raised {type(error).__name__}: {error}",
                    advice="Call the detector directly on the profile to see the traceback, and report it.",
                )
            )
    findings = [replace(f, where=_places(profile, f.where)) for f in findings]
    candidates = [f for f in findings if f.severity is Severity.CRITICAL and f.verdict is not None]
    # Of equals the first wins: an explosion before its overflow.
    candidates.sort(key=lambda f: f.verdict is Verdict.NAN)
    root = min(candidates, key=lambda f: _rank(f, profile, candidates), default=None)
    verdict = Verdict.HEALTHY if root is None or root.verdict is None else root.verdict
    ordered = sorted(findings, key=lambda f: (f is not root, -f.severity.rank))
    if root is not None:
        ordered = [
            replace(f, symptom_of=root.code)
            if f is not root and f.verdict is not None and f.severity is Severity.CRITICAL
            else f
            for f in ordered
        ]
    return Diagnosis(
        verdict=verdict,
        findings=tuple(ordered),
        budget=gradient_budget(profile),
        profile=profile,
        undecided=tuple(undecided),
    )


def _rank(finding: Finding, profile: Profile, candidates: Sequence[Finding]) -> int:
    assert finding.verdict is not None
    if finding.verdict is Verdict.ZERO_GRADIENT and any(
        f.verdict is Verdict.VANISHING and _covers(f.where, finding.where) for f in candidates
    ):
        return len(_ORDER)  # zeros where the gradient fades anyway are the end of that
    if finding.verdict is Verdict.NAN and math.isfinite(profile.loss):
        # The forward is finite and only gradients overflow: where they grew to that, the growth is the cause.
        return _ORDER.index(Verdict.EXPLODING)
    return _ORDER.index(finding.verdict)
