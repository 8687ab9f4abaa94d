"""Prescriptions as a document: what heals, what it changes, the code to paste, and why the rest was left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from headwater.records import fold_names, gradient_budget
from headwater.records.remedy import Prescription, Prescriptions
from headwater.reports.document import (
    Block,
    Bullets,
    Callout,
    Cell,
    Code,
    Column,
    Document,
    Figure,
    Heading,
    Paragraph,
    Section,
    Table,
    Template,
)
from headwater.reports.marks import literal

__all__ = ["build_prescription_document"]

_ROWS = 8  # prescriptions that a terminal lists; chosen by us
_CHANGES = 8  # changes that a terminal lists; chosen by us


def build_prescription_document(record: Prescriptions, *, full: bool = False) -> Document:
    """Describe prescriptions.

    Args:
        record: the record.
        full: everything, with pictures, for a page; otherwise what fits a terminal.

    Returns:
        The document.
    """
    blocks: list[Block] = []
    best = record.best
    if best is not None:
        if full:
            blocks += _figures(record)
        blocks.append(_table(record, full))
        blocks += _recipe(best, full)
    blocks += [Callout(literal(note), "warning") for note in record.notes if best is not None]
    if record.not_tried:
        blocks.append(_not_tried(record, full))
    if full:
        others = [Section(literal(p.name), tuple(_recipe(p, True)), collapsed=True) for p in record.items[1:]]
        blocks += [Heading("The others"), *others] if others else []
    return Document(
        title=f"Prescriptions for {record.before.model_type}",
        blocks=tuple(blocks),
        summary=_summary(record),
        facts=_facts(record),
        headline=_headline(record),
    )


def _headline(record: Prescriptions) -> Callout:
    best = record.best
    if best is None:
        if record.verdict.value == "healthy":
            return Callout("There is nothing to prescribe.", "good", "healthy")
        return Callout(literal(record.cause), "critical", f"{record.verdict.value}: no remedy could be tried")
    if best.healed:
        return Callout(
            literal(record.cause),
            "good" if best.proven else "warning",
            f"{record.verdict.value}, healed by {best.name}",
        )
    return Callout(literal(record.cause), "critical", f"{record.verdict.value}: nothing that was tried heals it")


def _summary(record: Prescriptions) -> str:
    best = record.best
    if best is None:
        return (
            "The gradient reaches the first layer."
            if record.verdict.value == "healthy"
            else "No remedy could be tried."
        )
    lead = "Recommended" if best.healed else "Nothing heals it; best attempt"
    trial = ""
    if best.trial is not None:
        trial = (
            f" After {best.trial.steps} steps of {best.trial.optimizer} the loss is {_number(best.trial.final_after)}; "
            f"unrepaired, {_number(best.trial.final_before)}."
        )
    return f"{lead}: **{literal(best.name)}**.{trial}"


def _facts(record: Prescriptions) -> tuple[tuple[str, str], ...]:
    facts = [("took", f"{record.seconds:.1f} s of {record.budget_seconds:g} s"), ("tried", str(len(record.items)))]
    first = next((p.trial for p in record.items if p.trial is not None), None)
    if first is not None:
        rate = "" if math.isnan(first.learning_rate) else f" (lr {first.learning_rate:g})"
        facts.append(("trial", f"{first.steps} steps of {first.optimizer}{rate}, seed {first.seed}"))
    if record.weights_note:
        facts.append(("weights", ("kept: " if record.keep_weights else "may be drawn anew: ") + record.weights_note))
    return tuple(facts)


def _table(record: Prescriptions, full: bool) -> Table:
    shown = record.items if full else record.items[:_ROWS]
    before = gradient_budget(record.before).total_decades
    rows = [
        [
            Cell(str(rank), sort=float(rank)),
            Cell(p.name, hint=" and ".join(p.codes)),
            Cell(p.verdict_after.value, tone="good" if p.healed else "critical"),
            _signed(gradient_budget(p.after).total_decades),
            _loss(p),
            Cell(
                f"+{p.cost.parameters_added:,}" if p.cost.parameters_added else "0", sort=float(p.cost.parameters_added)
            ),
            _ratio(p.cost.step_time_ratio),
        ]
        for rank, p in enumerate(shown, 1)
    ]
    first = next((p.trial for p in record.items if p.trial is not None), None)
    unrepaired = f"; unrepaired {_number(first.final_before)}" if first is not None else ""
    more = len(record.items) - len(shown)
    return Table.of(
        [
            Column("#", align="right"),
            Column("remedy", wrap=True, priority=9),
            Column("verdict\nafter", priority=9),
            Column("decades", align="right", hint="change of the gradient from the loss to the first layer"),
            Column("loss after\nthe trial", align="right", priority=8),
            Column("parameters\nadded", align="right", priority=3),
            Column("time per\nstep", align="right", hint="after over before, in the trial", priority=3),
        ],
        rows,
        title="What was tried, best first",
        caption=(
            f"Before: {record.verdict.value}, {before:+.1f} decades from the loss to the first layer{unrepaired}."
            + (f" {more} more." if more > 0 else "")
        ),
    )


def _signed(value: float) -> Cell:
    return Cell(f"{value:+.1f}" if math.isfinite(value) else "not finite", sort=value if math.isfinite(value) else None)


def _loss(p: Prescription) -> Cell:
    if p.trial is None:
        return Cell("not run", tone="muted")
    return Cell(_number(p.trial.final_after), tone="good" if p.trial.improved else "plain", hint=p.trial.note)


def _ratio(value: float) -> Cell:
    return Cell(f"×{value:.2f}" if math.isfinite(value) else "", sort=value if math.isfinite(value) else None)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _recipe(p: Prescription, full: bool) -> list[Block]:
    changes = p.changes if full else _short(p.changes)
    where = "in the training loop" if p.kind == "training" else "after the model is made, before the optimizer is"
    blocks: list[Block] = [
        Heading(f"{p.name}: what changes", 3),
        Bullets(tuple(literal(change) for change in changes)),
        Paragraph(f"Code to paste {where}:"),
        Code(p.code.rstrip()),
    ]
    return blocks + [Callout(literal(note), "warning", "Note") for note in p.notes]


def _short(changes: tuple[str, ...]) -> list[str]:
    """Changes that differ in their names alone on one line."""
    by_text: dict[str, list[str]] = {}
    for change in changes:
        name, separator, text = change.partition(": ")
        by_text.setdefault(separator + text, []).append(name)
    lines = [f"{', '.join(fold_names(names))}{text}" for text, names in by_text.items()]
    return [*lines[:_CHANGES], f"and {len(lines) - _CHANGES} more"] if len(lines) > _CHANGES else lines


def _not_tried(record: Prescriptions, full: bool) -> Block:
    rows: list[list[Cell | str]] = [
        [n.code, n.name, Cell(n.reason, tone="critical" if n.failed else "plain")] for n in record.not_tried
    ]
    columns = [Column("code"), Column("remedy", wrap=True), Column("why not", wrap=True)]
    if full:
        return Table.of(columns, rows, title="Not among them, and why", collapsed=True)
    failed = [n for n in record.not_tried if n.failed]
    text = f"{len(record.not_tried)} remedies are not among them ({len(failed)} failed); `.not_tried` has the reasons."
    if failed:
        text += " " + "; ".join(literal(f"{n.name}: {n.reason}") for n in failed[:3])
    return Paragraph(text, "muted")


def _figures(record: Prescriptions) -> list[Block]:
    blocks: list[Block] = [
        Figure(
            _drawer(record, "gradient"), "Gradient of every weight, before and after", "Dashed: the model as it was."
        )
    ]
    if any(p.trial is not None for p in record.items):
        blocks.append(Figure(_drawer(record, "trial"), "Loss of the trial", "Dashed: the unrepaired model."))
    return blocks


def _drawer(record: Prescriptions, what: str) -> Callable[[Template], Any]:
    def draw(template: Template) -> Any:
        from headwater.reports.prescription_figures import prescription_figure

        return prescription_figure(record, template=template, what=what)

    return draw
