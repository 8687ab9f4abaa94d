"""Findings as blocks of a document: the root cause, what it explains, and the others."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.records import Diagnosis, Evidence, Finding, Severity, fold_names
from headwater.reports.document import Block, Bullets, Callout, Cell, Column, Heading, Paragraph, Section, Table, Tone
from headwater.reports.marks import literal
from headwater.reports.notation import counted

__all__ = ["TONES", "count_findings", "evidence_text", "finding_cards", "finding_lines", "places"]

TONES: dict[Severity, Tone] = {Severity.CRITICAL: "critical", Severity.WARNING: "warning", Severity.INFO: "muted"}
_MARKS = {Severity.CRITICAL: "✗", Severity.WARNING: "⚠", Severity.INFO: "•"}


def places(finding: Finding, limit: int = 6) -> str:
    """Where a finding is, ranges folded.

    Args:
        finding: the record.
        limit: how many folded names are listed.

    Returns:
        Prose such as `` at `blocks.3–7` `` with its leading space, or an empty string for the model as a whole.
    """
    names = fold_names(finding.where, limit)
    if not names:
        return ""
    more = names.pop() if names[-1].startswith("and ") and len(names) > limit else ""
    return " at " + ", ".join(f"`{literal(name)}`" for name in names) + (f" {more}" if more else "")


def evidence_text(evidence: Sequence[Evidence]) -> str:
    """The numbers of a finding on one line.

    Args:
        evidence: the numbers.

    Returns:
        Prose; empty without evidence.
    """
    return "; ".join(literal(str(item)) for item in evidence)


def count_findings(findings: Sequence[Finding]) -> str:
    """How many findings of each severity there are.

    Args:
        findings: any.

    Returns:
        Such as ``1 critical finding, 2 warnings``; ``no findings`` without any.
    """
    numbers = {severity: sum(f.severity is severity for f in findings) for severity in reversed(Severity)}
    words = {Severity.CRITICAL: "critical finding", Severity.WARNING: "warning", Severity.INFO: "remark"}
    return ", ".join(counted(n, words[severity]) for severity, n in numbers.items() if n) or "no findings"


def finding_lines(diagnosis: Diagnosis) -> list[Block]:
    """The findings for a terminal: the root's evidence and advice, then what it explains, then the others.

    Args:
        diagnosis: the record.

    Returns:
        The blocks.
    """
    blocks: list[Block] = []
    root, explained, others = _ordered(diagnosis)
    if root is not None:
        blocks.append(Bullets(_details(root)))
    if root is not None and explained:
        blocks.append(Heading(f"Explained by {root.code}", 3))
        blocks.append(Bullets(tuple(f"**{_name(f)}**{places(f, 3)}. {literal(f.cause)}" for f in explained)))
    if others:
        blocks.append(Heading("Also found" if root is not None else "Found", 3))
    for finding in others:
        head = f"{_MARKS[finding.severity]} {finding.severity.value}: **{_name(finding)}**{places(finding)}."
        blocks.append(Paragraph(f"{head} {literal(finding.cause)} {literal(finding.advice)}", TONES[finding.severity]))
    return blocks


def finding_cards(diagnosis: Diagnosis) -> list[Block]:
    """The findings for a page: one card each with a table of its evidence; symptoms folded up under the root.

    Args:
        diagnosis: the record.

    Returns:
        The blocks.
    """
    root, explained, others = _ordered(diagnosis)
    blocks: list[Block] = []
    if root is not None:
        blocks += [Heading("Root cause"), *_card(root, cause=False)]  # the headline has said it
    if root is not None and explained:
        inner = [block for finding in explained for block in _card(finding)]
        title = f"{counted(len(explained), 'finding')} explained by {root.code}: {', '.join(map(_name, explained))}"
        blocks.append(Section(title, tuple(inner), collapsed=True))
    if others:
        blocks.append(Heading("Also found" if root is not None else "Found"))
        for finding in others:
            blocks += _card(finding)
    return blocks


def _ordered(diagnosis: Diagnosis) -> tuple[Finding | None, list[Finding], list[Finding]]:
    root = diagnosis.root
    rest = [f for f in diagnosis.findings if f is not root]
    explained = [f for f in rest if root is not None and f.symptom_of == root.code]
    others = sorted((f for f in rest if f not in explained), key=lambda f: -f.severity.rank)
    return root, explained, others


def _name(finding: Finding) -> str:
    return f"{literal(finding.code)} {literal(finding.defect)}"


def _details(finding: Finding) -> tuple[str, ...]:
    shown = places(finding, 20)  # the headline has the first six
    where = f"**Where:**{shown.removeprefix(' at')}" if shown != places(finding) else ""
    evidence = f"**Evidence:** {evidence_text(finding.evidence)}." if finding.evidence else ""
    return tuple(line for line in (where, evidence, f"**Try:** {literal(finding.advice)}") if line)


def _card(finding: Finding, *, cause: bool = True) -> list[Block]:
    where = f"**Where:**{places(finding, 12).removeprefix(' at')}. " if finding.where else ""
    why = f"{literal(finding.cause)} " if cause else ""
    title = f"{finding.code} {finding.defect}, {finding.severity.value}."
    blocks: list[Block] = [Callout(f"{why}{where}**Try:** {literal(finding.advice)}", TONES[finding.severity], title)]
    if finding.evidence:
        blocks.append(_evidence_table(finding.evidence))
    return blocks


def _evidence_table(evidence: Sequence[Evidence]) -> Table:
    columns = (Column("evidence", priority=9), Column("value", "right", priority=8), Column("compared with", wrap=True))
    rows = [
        (
            Cell(item.name),
            Cell(f"{item.value:.4g} {item.unit}".rstrip(), sort=item.value),
            Cell(item.reference, tone="muted"),
        )
        for item in evidence
    ]
    return Table(columns, tuple(rows))
