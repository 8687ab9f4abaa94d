"""The prescription that closes a study: one item for a terminal; losses, changes and code for a page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from headwater.records import Verdict
from headwater.records.study import StudyPrescription, StudyResult
from headwater.reports.budget_table import signed
from headwater.reports.document import (
    Block,
    Bullets,
    Callout,
    Code,
    Figure,
    Heading,
    Paragraph,
    Section,
    Template,
    Tone,
)
from headwater.reports.marks import literal

__all__ = ["prescription_blocks", "prescription_lines"]

_TITLE = "Prescription"
_NOTHING = "Every network of this run is healthy: nothing needs repair."


def prescription_lines(result: StudyResult) -> list[Block]:
    """For a terminal: one item.

    Args:
        result: the study, run.

    Returns:
        A heading and the item; nothing when no prescription was asked for.
    """
    found = result.prescription
    if found is None:
        return [Heading(_TITLE, 3), Bullets((_NOTHING,))] if _all_healthy(result) else []
    item = f"**{_head(result, found)}.** {_text(found)}"
    return [Heading(_TITLE, 3), Bullets((item,))]


def prescription_blocks(result: StudyResult) -> list[Block]:
    """For a page: a callout, the losses of the trial, and folded up the changes with the code.

    Args:
        result: the study, run.

    Returns:
        The blocks; none when no prescription was asked for.
    """
    found = result.prescription
    if found is None:
        return [Heading(_TITLE), Paragraph(_NOTHING)] if _all_healthy(result) else []
    tone: Tone = "critical" if not found.healed else "good" if not found.notes else "warning"
    blocks: list[Block] = [Heading(_TITLE), Callout(_text(found), tone, _head(result, found))]
    if found.losses_before and found.losses_after:
        blocks.append(Figure(_drawer(found), f"{result.name}: loss of the trial", "Dashed: the unrepaired network."))
    if found.code:
        inside = (Bullets(tuple(map(literal, found.changes))), Code(found.code.rstrip()))
        blocks.append(Section(f"{literal(found.remedy)}: changes and code", inside, True))
    return blocks


def _all_healthy(result: StudyResult) -> bool:
    return all(v.verdict is Verdict.HEALTHY for v in result.variants)


def _head(result: StudyResult, found: StudyPrescription) -> str:
    title = f"{literal(result.variant(found.variant).title)}: {_words(found.verdict_before)}"
    if not found.remedy:
        return f"{title}, no remedy could be tried"
    if found.healed:
        return f"{title}, healed by {literal(found.remedy)}"
    return f"{title}, and none of {found.tried} repairs tried heals it"


def _words(verdict: Verdict) -> str:
    return verdict.value.replace("_", " ")


def _text(found: StudyPrescription) -> str:
    """The change of the gradient and of the loss, then the notes; first the notes where they say that nothing heals it."""
    measured = [text for text in (_change(found), _trial(found)) if text] if found.remedy else []
    notes = [literal(note) for note in found.notes]
    return " ".join([*measured, *notes] if found.healed else [*notes, *measured])


def _change(found: StudyPrescription) -> str:
    before, after = found.decades_before, found.decades_after
    if before is None and after is None:
        return ""
    was = "does not arrive whole" if before is None else f"changes by {signed(before)} decades"
    now = "does not arrive whole" if after is None else f"by {signed(after)}"
    return f"From the loss to the first layer the gradient {was} before, and {now} after the repair."


def _trial(found: StudyPrescription) -> str:
    if not found.losses_before or not found.losses_after:
        return "No trial was run: the time was spent before it."
    rate = "" if math.isnan(found.learning_rate) else f" (lr {found.learning_rate:g})"
    return (
        f"After {len(found.losses_after) - 1} steps of {literal(found.optimizer)}{rate} on the one batch the loss is "
        f"{found.losses_after[-1]:.4g}, from {found.losses_after[0]:.4g}; unrepaired {found.losses_before[-1]:.4g}, from "
        f"{found.losses_before[0]:.4g}."
    )


def _drawer(found: StudyPrescription) -> Callable[[Template], Any]:
    def draw(template: Template) -> Any:
        from headwater.reports.study_figures import draw_trial

        return draw_trial(found, template)

    return draw
