"""Records shown to people: text for a terminal, HTML for a notebook or a page, interactive figures.

Reports read records alone, so they work on a saved file without a model or a GPU. rich, plotly and jinja2 are
imported when something is shown, not before.

A new kind of record needs two entries: a builder in :data:`DOCUMENTS` (record in, :class:`~headwater.reports.document.
Document` out) and, when it has a picture, one in :data:`FIGURES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from headwater.errors import InputError
from headwater.reports.document import Document, Template

if TYPE_CHECKING:
    from headwater.reports.text import RichDocument

__all__ = ["DOCUMENTS", "FIGURES", "document_of", "to_figure", "to_html_fragment", "to_html_page", "to_rich", "to_text"]

DOCUMENTS: Mapping[str, str] = {
    "headwater.records.profile.Profile": "headwater.reports.profile_report:build_profile_document",
    "headwater.records.initialization.InitializationReport": (
        "headwater.reports.initialization_report:build_initialization_document"
    ),
    "headwater.records.study.StudyResult": "headwater.reports.study_report:build_study_document",
    "headwater.records.phase.PhaseDiagram": "headwater.reports.phase_report:build_phase_document",
    "headwater.records.phase.ActivationTable": "headwater.reports.phase_report:build_activation_document",
    "headwater.records.diagnosis.Diagnosis": "headwater.reports.diagnosis_report:build_diagnosis_document",
    "headwater.records.forecast.Forecast": "headwater.reports.forecast_report:build_forecast_document",
    "headwater.records.comparison.Comparison": "headwater.reports.forecast_comparison:build_comparison_document",
    "headwater.records.remedy.Prescriptions": "headwater.reports.prescription_report:build_prescription_document",
    "headwater.records.run_summary.RunSummary": "headwater.reports.run_report:build_run_summary_document",
    "headwater.reports.run_view.RunView": "headwater.reports.run_report:build_run_document",
    "headwater.store.reader.Run": "headwater.reports.run_report:build_run_document",
    "headwater.records.run_comparison.RunComparison": (
        "headwater.reports.run_comparison_report:build_run_comparison_document"
    ),
}
"""Type of record to ``module:function`` that builds its document: ``build(record, *, full=False) -> Document``."""

FIGURES: Mapping[str, str] = {
    "headwater.records.profile.Profile": "headwater.reports.profile_figures:profile_figure",
    "headwater.records.initialization.InitializationReport": (
        "headwater.reports.initialization_report:initialization_figure"
    ),
    "headwater.records.study.StudyResult": "headwater.reports.study_figures:study_figure",
    "headwater.records.phase.PhaseDiagram": "headwater.reports.phase_figure:phase_figure",
    "headwater.records.diagnosis.Diagnosis": "headwater.reports.budget_figure:diagnosis_figure",
    "headwater.records.forecast.Forecast": "headwater.reports.forecast_figure:forecast_figure",
    "headwater.records.comparison.Comparison": "headwater.reports.forecast_figure:comparison_figure",
    "headwater.records.remedy.Prescriptions": "headwater.reports.prescription_figures:prescription_figure",
    "headwater.reports.run_view.RunView": "headwater.reports.run_figures:run_figure",
    "headwater.store.reader.Run": "headwater.reports.run_figures:run_figure",
    "headwater.records.run_comparison.RunComparison": "headwater.reports.run_comparison_report:run_comparison_figure",
}
"""Type of record to ``module:function`` that draws it: ``draw(record, *, template="dark", **options) -> Figure``."""


def _resolve(table: Mapping[str, str], record: object, what: str) -> Any:
    for cls in type(record).__mro__:
        target = table.get(f"{cls.__module__}.{cls.__qualname__}")
        if target is not None:
            module, name = target.split(":")
            return getattr(importlib.import_module(module), name)
    known = ", ".join(sorted(name.rsplit(".", 1)[-1] for name in table))
    raise InputError(f"no {what} for a {type(record).__name__}; headwater shows {known}")


def document_of(record: object, *, full: bool = False) -> Document:
    """Turn a record into a document.

    Args:
        record: a headwater record, or a document (returned as it is).
        full: list everything instead of folding repeated blocks.

    Returns:
        The document.

    Raises:
        InputError: no builder is known for this type.
    """
    if isinstance(record, Document):
        return record
    document: Document = _resolve(DOCUMENTS, record, "report")(record, full=full)
    return document


def to_rich(record: object, *, full: bool = False, ascii_only: bool | None = None) -> RichDocument:
    """A rich renderable that adapts to the width and the encoding of its console.

    Args:
        record: a headwater record or a document.
        full: list everything instead of folding repeated blocks.
        ascii_only: draw with ASCII characters alone; None asks the console's encoding.

    Returns:
        What ``rich.console.Console.print`` takes.
    """
    from headwater.reports.text import RichDocument

    return RichDocument(document_of(record, full=full), ascii_only=ascii_only)


def to_text(
    record: object,
    *,
    width: int | None = None,
    color: bool = False,
    full: bool = False,
    ascii_only: bool | None = None,
) -> str:
    """Text for a terminal or a log file.

    Args:
        record: a headwater record or a document.
        width: characters per line; None takes the terminal's (60 to 140), or 100 where there is none.
        color: add ANSI colours.
        full: list everything instead of folding repeated blocks.
        ascii_only: draw with ASCII characters alone; None asks the encoding of standard output.

    Returns:
        The text, without a line break at its end.
    """
    from headwater.reports.text import render_text

    return render_text(document_of(record, full=full), width=width, color=color, ascii_only=ascii_only)


def to_html_fragment(record: object) -> str:
    """A small piece of HTML for a notebook: the table and the sentence, no script and no picture.

    Args:
        record: a headwater record or a document.

    Returns:
        HTML that follows the notebook's colours.
    """
    from headwater.reports.html import render_fragment

    return render_fragment(document_of(record))


def to_html_page(record_or_sections: object, *, title: str | None = None, intro: str = "") -> str:
    """One HTML file that works offline: pictures, tables, everything inside.

    Args:
        record_or_sections: a record, a document, or several of them, which become the parts of one page.
        title: of the page; None takes that of the first document.
        intro: prose at the top of a page of several parts.

    Returns:
        The text of the file.

    Raises:
        InputError: there is nothing to show, or no report for one of the types.
    """
    from headwater.reports.html import render_page

    several = isinstance(record_or_sections, Iterable) and not isinstance(record_or_sections, str | bytes | Mapping)
    parts: list[object] = list(record_or_sections) if several else [record_or_sections]  # type: ignore[call-overload]
    if not parts:
        raise InputError("a page needs at least one record or document")
    documents = [document_of(part, full=True) for part in parts]
    return render_page(documents, title=title or documents[0].title, intro=intro)


def to_figure(record: object, *, template: Template = "dark", **options: Any) -> Any:
    """Draw a record.

    Args:
        record: a headwater record.
        template: ``dark`` or ``light``.
        **options: what the figure of this record takes.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: no figure is known for this type, or an option is unknown.
    """
    if template not in ("dark", "light"):
        raise InputError(f"template is {template!r}; it can be 'dark' or 'light'")
    return _resolve(FIGURES, record, "figure")(record, template=template, **options)
