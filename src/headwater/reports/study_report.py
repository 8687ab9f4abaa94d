"""The report of a study: its figures beside the published ones, then what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from headwater.records.study import (
    Chart,
    MatrixView,
    Observation,
    PrintedFigure,
    StudyFinding,
    StudyResult,
    StudyTable,
    VariantResult,
)
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
    Tone,
)
from headwater.reports.marks import literal
from headwater.reports.notation import percent, power, scientific
from headwater.reports.profile_tables import layer_table
from headwater.reports.study_prescription import prescription_blocks, prescription_lines
from headwater.reports.study_verdicts import verdict_blocks, verdict_lines, verdict_sentence

__all__ = ["Matrices", "build_study_document"]

Matrices = Literal["none", "gradients", "both"]
"""Which matrices a terminal shows: none, ∂L/∂W, or W beside ∂L/∂W."""

_GROUP = 3  # networks side by side in one terminal table; three with their published figures fit 100 columns
_LONG = 12  # rows above which a table is for the page alone, and folded up there. Chosen by us.
_STATISTICS = {"mean_abs": "mean |∂L/∂W|", "l2_norm": "L2 norm of the gradient"}
_REASON_LETTERS = {"column": "c", "row": "r", "no path": "p", "disjoint": "d", "underflow": "u"}
_LEGEND = (
    "Exact zeros are marked with their cause: `0c` the unit that the weight feeds is inactive for every sample (its "
    "whole column), `0r` the unit that feeds the weight gives 0 for every sample (its whole row), `0p` no active path "
    "from the unit to the loss, `0d` no sample in which both ends are active, `0u` underflow or exact cancellation."
)


def build_study_document(result: StudyResult, *, full: bool = False, matrices: Matrices = "none") -> Document:
    """Describe a study.

    Args:
        result: the study, run.
        full: everything, pictures first, for a page; otherwise what fits a terminal.
        matrices: for a terminal: which matrices to print, where the study has any.

    Returns:
        The document.
    """
    blocks: list[Block] = [Paragraph(f"{result.question} ({result.source})", "muted")]
    if full:
        blocks += _common_findings(result)
        blocks += verdict_blocks(result)
        blocks += [Heading("Answers"), *_answers(result)]
        blocks += [_figure(result, chart) for chart in result.charts]
        blocks += [_variant_table(result, variant) for variant in result.variants]
        blocks += [_own_table(table) for table in result.tables]
        if result.observations:
            blocks.append(_observation_table(result.observations, full=True))
        blocks += prescription_blocks(result)
        blocks += _matrix_sections(result)
        blocks += _appendix(result)
    else:
        blocks += _figure_tables(result)
        blocks += _agreement(result)
        blocks += [
            _own_table(table) if len(table.rows) <= _LONG else Paragraph(f"{table.title}. {table.reading}")
            for table in result.tables
        ]
        if result.observations:
            blocks.append(_observation_table(result.observations, full=False))
        blocks += _matrix_blocks(result, matrices)
        blocks += [*verdict_lines(result), Heading("Answers", 3), *_answers(result)]
        blocks += _common_findings(result)
        blocks += prescription_lines(result)
    return Document(
        title=f"{result.name}: {result.title}",
        blocks=tuple(blocks),
        summary=verdict_sentence(result),
        facts=_facts(result),
    )


def _facts(result: StudyResult) -> tuple[tuple[str, str], ...]:
    facts = [
        ("prints", _STATISTICS.get(result.statistic, result.statistic)), ("seed", str(result.seed)),
        ("ensemble", f"{result.draws:,} networks"), ("torch", result.torch_version),
        ("took", f"{result.seconds:.1f} s"),
    ]  # fmt: skip
    if result.varied:
        facts.append(("varied", ", ".join(f"{key} {value}" for key, value in result.varied.items())))
    return tuple(facts)


def _common_findings(result: StudyResult) -> list[Block]:
    return [Callout(literal(f.text), "warning", _finding_title(f)) for f in result.findings]


def _finding_title(finding: StudyFinding) -> str:
    name = f"{finding.code} " if finding.code.startswith("HW") else ""
    return f"{name}{finding.defect}" if name else finding.defect.capitalize()


def _answers(result: StudyResult) -> list[Block]:
    return (
        [Bullets(tuple(f"**{answer.question}** {answer.text}" for answer in result.answers))] if result.answers else []
    )


# -------------------------------------------------------------------- printed figures


def _agreement(result: StudyResult) -> list[Block]:
    judged = [f for v in result.variants for f in v.figures if f.agrees is not None]
    if not judged:
        return []
    agreeing = sum(bool(f.agrees) for f in judged)
    errors = [f.relative_error for f in judged if f.relative_error is not None]
    if errors:
        text = (
            f"{agreeing} of {len(judged)} published figures are reproduced; the largest relative difference is "
            f"{scientific(max(errors))}."
        )
    else:
        text = (
            f"{agreeing} of {len(judged)} published figures, which are one unseeded run, lie inside the central 99.9 % "
            f"of {result.draws:,} fresh networks."
        )
    return [Paragraph(text)]


def _value(value: float) -> Cell:
    return Cell(scientific(value), sort=value)


def _agreement_cell(figure: PrintedFigure) -> Cell:
    tone: Tone = "plain" if figure.agrees else "critical"
    if figure.relative_error is not None:
        return Cell(scientific(figure.relative_error), sort=figure.relative_error, tone=tone)
    if figure.percentile is not None:
        return Cell(percent(figure.percentile), sort=figure.percentile, tone=tone)
    return Cell("")


def _figure_tables(result: StudyResult) -> list[Block]:
    tables: list[Block] = []
    for start in range(0, len(result.variants), _GROUP):
        group = result.variants[start : start + _GROUP]
        columns = [Column("gradient of", priority=9)]
        for variant in group:
            columns.append(Column(_head(variant.name, "ours"), align="right", priority=8))
            columns.append(Column("published", align="right", priority=6))
            seeded = any(f.relative_error is not None for f in variant.figures)
            columns.append(Column("relative\ndifference" if seeded else "draws\nbelow", align="right", priority=4))
        rows = []
        for i, first in enumerate(group[0].figures):
            row = [Cell(first.parameter)]
            for variant in group:
                figure = variant.figures[i]
                row += [_value(figure.value), Cell(figure.published_text or ""), _agreement_cell(figure)]
            rows.append(tuple(row))
        tables.append(Table(tuple(columns), tuple(rows)))
    return tables


def _head(name: str, what: str) -> str:
    return "\n".join([*name.split("-"), what])


def _variant_table(result: StudyResult, variant: VariantResult) -> Table:
    columns = (
        Column("gradient of"),
        Column(_STATISTICS.get(result.statistic, result.statistic), align="right"),
        Column("published", align="right"),
        Column("relative\ndifference", align="right"),
        Column("draws below\nthe published", align="right"),
        Column("median of\nthe draws", align="right"),
        Column("central 99.9 %\nof the draws", align="right"),
    )
    rows = [
        (
            Cell(f.parameter),
            _value(f.value),
            Cell(f.published_text or "", sort=f.published),
            Cell("" if f.relative_error is None else scientific(f.relative_error), sort=f.relative_error),
            Cell("" if f.percentile is None else percent(f.percentile), sort=f.percentile),
            Cell(_power(f.median_log10), sort=f.median_log10),
            Cell(f"{_power(f.low_log10)} to {_power(f.high_log10)}", tone="critical" if f.agrees is False else "plain"),
        )
        for f in variant.figures
    ]
    return Table(columns, tuple(rows), title=variant.title, caption=variant.description, collapsed=len(rows) > _LONG)


def _power(log10: float) -> str:
    return power(log10) if math.isfinite(log10) else "0"


# -------------------------------------------------------------------- tables, charts, observations


def _cell(value: int | float | str | None) -> Cell:
    if value is None:
        return Cell("—")
    if isinstance(value, str):
        return Cell(value)
    if isinstance(value, int):
        return Cell(f"{value:,}", sort=float(value))
    if not math.isfinite(value):
        return Cell(scientific(value))
    small = 0.0 < abs(value) < 1e-3 or abs(value) >= 1e4
    # what is left of an exact cancellation is a rounding error, not a result
    text = "0" if abs(value) < 1e-12 and not small else scientific(value) if small else f"{value:.3f}"
    return Cell(text, sort=value)


def _own_table(table: StudyTable) -> Table:
    numeric = [all(not isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]
    columns = tuple(
        Column(title, align="right" if number else "left", wrap=not number)
        for title, number in zip(table.columns, numeric, strict=True)
    )
    rows = tuple(tuple(_cell(value) for value in row) for row in table.rows)
    return Table(columns, rows, title=table.title, caption=table.reading, collapsed=len(rows) > _LONG)


def _figure(result: StudyResult, chart: Chart) -> Figure:
    def draw(template: Template) -> Any:
        from headwater.reports.study_figures import draw_chart

        return draw_chart(chart, "", template)

    drawer: Callable[[Template], Any] = draw
    return Figure(drawer, f"{result.name}: {chart.title}", chart.reading)


_OUTCOME_TONES: dict[str, Tone] = {"holds": "good", "does not hold": "warning", "undecided": "muted"}


def _observation_table(observations: Sequence[Observation], *, full: bool) -> Table:
    columns = [
        Column("observation", priority=9, wrap=True), Column("outcome", priority=8), Column("value", align="right"),
        Column("95 % interval", align="right"), Column("unit", priority=3), Column("networks", align="right", priority=4),
    ]  # fmt: skip
    rows = []
    for o in observations:
        row = [
            Cell(o.claim, hint=o.statistic), Cell(o.outcome, tone=_OUTCOME_TONES[o.outcome]), Cell(f"{o.value:.3f}"),
            Cell(f"{o.low:.3f} to {o.high:.3f}"), Cell(o.unit), Cell(f"{o.draws:,}"),
        ]  # fmt: skip
        rows.append(tuple([*row, Cell(o.sentence)] if full else row))
    if full:
        columns.append(Column("in words", wrap=True))
    return Table(tuple(columns), tuple(rows), title="What the author saw, tested over many networks")


# -------------------------------------------------------------------- matrices


def _entry(value: float, reason: str) -> str:
    return f"0{_REASON_LETTERS[reason]}" if reason else f"{value:.4g}"


def _matrix_text(view: MatrixView, weights: bool) -> str:
    gradient = [
        [_entry(value, reason) for value, reason in zip(row, reasons, strict=True)]
        for row, reasons in zip(view.gradient, view.reasons, strict=True)
    ]
    parts = [(f"∂L/∂{view.parameter}", gradient)]
    if weights:
        parts.insert(0, (view.parameter, [[f"{value:.4f}" for value in row] for row in view.weight]))
    blocks = []
    for title, rows in parts:
        size = max(len(text) for row in rows for text in row)
        lines = ["  ".join(text.rjust(size) for text in row) for row in rows]
        width = max(len(title), *map(len, lines))
        blocks.append([title.ljust(width), *(line.ljust(width) for line in lines)])
    return "\n".join("    ".join(line).rstrip() for line in zip(*blocks, strict=True))


def _matrix_blocks(result: StudyResult, matrices: Matrices) -> list[Block]:
    if matrices == "none" or not result.matrices:
        return []
    blocks: list[Block] = []
    for variant in result.variants:
        views = [view for view in result.matrices if view.variant == variant.name]
        blocks.append(Paragraph(f"**{variant.title}** (rows are {views[0].rows_are})"))
        blocks += [Code(_matrix_text(view, matrices == "both")) for view in views]
    blocks.append(Paragraph(_LEGEND, "muted"))
    return blocks


def _matrix_sections(result: StudyResult) -> list[Block]:
    sections: list[Block] = []
    for variant in result.variants:
        views = [view for view in result.matrices if view.variant == variant.name]
        if not views:
            continue
        inside: list[Block] = [Paragraph(f"Rows are {views[0].rows_are}. {_LEGEND}", "muted")]
        for view in views:
            inside += [Code(_matrix_text(view, True)), Paragraph(view.explanation, "muted")]
        title = f"{variant.title}: {len(views)} matrices beside their gradients"
        sections.append(Section(title, tuple(inside), collapsed=True))
    return sections


def _appendix(result: StudyResult) -> list[Block]:
    blocks: list[Block] = []
    for variant in result.variants:
        table = layer_table(variant.profile, True)
        blocks.append(
            Section(f"{variant.title}: full profile of this run", (Paragraph(variant.description), table), True)
        )
    if result.notes:
        blocks.append(Bullets(result.notes))
    return blocks
