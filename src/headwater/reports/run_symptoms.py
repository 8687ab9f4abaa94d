"""Which finding of a run explains which other ones."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.records.finding import Finding

__all__ = ["explained_by", "with_symptoms"]


def explained_by(findings: Sequence[Finding]) -> list[int | None]:
    """The root of every finding.

    Args:
        findings: of a run, by step.

    Returns:
        For each the position of the finding whose code is its ``symptom_of``: of several the last one that began at its
        step or before, else the first of all. None for a finding that nothing explains, and when its root is not among
        the findings.
    """
    roots: list[int | None] = []
    for i, finding in enumerate(findings):
        same = [j for j, other in enumerate(findings) if j != i and other.code == finding.symptom_of]
        step = finding.step or 0
        before = [j for j in same if (findings[j].step or 0) <= step]
        roots.append(max(before, key=lambda j: (findings[j].step or 0, -j)) if before else same[0] if same else None)
    return roots


def with_symptoms(findings: Sequence[Finding]) -> list[tuple[Finding, Finding | None]]:
    """Findings with what explains them, symptoms right after their root.

    Args:
        findings: of a run, by step.

    Returns:
        (finding, its root or None), every finding once.
    """
    roots = explained_by(findings)
    told: list[tuple[Finding, Finding | None]] = []
    seen: set[int] = set()

    def tell(i: int, root: Finding | None) -> None:
        if i in seen:
            return
        seen.add(i)
        told.append((findings[i], root))
        for j, of in enumerate(roots):
            if of == i:
                tell(j, findings[i])

    for i, root in enumerate(roots):
        if root is None:
            tell(i, None)
    for i in range(len(findings)):  # findings that name each other in a circle
        tell(i, None)
    return told
