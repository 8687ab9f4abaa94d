"""How a model was initialised, as a document and as a figure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from headwater.errors import InputError
from headwater.records.initialization import InitializationReport, WeightInitialization
from headwater.reports.document import Block, Cell, Column, Document, Figure, Paragraph, Section, Table, Template, Tone
from headwater.reports.folding import MAX_ROWS, Fold, fold_rows
from headwater.reports.notation import counted, decades, factor, shape_text

__all__ = ["build_initialization_document", "initialization_figure"]

_NOTABLE_DECADES = 0.3  # a factor of 2 in one layer is coloured; chosen by us


def build_initialization_document(report: InitializationReport, *, full: bool = False) -> Document:
    """Describe the initial weights of a model.

    Args:
        report: the record.
        full: list every weight and every bias; otherwise repeated blocks are folded above 60 weights.

    Returns:
        The document.
    """
    blocks: list[Block] = []
    if report.rows:
        blocks.append(
            Figure(
                lambda template: initialization_figure(report, template=template),
                f"Initial weight variance of {report.model_type}",
                "Where the measured σ_w² lies under a marked value, that direction loses signal in this layer; above, "
                "it gains." if full else "",
            )
        )  # fmt: skip
        blocks.append(_weight_table(report.rows, full))
        blocks += _notes(report.rows)
    if report.biases:
        blocks.append(_bias_table(report) if full else Paragraph(_bias_line(report)))
    if report.skipped:
        reasons = Counter(report.skipped.values())
        listed = "; ".join(f"{reason}: {count}" for reason, count in reasons.items())
        blocks.append(Paragraph(f"**Not explained:** {listed}.", "muted"))
    if full:
        blocks.append(_method(report))
    return Document(
        title=f"Initial weights of {report.model_type}",
        blocks=tuple(blocks),
        summary=_read(report.rows),
        facts=(("torch", report.torch_version), ("headwater", report.headwater_version)),
    )


def _read(rows: Sequence[WeightInitialization]) -> str:
    if not rows:
        return "This model has no weights to explain."
    name, count = Counter(row.initializer for row in rows).most_common(1)[0]
    text = f"{count} of {len(rows)} weights: {name}." if len(rows) > 1 else f"One weight: {name}."
    known = sorted(d for row in rows if (d := row.backward_decades) is not None)
    if not known:
        return text
    middle = statistics.median(known)
    if math.isinf(middle):
        return f"{text} {'The median layer' if len(known) > 1 else 'It'} lets no gradient through."
    subject = "The median layer multiplies" if len(known) > 1 else "It multiplies"
    text += f" {subject} the rms of the gradient by {factor(middle).lstrip('×')} ({decades(middle)})."
    worst = max(
        (row for row in rows if row.backward_decades is not None), key=lambda row: abs(row.backward_decades or 0.0)
    )
    change = worst.backward_decades or 0.0
    if abs(change) >= _NOTABLE_DECADES and abs(change - middle) >= _NOTABLE_DECADES:
        text += f" The furthest from keeping it is `{worst.name}`" + (
            f": {decades(change)}." if math.isfinite(change) else ", which lets nothing through."
        )
    return text


def _number(value: float | None, digits: int = 3) -> Cell:
    if value is None:
        return Cell("-", tone="muted")
    if math.isinf(value) or math.isnan(value):
        return Cell("inf" if value > 0 else "-inf" if value < 0 else "NaN", sort=None if math.isnan(value) else value)
    return Cell(f"{value:.{digits}g}", sort=value)


def _range(values: Sequence[float | None]) -> Cell:
    known = [v for v in values if v is not None]
    if not known:
        return Cell("-", tone="muted")
    low, high = _number(min(known)), _number(max(known))
    return low if low.text == high.text else Cell(f"{low.text}..{high.text}", sort=low.sort)


def _change(values: Sequence[float | None]) -> Cell:
    """Signed decades of one or several layers."""
    known = [v for v in values if v is not None]
    if not known:
        return Cell("-", tone="muted", hint="cannot be told from the weights alone")
    worst = max(known, key=abs)
    texts = [_signed(v) for v in (min(known), max(known))]
    tone: Tone = "warning" if abs(worst) >= _NOTABLE_DECADES else "plain"
    return Cell(texts[0] if texts[0] == texts[1] else "..".join(texts), sort=max(worst, -1e9), tone=tone)


def _signed(value: float) -> str:
    if math.isinf(value):
        return "−inf" if value < 0 else "+inf"
    if value == 0.0:
        return "0"
    return (f"{value:+.2f}" if abs(value) >= 0.095 else f"{value:+.1g}").replace("-", "−")


def _weight_table(rows: Sequence[WeightInitialization], full: bool) -> Table:
    listed = fold_rows(rows, lambda row: row.name, lambda row: row.layer_type, None if full else MAX_ROWS)
    columns = (
        Column("weight", priority=9, shrink=True),
        Column("layer\ntype", priority=2, shrink=True),
        *([Column("shape", priority=1)] if full else []),
        Column("fan_in", "right", "inputs that one output sums over", 3),
        Column("std", "right", "standard deviation of the values", 5),
        Column("σ_w²", "right", "fan_in · Var(W), dimensionless", 6),
        Column("keeps\nsignal", "right", "the σ_w² that would keep the forward signal", 4),
        Column("keeps\ngradient", "right", "the σ_w² that would keep the gradient", 4),
        Column("signal\ndecades", "right", "log10 of the rms after this layer over before", 7),
        Column("gradient\ndecades", "right", "log10 of the rms of ∂L/∂input over ∂L/∂output", 8),
        Column("then", priority=2, shrink=True, hint="the activation that follows"),
        Column("initialiser", priority=7, wrap=True, min_width=28),
        *([Column("shape of\nthe values", priority=1)] if full else []),
    )
    cells = []
    for order, entry in enumerate(listed):
        group = entry.rows if isinstance(entry, Fold) else (entry,)
        first = group[0]
        initializers = list(dict.fromkeys(row.initializer for row in group))
        name = entry.label if isinstance(entry, Fold) else first.name
        tied = f" (= {', '.join(first.aliases)})" if first.aliases and len(group) == 1 else ""
        cells.append(
            (
                Cell(name + tied, sort=order, hint="; ".join(first.notes) if len(group) == 1 else ""),
                Cell(entry.type if isinstance(entry, Fold) else first.layer_type, tone="muted"),
                *([Cell(shape_text(first.shape), tone="muted")] if full else []),
                _range([row.fan_in for row in group]),
                _range([row.std for row in group]),
                _range([row.weight_variance for row in group]),
                _range([row.forward_weight_variance for row in group]),
                _range([row.backward_weight_variance for row in group]),
                _change([row.forward_decades for row in group]),
                _change([row.backward_decades for row in group]),
                Cell("/".join(dict.fromkeys(row.activation or "-" for row in group)), tone="muted"),
                Cell(
                    ", ".join(initializers[:3]) + (" …" if len(initializers) > 3 else ""),
                    hint=f"fits as well: {', '.join(first.also)}" if first.also and len(group) == 1 else "",
                ),
                *([Cell(first.distribution, tone="muted")] if full else []),
            )
        )
    caption = (
        "σ_w² = fan_in · Var(W), beside the values that would keep the signal on its way forward and the gradient on "
        "its way back through this layer and its activation; the difference in decades of rms. A dash: not decided by "
        "the weights alone."
    )
    return Table(columns, tuple(cells), counted(len(rows), "weight"), caption, collapsed=full and len(cells) > MAX_ROWS)


def _notes(rows: Sequence[WeightInitialization]) -> list[Block]:
    named: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            named.setdefault(note, []).append(row.name)
    return [
        Paragraph(f"`{names[0]}`{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}.", "muted")
        for note, names in named.items()
    ]


def _bias_line(report: InitializationReport) -> str:
    zero = sum(bias.is_zero for bias in report.biases)
    others = Counter(bias.initializer for bias in report.biases if not bias.is_zero)
    parts = [f"{zero} zero"] if zero else []
    parts += [f"{count} {name}" for name, count in others.most_common(3)]
    return f"**Biases:** {', '.join(parts)}, of {len(report.biases)}."


def _bias_table(report: InitializationReport) -> Table:
    columns = ("bias", "layer type", "shape", Column("mean", "right"), Column("std", "right"), "initialiser")
    rows = [
        (
            Cell(bias.name, sort=order),
            Cell(bias.layer_type, tone="muted"),
            Cell(shape_text(bias.shape), tone="muted"),
            _number(bias.mean),
            _number(bias.std),
            bias.initializer,
        )
        for order, bias in enumerate(report.biases)
    ]
    return Table.of(
        columns,
        rows,
        title="1 bias" if len(rows) == 1 else f"{len(rows):,} biases",
        collapsed=len(rows) > MAX_ROWS // 2,
    )


def _method(report: InitializationReport) -> Section:
    return Section(
        "How it was read",
        (
            Paragraph(
                "From the values alone: their variance times fan_in, the shape of their distribution, and the named "
                "initialisers that would give both. What a layer does to the signal is worked out for a wide layer "
                "with independent weights, followed by its activation; nothing was run. "
                f"torch {report.torch_version}, headwater {report.headwater_version}."
            ),
        ),
    )


def initialization_figure(report: InitializationReport, *, template: Template = "dark") -> Any:
    """Draw σ_w² of every weight beside the values that keep the signal and the gradient.

    Args:
        report: the record.
        template: ``dark`` or ``light``.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: the model has no weights.
    """
    from headwater.reports.figures import Series, line_figure

    if not report.rows:
        raise InputError("this model has no weights to draw")
    return line_figure(
        [
            Series(
                "measured", [row.weight_variance for row in report.rows], color="vermillion",
                hover=[f"{row.name}: σ_w² = {row.weight_variance:.3g}, {row.initializer}" for row in report.rows],
            ),
            Series("keeps the signal", [r.forward_weight_variance for r in report.rows], color="blue", dash="dot"),
            Series("keeps the gradient", [r.backward_weight_variance for r in report.rows], color="green", dash="dash"),
        ],
        title=f"Initial weight variance of {report.model_type}",
        x_title="weight, in registration order",
        y_title="σ_w² = fan_in · Var(W)<br>(no unit, log scale)",
        reading=_read(report.rows),
        names=[row.name for row in report.rows],
        template=template,
    )  # fmt: skip
