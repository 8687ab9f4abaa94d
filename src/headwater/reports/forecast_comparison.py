"""A forecast beside a measurement, as a document."""

from __future__ import annotations

import math
from typing import Any

from headwater.records.comparison import Comparison, ComparisonRow
from headwater.records.finding import Finding
from headwater.reports.document import (
    Block,
    Bullets,
    Callout,
    Cell,
    Column,
    Document,
    Figure,
    Paragraph,
    Table,
    Template,
)
from headwater.reports.finding_blocks import evidence_text, places
from headwater.reports.folding import MAX_ROWS, Fold, fold_rows
from headwater.reports.marks import literal
from headwater.reports.notation import counted

__all__ = ["build_comparison_document"]

_NAMED = 5  # names that a line lists; chosen by us


def build_comparison_document(comparison: Comparison, *, full: bool = False) -> Document:
    """Describe a forecast held against a measurement.

    Args:
        comparison: the record.
        full: list every layer and draw the picture; otherwise repeated blocks are folded above 60 layers.

    Returns:
        The document.
    """

    def draw(template: Template) -> Any:
        from headwater.reports.forecast_figure import comparison_figure

        return comparison_figure(comparison, template=template)

    blocks: list[Block] = []
    if comparison.rows:
        if full:
            title = "Gradient along the layers, forecast and measured"
            blocks.append(Figure(draw, title, comparison.sentence()))
        blocks.append(_comparison_table(comparison, full))
    blocks.append(_errors_line(comparison))
    for finding in comparison.findings:
        blocks += _finding_blocks(finding)
    if comparison.outside and not comparison.findings:
        named = ", ".join(f"`{literal(name)}`" for name in comparison.outside[:_NAMED])
        more = f" and {len(comparison.outside) - _NAMED} more" if len(comparison.outside) > _NAMED else ""
        what = f"{counted(len(comparison.outside), 'trunk layer')}, the one nearest the loss first: {named}{more}."
        blocks.append(Callout(what, "warning", "Outside the band"))
    if comparison.unmatched:
        named = ", ".join(f"`{literal(name)}`" for name in comparison.unmatched[:_NAMED])
        more = f" and {len(comparison.unmatched) - _NAMED} more" if len(comparison.unmatched) > _NAMED else ""
        blocks.append(Paragraph(f"**Without a forecast:** {named}{more}."))
    return Document(title="Forecast and measurement", blocks=tuple(blocks), summary=comparison.sentence())


def _finding_blocks(finding: Finding) -> list[Block]:
    head = f"⚠ {finding.severity.value}: **{finding.code} {finding.defect}**{places(finding)}."
    lines = (f"**Evidence:** {evidence_text(finding.evidence)}.", f"**Try:** {literal(finding.advice)}")
    return [Paragraph(f"{head} {literal(finding.cause)}", "warning"), Bullets(lines)]


def _errors_line(comparison: Comparison) -> Block:
    parts = [
        f"{value:.3f} {what}"
        for value, what in (
            (comparison.rms_error_decades, "along the trunk"),
            (comparison.branch_error_decades, "on branches"),
            (comparison.weight_error_decades, "of the parameters' gradients"),
            (comparison.time_error_decades, "over time steps"),
        )
        if not math.isnan(value)
    ]
    return Paragraph(f"**RMS error, decades:** {', '.join(parts) or 'nothing in common'}.")


def _comparison_table(comparison: Comparison, full: bool) -> Table:
    def kind(row: ComparisonRow) -> str:
        return "outside" if row.outside else ""  # a layer outside the band is never folded among those inside

    rows = fold_rows(comparison.rows, lambda row: row.name.replace(":", "."), kind, None if full else MAX_ROWS)
    branches = any(row.on_trunk for row in comparison.rows) and not all(row.on_trunk for row in comparison.rows)
    caption = (
        "log10 of the gradient rms relative to the last trunk layer, in decades; layers in execution order. Outside: they "
        "differ by more than three standard deviations between draws and 0.1 decades."
    )
    if any(isinstance(row, Fold) for row in rows):
        caption += f" Some of the {len(comparison.rows)} layers are folded: the one that differs most is shown."
    return Table(
        (
            *([Column("┃", priority=9, hint="on the trunk")] if branches else []),
            Column("layer", priority=9, shrink=True),
            Column("forecast\ndec.", "right", "forecast, decades", 8),
            Column("measured\ndec.", "right", "measured, decades", 8),
            Column("±\ndec.", "right", "standard deviation between draws that the theory allows", 5),
            Column("difference\ndec.", "right", "measured minus forecast", 7),
            Column("", priority=6),
        ),
        tuple(_comparison_row(row, branches, number) for number, row in enumerate(rows)),
        title=counted(len(comparison.rows), "layer"),
        caption=caption,
        collapsed=full and len(rows) > MAX_ROWS,
    )


def _comparison_row(row: ComparisonRow | Fold[ComparisonRow], branches: bool, number: int) -> tuple[Cell, ...]:
    members = row.rows if isinstance(row, Fold) else (row,)
    worst = max(members, key=lambda r: (r.outside, abs(r.difference_decades)))
    on_trunk = any(r.on_trunk for r in members)
    outside = sum(r.outside for r in members)
    note = "" if not outside else "outside" if len(members) == 1 else f"{outside} outside"
    return (
        *([Cell("┃" if on_trunk else "")] if branches else []),
        Cell(row.label if isinstance(row, Fold) else row.name, sort=number),
        Cell(_signed(worst.forecast_log10), sort=worst.forecast_log10),
        Cell(_signed(worst.measured_log10), sort=worst.measured_log10),
        Cell(f"{worst.band_decades:.2g}", sort=worst.band_decades),
        Cell(_signed(worst.difference_decades), sort=worst.difference_decades),
        Cell(note, tone="warning" if outside else "plain"),
    )


def _signed(value: float) -> str:
    text = f"{abs(value):.3f}"
    return text if float(text) == 0.0 else f"{'−' if value < 0 else '+'}{text}"
