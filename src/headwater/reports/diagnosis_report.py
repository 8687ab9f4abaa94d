"""A diagnosis as a document: the verdict first, then its cause, the other findings, the budget and what was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headwater.records import Diagnosis, Profile, Verdict
from headwater.reports.budget_table import (
    budget_sentence,
    budget_table,
    hidden_signal,
    weight_table,
)
from headwater.reports.document import Block, Bullets, Callout, Document, Figure, Heading, Paragraph, Section, Template
from headwater.reports.finding_blocks import count_findings, finding_cards, finding_lines, places
from headwater.reports.marks import literal
from headwater.reports.notation import counted
from headwater.reports.profile_report import build_profile_document, coverage_line, profile_facts, time_blocks
from headwater.reports.profile_tables import layer_table

__all__ = ["build_diagnosis_document", "verdict_words"]

LAYER_ROWS = 12
"""Layers that the text of a diagnosis shows; ``d.profile`` shows more. Chosen by us."""
_WORDS = {
    Verdict.HEALTHY: "healthy",
    Verdict.VANISHING: "vanishing gradient",
    Verdict.EXPLODING: "exploding gradient",
    Verdict.DEAD_UNITS: "dead units",
    Verdict.SATURATED: "saturated activations",
    Verdict.SYMMETRIC: "symmetric units",
    Verdict.NAN: "NaN or infinity",
    Verdict.ZERO_GRADIENT: "zero gradient",
    Verdict.VANISHING_IN_TIME: "gradient vanishing over time",
    Verdict.EXPLODING_IN_TIME: "gradient exploding over time",
}


def verdict_words(verdict: Verdict) -> str:
    """A verdict as people say it.

    Args:
        verdict: the verdict.

    Returns:
        Such as ``vanishing gradient``.
    """
    return _WORDS[verdict]


def build_diagnosis_document(diagnosis: Diagnosis, *, full: bool = False) -> Document:
    """Describe a diagnosis.

    Args:
        diagnosis: the record.
        full: every step, layer and parameter, pictures, and a card per finding; otherwise what fits on a screen or two.

    Returns:
        The document.
    """
    profile = diagnosis.profile
    blocks: list[Block] = finding_cards(diagnosis) if full else finding_lines(diagnosis)
    if diagnosis.undecided:
        blocks += [Heading("Undecided", 3), Bullets(tuple(literal(note) for note in diagnosis.undecided))]
    in_time = diagnosis.verdict in (Verdict.VANISHING_IN_TIME, Verdict.EXPLODING_IN_TIME)
    if in_time:  # what the verdict is about comes first
        blocks += time_blocks(profile)
    blocks += _budget_blocks(diagnosis, full)
    if full:
        blocks.append(_places_figure(diagnosis))
    if not full and profile.layers:
        blocks.append(layer_table(profile, False, LAYER_ROWS))
    if not in_time:
        blocks += time_blocks(profile)
    blocks.append(coverage_line(profile))
    if full:
        measured = build_profile_document(profile, full=True)
        tables = tuple(block for block in measured.blocks if not isinstance(block, Figure | Callout))
        blocks.append(Section("What was measured", tables, collapsed=True))
    else:
        blocks += [Callout(literal(text), "warning", "Warning") for text in profile.warnings]
    return Document(
        title=f"Diagnosis of {profile.model_type}",
        blocks=tuple(blocks),
        summary=_summary(diagnosis),
        facts=_facts(profile),
        headline=_headline(diagnosis),
    )


def _facts(profile: Profile) -> tuple[tuple[str, str], ...]:
    look = profile.second_look
    second = [("second look", f"{counted(look.steps, 'step')} on a copy ({look.optimizer})")] if look else []
    return (*profile_facts(profile), *second)


def _headline(diagnosis: Diagnosis) -> Callout:
    root = diagnosis.root
    words = verdict_words(diagnosis.verdict)
    if root is not None:
        return Callout(
            literal(root.cause),
            "critical",
            f"{diagnosis.verdict.value}: {root.code} {literal(root.defect)}{places(root)}",
        )
    if diagnosis.ok:
        worst = diagnosis.worst()
        text = budget_sentence(diagnosis.budget) if diagnosis.budget.steps else ""
        if worst is not None and worst.rank > 0:
            return Callout(text, "warning", f"healthy, with {count_findings(diagnosis.findings)}")
        return Callout(text, "good", "healthy: no finding that matters")
    return Callout("", "critical", words)


def _summary(diagnosis: Diagnosis) -> str:
    root = diagnosis.root
    cause = f", root cause {root.code}{places(root, 3)}" if root is not None else ""
    text = f"Verdict: **{diagnosis.verdict.value}**{cause} ({count_findings(diagnosis.findings)})."
    if diagnosis.profile.loss_source == "probe":
        text += " No loss was given: this is the architecture and its weights, not a task."
    return text


def _budget_blocks(diagnosis: Diagnosis, full: bool) -> list[Block]:
    budget = diagnosis.budget
    if not budget.steps:
        return [Paragraph("**Gradient budget:** " + budget_sentence(budget))]
    blocks: list[Block] = []
    start = _gradient_at_the_loss(diagnosis.profile)
    if full:
        blocks.append(Heading("Where the gradient goes"))
        blocks.append(
            Figure(
                _drawer(diagnosis, "budget"),
                "The gradient budget, from the loss to the first layer",
                budget_sentence(budget),
            )
        )
        blocks.append(budget_table(budget, max_rows=None, start_log10=start, collapsed=len(budget.steps) > 20))
    else:
        blocks.append(budget_table(budget, start_log10=start))
        if not diagnosis.ok:  # a healthy headline has said it
            blocks.append(Paragraph(budget_sentence(budget)))
    hidden = hidden_signal(budget.weights)
    if hidden:
        blocks.append(Paragraph(f"**Hidden by the weight gradients:** {hidden}"))
    if budget.weights and (hidden or full):
        blocks.append(weight_table(budget.weights, max_rows=None if full else 8))
    return blocks


def _gradient_at_the_loss(profile: Profile) -> float | None:
    """log10 rms of the gradient where the budget begins."""
    seen = [point.gradient for point in profile.trunk if point.gradient is not None]
    return seen[-1].rms_log10 if seen else None


def _places_figure(diagnosis: Diagnosis) -> Block:
    if not diagnosis.profile.layers:
        return Paragraph("No layer was observed, so there is no profile to draw.", "muted")
    reading = (
        "The gradient travels from the loss, on the right, to the input, on the left. Shaded: where the root cause is. "
        "Marks along the top: where the findings are; rest the pointer on one for its name."
    )
    return Figure(_drawer(diagnosis, "profile"), "Profile with the places of the findings", reading)


def _drawer(diagnosis: Diagnosis, what: str) -> Callable[[Template], Any]:
    def draw(template: Template) -> Any:
        from headwater.reports.budget_figure import diagnosis_figure

        return diagnosis_figure(diagnosis, template=template, what=what)

    return draw
