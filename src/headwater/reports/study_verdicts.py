"""The verdict on each network of a study: a line each for a terminal, callouts and budgets for a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from headwater.records import Diagnosis, Finding, Severity, Verdict
from headwater.records.study import StudyResult, VariantResult
from headwater.reports.budget_table import budget_sentence, signed
from headwater.reports.document import Block, Bullets, Callout, Figure, Heading, Section, Template, Tone
from headwater.reports.finding_blocks import count_findings, finding_cards, places
from headwater.reports.marks import literal

__all__ = ["verdict_blocks", "verdict_lines", "verdict_sentence"]

_DIGITS = re.compile(r"\d+")


def verdict_lines(result: StudyResult) -> list[Block]:
    """For a terminal: the verdict on each network, with the root finding's place and cause.

    Args:
        result: the study, run.

    Returns:
        A heading and one item per network.
    """
    lines = [
        " ".join([f"**{literal(_head(variant))}**{_further(variant)}.", *_sentences(result, variant)])
        for variant in result.variants
    ]
    return [Heading("Verdicts, from one backward pass each", 3), Bullets(tuple(lines))]


def verdict_blocks(result: StudyResult) -> list[Block]:
    """For a page: a callout per network; under it, folded up, its gradient budget and the evidence.

    Args:
        result: the study, run.

    Returns:
        The blocks.
    """
    blocks: list[Block] = [Heading("Verdicts, from one backward pass each")]
    for variant in result.variants:
        text = " ".join(_sentences(result, variant))
        root = variant.diagnosis.root
        if root is not None:
            text += f" **Try:** {literal(root.advice)}"
        further = _further(variant).removeprefix(" (").removesuffix(")")
        text += f" {further[:1].upper()}{further[1:]}." if further else ""
        blocks.append(Callout(text, _tone(result, variant), _head(variant)))
        blocks += _details(result, variant)
    return blocks


def verdict_sentence(result: StudyResult) -> str:
    """The verdict of every network and the rate of its gradient in one sentence.

    Args:
        result: the study, run.

    Returns:
        Prose.
    """
    parts, rated = [], False
    for variant in result.variants:
        trend = variant.trend("∂L/∂h")
        rated = rated or trend is not None
        rate = "" if trend is None else f" ({signed(trend.decades_per_layer)})"
        parts.append(f"{literal(variant.title)} **{_words(variant.verdict)}**{rate}")
    lead = "Verdicts" if len(parts) > 1 else "Verdict"
    what = ", and the decades per layer that ∂L/∂h gains on its way to the input" if rated else ""
    return f"{lead}{what}: {'; '.join(parts)}."


def _words(verdict: Verdict | str) -> str:
    return Verdict(verdict).value.replace("_", " ")


def _head(variant: VariantResult) -> str:
    return f"{variant.title}: {_words(variant.verdict)}"


def _own_findings(result: StudyResult, variant: VariantResult) -> tuple[Finding, ...]:
    """The findings on this network that the study does not tell once for all."""
    common: Collection[str] = {f.code for f in result.findings if variant.name in f.where}
    return tuple(f for f in variant.findings if f.code not in common)


def _tone(result: StudyResult, variant: VariantResult) -> Tone:
    if variant.verdict is not Verdict.HEALTHY:
        return "critical"
    return "warning" if any(f.severity.rank > 0 for f in _own_findings(result, variant)) else "good"


def _further(variant: VariantResult) -> str:
    """How the networks drawn after this one are called."""
    counts = dict(variant.further_verdicts)
    total = sum(counts.values())
    if not total:
        return ""
    same = counts.pop(variant.verdict.value, 0)
    if not counts:
        return f" (like all {total} further networks)"
    others = ", ".join(f"{count} {_words(name)}" for name, count in counts.items())
    return f" (like {same or 'none'} of {total} further networks; {others})"


def _sentences(result: StudyResult, variant: VariantResult) -> list[str]:
    """Root finding, or the budget of a healthy network; then the warnings, and what was left undecided."""
    diagnosis = variant.diagnosis
    root = diagnosis.root
    found = [f"{_named(root)}. {literal(root.cause)}"] if root is not None else [budget_sentence(diagnosis.budget)]
    found += [
        f"{finding.severity.value.capitalize()}: {_named(finding)}. {literal(finding.cause)}"
        for finding in _own_findings(result, variant)
        if finding is not root and finding.severity is not Severity.INFO and finding.symptom_of is None
    ]
    return [*found, *map(literal, variant.undecided)]


def _named(finding: Finding) -> str:
    return f"{literal(finding.code)} {literal(finding.defect)}{places(_gathered(finding), 4)}"


def _gathered(finding: Finding) -> Finding:
    """The same places in an order that folds: ``fc1, act1, fc2, act2`` as ``fc1, fc2, act1, act2``."""
    patterns = list(dict.fromkeys(_DIGITS.sub("#", name) for name in finding.where))
    where = sorted(finding.where, key=lambda name: patterns.index(_DIGITS.sub("#", name)))
    return replace(finding, where=tuple(where))


def _details(result: StudyResult, variant: VariantResult) -> list[Block]:
    """Budget and evidence of one network, folded up; of the only network, the budget is in sight."""
    diagnosis = variant.diagnosis
    own = _own_findings(result, variant)
    budget: list[Block] = []
    if len(diagnosis.budget.steps) > 1:
        title = f"{variant.title}: the gradient budget"
        budget.append(Figure(_drawer(diagnosis, title), title, budget_sentence(diagnosis.budget)))
    cards = finding_cards(replace(diagnosis, findings=tuple(map(_gathered, own))))
    if len(result.variants) == 1:
        folded = (
            [Section(f"{variant.title}: {count_findings(own)}, with evidence", tuple(cards), True)] if cards else []
        )
        return [*budget, *folded]
    if not budget and not cards:
        return []
    title = f"{variant.title}: {'gradient budget, ' * bool(budget)}{count_findings(own)}"
    return [Section(title, (*budget, *cards), True)]


def _drawer(diagnosis: Diagnosis, title: str) -> Callable[[Template], Any]:
    def draw(template: Template) -> Any:
        from headwater.reports.budget_figure import budget_figure

        return budget_figure(diagnosis.budget, title=title, template=template)

    return draw
