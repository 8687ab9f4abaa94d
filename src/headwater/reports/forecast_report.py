"""A forecast as a document."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from headwater.records.forecast import FailurePoint, Forecast, LayerForecast
from headwater.reports.budget_table import budget_sentence, budget_table
from headwater.reports.document import (
    Bar,
    Block,
    Callout,
    Cell,
    Column,
    Document,
    Figure,
    Paragraph,
    Section,
    Table,
    Template,
    Tone,
)
from headwater.reports.folding import MAX_ROWS, Fold, fold_rows
from headwater.reports.marks import literal
from headwater.reports.notation import counted, decades, power, shape_text
from headwater.reports.phase_words import count_layers

__all__ = ["build_forecast_document", "read_forecast"]

_FORMATS = ("float32", "bfloat16", "float16")
_LOSS = {
    "loss_fn": "loss_fn(output, targets)",
    "loss": "loss(model)",
    "model": "the output's own loss",
    "probe": "a unit-variance Gaussian probe on the output",
}
_NAMED = 5  # operations without a rule that a line lists; chosen by us
_METHOD = (
    "Forward and backward run on the meta device, where tensors have shapes and no values; beside each operation the mean, "
    "the second moment and the covariances of its result are computed from the initial law of every parameter. rms is the "
    "typical one: 10 to the mean of log10 rms over draws of the weights. ± is the standard deviation of that logarithm "
    "between draws (Hanin, NeurIPS 2018). χ multiplies the squared gradient from the next trunk layer to this one, "
    "ξ = 1/|ln χ| is the number of such steps over which it changes e-fold (Schoenholz et al., ICLR 2017)."
)


# -------------------------------------------------------------------- a forecast


def build_forecast_document(forecast: Forecast, *, full: bool = False) -> Document:
    """Describe a forecast.

    Args:
        forecast: the record.
        full: list every layer and draw the picture; otherwise repeated blocks are folded above 60 layers.

    Returns:
        The document.
    """
    blocks: list[Block] = [Callout(literal(text), "warning", "Assumption") for text in forecast.coverage.assumptions]
    if full and forecast.layers:
        what = f"Forecast gradient and activation along {forecast.model_type}"
        blocks.append(Figure(_drawer(forecast), what, read_forecast(forecast)))
    if forecast.layers:
        blocks.append(_layer_table(forecast, full))
    blocks += _trunk_lines(forecast)
    blocks += _budget_blocks(forecast, full)
    blocks += _time_lines(forecast)
    if _known_trunk(forecast):
        blocks.append(_formats_line(forecast))
    blocks.append(_coverage(forecast))
    if full:
        versions = f"torch {forecast.torch_version}, headwater {forecast.headwater_version}."
        blocks.append(Section("How it was forecast", (Paragraph(_METHOD), Paragraph(versions))))
    facts = [("loss", _LOSS[forecast.loss_source]), ("parameters", f"{forecast.parameter_count:,} {forecast.dtype}")]
    if forecast.batch_size is not None:
        facts.append(("batch", str(forecast.batch_size)))
    return Document(
        title=f"Gradient forecast of {forecast.model_type}",
        blocks=tuple(blocks),
        summary=read_forecast(forecast),
        facts=tuple(facts),
    )


def read_forecast(forecast: Forecast) -> str:
    """A forecast in one sentence: how much reaches the first trunk layer, and where it is lost.

    Args:
        forecast: the record.

    Returns:
        Prose.
    """
    known = _known_trunk(forecast)
    if not known:
        return "Nothing is known of the gradient along the trunk; the coverage names what stands in the way."
    zero = _first_zero(known)
    if zero is not None:
        return f"At initialisation the gradient is exactly zero from `{literal(zero.name)}` down to the input."
    first, last = known[0], known[-1]
    partly = any(row.gradient_rms_log10 is None for row in forecast.trunk_layers)
    if first is last:
        rest = "; the rest of it is unknown" if partly else ""
        rms = _rms(first.gradient_rms_log10)
        return f"One layer on the trunk has a forecast, `{literal(first.name)}`, gradient rms {rms}{rest}."
    change = _decades(known)
    verb = "shrinks" if change < 0.0 else "grows"
    text = (
        f"From `{literal(last.name)}` to `{literal(first.name)}` the gradient {verb} by {decades(abs(change))[1:]} "
        if change
        else f"From `{literal(last.name)}` to `{literal(first.name)}` the gradient keeps its size "
    )
    text += f"over {counted(len(known) - 1, 'trunk step')}"
    failure = next((f for f in map(forecast.fails_at, _FORMATS) if f is not None), None)
    if failure is not None:
        text += f"; {failure.dtype} {failure.kind}s from `{literal(failure.layer)}` on"
    if partly:
        text += "; some of the trunk is unknown"
    return text + "."


def _known_trunk(forecast: Forecast) -> list[LayerForecast]:
    return [row for row in forecast.trunk_layers if row.gradient_rms_log10 is not None]


def _first_zero(known: Sequence[LayerForecast]) -> LayerForecast | None:
    """The layer nearest the loss whose gradient is exactly zero."""
    return next((row for row in reversed(known) if row.gradient_rms_log10 == -math.inf), None)


def _decades(known: Sequence[LayerForecast]) -> float:
    first, last = known[0].gradient_rms_log10, known[-1].gradient_rms_log10
    assert first is not None
    assert last is not None
    return first - last


def _drawer(forecast: Forecast) -> Callable[[Template], Any]:
    def draw(template: Template) -> Any:
        from headwater.reports.forecast_figure import forecast_figure

        return forecast_figure(forecast, template=template)

    return draw


def _trunk_lines(forecast: Forecast) -> list[Block]:
    known = _known_trunk(forecast)
    if len(known) < 2 or _first_zero(known) is not None:
        return []
    text = f"**Trunk:** `{literal(known[-1].name)}` → `{literal(known[0].name)}`, {decades(_decades(known))} in total"
    chi, xi = forecast.multiplier, forecast.depth_scale
    if not math.isnan(chi):
        text += f"; χ = {chi:.3g} per step (geometric mean), depth scale ξ = {_steps(xi)}"
    return [Paragraph(text + ".")]


def _budget_blocks(forecast: Forecast, full: bool) -> list[Block]:
    """The account of a diagnosis, forecast: the table on a page, by kind of operation in a terminal."""
    budget = forecast.budget
    if len(budget.steps) < 2:
        return []
    line = Paragraph(f"**Gradient budget:** {budget_sentence(budget)}")
    return [line, budget_table(budget, max_rows=None, collapsed=len(budget.steps) > 20)] if full else [line]


def _time_lines(forecast: Forecast) -> list[Block]:
    """How far the gradient changes over the steps of each recurrent state, on one line."""
    parts = []
    for time in forecast.times:
        change = time.decades
        if math.isnan(change) or len(time.gradient_rms_log10) < 2:
            continue
        name = (
            f"`{literal(time.layer)}`{f' layer {time.stack}' if time.stack else ''}{' reverse' if time.reverse else ''}"
        )
        text = decades(change) if math.isfinite(change) else "none arrives"
        parts.append(f"{name} ∂L/∂{'c' if time.state == 'cell' else 'h'} {text}")
    if not parts:
        return []
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    steps = max(len(time.gradient_rms_log10) for time in forecast.times)
    return [Paragraph(f"**Over time:** t = 0 against t = {steps - 1}: {'; '.join(parts[:_NAMED])}{more}.")]


def _steps(xi: float) -> str:
    return count_layers(xi).replace("layer", "step")


def _formats_line(forecast: Forecast) -> Block:
    parts = []
    holding = []
    for name in _FORMATS:
        failure = forecast.fails_at(name)
        if failure is None:
            holding.append(name)
        else:
            parts.append(_failure(failure))
    if holding:
        parts.insert(0, f"{_listed(holding)} hold{'s' if len(holding) == 1 else ''} every known gradient on the trunk")
    return Paragraph(f"**Number formats:** {'; '.join(parts)}.")


def _listed(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def _failure(failure: FailurePoint) -> str:
    sign = "<" if failure.kind == "underflow" else ">"
    return (
        f"{failure.dtype} {failure.kind}s from `{literal(failure.layer)}` on, {counted(failure.depth, 'trunk layer')} from "
        f"the loss ({_rms(failure.gradient_rms_log10)} {sign} {power(failure.limit_log10)})"
    )


def _coverage(forecast: Forecast) -> Block:
    coverage = forecast.coverage
    names = list(coverage.unruled.items())
    if not names:
        text = f"{'a rule for each of ' if coverage.complete else ''}{coverage.operations:,} operations"
    else:
        shown = "; ".join(
            f"`{literal(name)}`" + ("" if reason == "no rule" else f" ({literal(reason)})")
            for name, reason in names[:_NAMED]
        )
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        text = f"no rule for {shown}{more}"
    lost = []
    if coverage.unknown_layers:
        lost.append(counted(len(coverage.unknown_layers), "layer"))
    if coverage.unknown_parameters:
        lost.append(counted(len(coverage.unknown_parameters), "parameter"))
    if lost:
        text += f"; the gradient of {' and '.join(lost)} is unknown, never taken as unchanged"
    return Callout(text + ".", "warning", "Coverage") if lost else Paragraph(f"**Coverage:** {text}.")


# -------------------------------------------------------------------- its table


def _path(row: LayerForecast) -> str:
    """The name with a function's mark (``layers.0:relu``) as one more level, so that blocks with functions fold as well."""
    return row.name.replace(":", ".")


class _Axis:
    """The log10 axis that all bars of the table share."""

    def __init__(self, values: Sequence[float | None]) -> None:
        logs = [v for v in values if v is not None and math.isfinite(v)]
        low, high = (min(logs), max(logs)) if logs else (-1.0, 0.0)
        self.low, self.high = math.floor(low - 0.05), math.ceil(high)
        if self.high - self.low < 2:  # a flat forecast should look flat
            self.low = self.high - 2
        self.labels = (power(self.low, 0), power(self.high, 0))

    def bar(self, values: Sequence[float | None]) -> Bar | None:
        ends = [(v - self.low) / (self.high - self.low) for v in values if v is not None and math.isfinite(v)]
        return Bar(min(ends), max(ends) if max(ends) > min(ends) else None) if ends else None


def _layer_table(forecast: Forecast, full: bool) -> Table:
    rows = fold_rows(forecast.layers, _path, lambda row: row.type, None if full else MAX_ROWS)
    axis = _Axis([row.gradient_rms_log10 for row in forecast.layers])
    branches = any(row.on_trunk for row in forecast.layers) and not all(row.on_trunk for row in forecast.layers)
    unknown = any(row.unknown is not None for row in forecast.layers)
    chi = {block.name: math.log(block.multiplier) for block in forecast.blocks if block.multiplier > 0.0}
    caption = (
        f"Layers in execution order; rms per element. Bars: log10 of the gradient rms, from {axis.labels[0]} to "
        f"{axis.labels[1]}."
    )
    if branches:
        caption += " ┃ marks the trunk: every path from the loss to the first parameters passes through it."
    if any(isinstance(row, Fold) for row in rows):
        caption += f" Repeated blocks of the {len(forecast.layers)} layers are folded: smallest..largest rms, mean χ."
    columns = [
        *([Column("┃", priority=9, hint="on the trunk")] if branches else []),
        Column("layer", priority=9, shrink=True, hint="name in named_modules(); #k is the k-th call"),
        Column("type", priority=4, shrink=True),
        Column("output\nshape", priority=1, shrink=True),
        Column("activ.\nrms", "right", "forecast √mean(output²)", 6),
        Column("gradient\nrms", "right", "forecast √mean((∂L/∂output)²)", 9),
        Column("±\ndec.", "right", "standard deviation of log10(gradient rms) between draws, decades", 7),
        Column("gradient rms", priority=7, axis=axis.labels, hint="log10 of the forecast gradient rms"),
        Column("χ", "right", "factor on the squared gradient from the next trunk layer to this one", 3),
        Column("ξ\nsteps", "right", "1/|ln χ|: trunk steps over which the squared gradient changes e-fold", 2),
        *(
            [Column("unknown", wrap=True, priority=8, hint="the operation after which nothing is known")]
            if unknown
            else []
        ),
    ]
    order = {id(row): number for number, row in enumerate(forecast.layers)}
    return Table(
        tuple(columns),
        tuple(_layer_row(row, axis, chi, branches, unknown, order) for row in rows),
        title=counted(len(forecast.layers), "layer"),
        caption=caption,
        collapsed=full and len(rows) > MAX_ROWS,
    )


def _layer_row(
    row: LayerForecast | Fold[LayerForecast],
    axis: _Axis,
    chi: dict[str, float],
    branches: bool,
    unknown: bool,
    order: dict[int, int],
) -> tuple[Cell, ...]:
    layers = row.rows if isinstance(row, Fold) else (row,)
    on_trunk = [layer for layer in layers if layer.on_trunk]
    shown = on_trunk or layers  # a fold is summed up by its trunk where it has one
    gradients = [layer.gradient_rms_log10 for layer in shown]
    bands = [b for layer in shown if (b := layer.gradient_band_decades) is not None]
    reasons = dict.fromkeys(layer.unknown for layer in layers if layer.unknown is not None)
    return (
        *([Cell("┃" if on_trunk else "", hint="on the trunk" if on_trunk else "on a branch")] if branches else []),
        Cell(
            row.label if isinstance(row, Fold) else row.name,
            sort=order[id(layers[0])],
            tone="plain" if on_trunk or not branches else "muted",
        ),
        Cell(row.type, tone="muted"),
        Cell(shape_text(layers[0].shape) if len({layer.shape for layer in layers}) == 1 else "varies", tone="muted"),
        _rms_cell([layer.activation_rms_log10 for layer in shown]),
        _rms_cell(gradients),
        Cell(f"{max(bands):.2g}" if bands else "-", sort=max(bands, default=-1.0), tone="plain" if bands else "muted"),
        Cell("", bar=axis.bar(gradients), sort=_sort_key(gradients)),
        *_chi_cells([chi[layer.name] for layer in layers if layer.name in chi]),
        *([Cell(", ".join(reasons), tone="warning")] if unknown else []),
    )


def _chi_cells(logs: Sequence[float]) -> tuple[Cell, Cell]:
    if not logs:
        return Cell(""), Cell("")
    mean = math.fsum(logs) / len(logs)
    chi = power(mean / math.log(10.0)) if abs(mean) > 7.0 else f"{math.exp(mean):.3g}"
    xi = 1.0 / abs(mean) if mean else math.inf
    return Cell(chi, sort=mean), Cell("∞" if xi > 1e4 else f"{xi:.3g}", sort=min(xi, 1e300))


def _rms(log10: float | None) -> str:
    if log10 is None:
        return "-"
    return "0 (exact)" if log10 == -math.inf else power(log10)


def _rms_cell(values: Sequence[float | None]) -> Cell:
    known = [v for v in values if v is not None]
    if not known:
        return Cell("-", tone="muted")
    low, high = min(known), max(known)
    text = _rms(low)
    if _rms(high) != text:
        ends = ["0" if v == -math.inf else power(v, 1) for v in (low, high)]
        text = ends[0] if ends[0] == ends[1] else "..".join(ends)
    tone: Tone = "critical" if text == "0 (exact)" else "plain"
    return Cell(text, sort=_sort_key(known), tone=tone)


def _sort_key(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return max(-1e9, min(known)) if known else None
