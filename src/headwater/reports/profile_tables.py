"""The tables of a profile: layers in execution order, and parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from headwater.records.profile import LayerProfile, ParameterProfile, Profile
from headwater.records.statistics import Statistics
from headwater.reports.document import Bar, Cell, Column, Table, Tone
from headwater.reports.folding import MAX_ROWS, Fold, fold_rows
from headwater.reports.notation import counted, percent, power, rms_range, rms_text, scientific, shape_text

__all__ = ["layer_table", "parameter_table"]

_SHOWN_FRACTION = 0.01  # dead and saturated shares below 1 % are left to the full table; chosen by us
_MOSTLY_ZERO = 0.9  # share of exact zeros in a gradient that is worth a note; chosen by us
_WEIGHT_ROLES = ("weight", "recurrent", "attention", "embedding", "normalization", "other")
_STATES = {"frozen": "frozen", "none": "no gradient", "exact_zero": "exactly zero", "underflow": "underflow"}


def layer_table(profile: Profile, full: bool, max_rows: int = MAX_ROWS) -> Table:
    """The layers of a profile.

    Args:
        profile: the record.
        full: every layer and the biases; otherwise repeated blocks are folded above ``max_rows`` layers.
        max_rows: rows to aim at when folding.

    Returns:
        The table.
    """
    rows = fold_rows(profile.layers, lambda row: row.name, lambda row: row.type, None if full else max_rows)
    parameters: dict[str, list[ParameterProfile]] = {}
    for parameter in profile.parameters:
        if parameter.layer is not None:
            parameters.setdefault(parameter.layer, []).append(parameter)
    axis = _Axis([row.gradient for row in profile.layers])
    branches = any(row.on_trunk for row in profile.layers) and not all(row.on_trunk for row in profile.layers)
    spread = profile.draws > 1
    caption = "Layers in execution order; rms per element. " + axis.caption
    if branches:
        caption += " ┃ marks the trunk: every path from the loss to the first parameters passes through it."
    if any(isinstance(row, Fold) for row in rows):
        caption += f" Repeated blocks of the {len(profile.layers)} layers are folded: smallest..largest rms."
    columns = [
        *([Column("┃", priority=9, hint="on the trunk")] if branches else []),
        Column("layer", priority=9, shrink=True, hint="name in named_modules(); #k is the k-th call"),
        Column("type", priority=4, shrink=True),
        Column("output\nshape", priority=1, shrink=True),
        Column("activ.\nrms", "right", "√mean(output²)", 6),
        Column("gradient\nrms", "right", "√mean((∂L/∂output)²)", 9),
        Column("gradient rms", priority=7, axis=axis.labels, hint="log10 of the gradient rms"),
        *([Column("±\ndec.", "right", "std of log10(gradient rms) over the draws, decades", 3)] if spread else []),
        Column("∂L/∂W\nrms", "right", "√mean of the squared gradient of the layer's weights", 5),
        *([Column("∂L/∂b\nrms", "right", "√mean of the squared gradient of the layer's biases", 1)] if full else []),
        Column("notes", wrap=True, priority=8),
    ]
    return Table(
        tuple(columns),
        tuple(_layer_row(row, parameters, axis, branches, spread, full) for row in rows),
        title=counted(len(profile.layers), "layer"),
        caption=caption,
        collapsed=full and len(rows) > MAX_ROWS,
    )


class _Axis:
    """The log10 axis that all bars of the table share."""

    def __init__(self, statistics: Iterable[Statistics | None]) -> None:
        logs = [s.rms_log10 for s in statistics if s is not None and s.finite_count and math.isfinite(s.rms_log10)]
        low, high = (min(logs), max(logs)) if logs else (-1.0, 0.0)
        self.low, self.high = math.floor(low - 0.05), math.ceil(high)
        if self.high - self.low < 2:  # a flat profile should look flat
            self.low = self.high - 2
        self.labels = (power(self.low, 0), power(self.high, 0))
        self.caption = f"Bars: log10 of the gradient rms, from {self.labels[0]} to {self.labels[1]}."

    def bar(self, many: Sequence[Statistics | None]) -> Bar | None:
        ends = [
            max(0.0, min(1.0, (s.rms_log10 - self.low) / (self.high - self.low)))
            for s in many
            if s is not None and s.finite_count and math.isfinite(s.rms_log10)
        ]
        return Bar(min(ends), max(ends) if max(ends) > min(ends) else None) if ends else None


def _layer_row(
    row: LayerProfile | Fold[LayerProfile],
    parameters: Mapping[str, Sequence[ParameterProfile]],
    axis: _Axis,
    branches: bool,
    spread: bool,
    full: bool,
) -> tuple[Cell, ...]:
    layers = row.rows if isinstance(row, Fold) else (row,)
    on_trunk = [layer for layer in layers if layer.on_trunk]
    shown = on_trunk or layers  # a fold is summed up by its trunk where it has one
    owned = [p for layer in layers for p in parameters.get(layer.name, ())]
    weights, biases = _main_role(owned), [p.gradient for p in owned if p.role == "bias"]
    gradients = [layer.gradient for layer in shown]
    notes, tone = _notes(layers, owned)
    spreads = [s.std for layer in shown if (s := layer.spread.get("gradient.rms")) is not None]
    first = layers[0]
    return (
        *([Cell("┃" if on_trunk else "", hint="on the trunk" if on_trunk else "on a branch")] if branches else []),
        Cell(
            row.label if isinstance(row, Fold) else row.name,
            sort=first.order,
            tone="plain" if on_trunk or not branches else "muted",
        ),
        Cell(row.type, tone="muted"),
        Cell(shape_text(first.shape) if len({layer.shape for layer in layers}) == 1 else "varies", tone="muted"),
        _rms_cell([layer.activation for layer in shown]),
        _rms_cell(gradients),
        Cell("", bar=axis.bar(gradients), sort=_sort_key(gradients)),
        *([Cell(f"{max(spreads):.2f}" if spreads else "-", sort=max(spreads, default=-1.0))] if spread else []),
        _rms_cell(weights) if weights else Cell(""),
        *([_rms_cell(biases) if biases else Cell("")] if full else []),
        Cell(notes, tone=tone),
    )


def _main_role(owned: Sequence[ParameterProfile]) -> list[Statistics | None]:
    """The gradients of one population of parameters: the first role present, never several mixed."""
    for role in _WEIGHT_ROLES:
        found = [p.gradient for p in owned if p.role == role]
        if found:
            layers = {p.layer for p in owned if p.role == role}
            merged = [s for s in found if s is not None]
            # Several weights of one layer (an LSTM's four) are one population; those of a fold stay apart.
            return [Statistics.merge(merged)] if len(layers) == 1 and merged else list(found)
    return []


def _sort_key(many: Sequence[Statistics | None]) -> float | None:
    logs = [s.rms_log10 for s in many if s is not None and s.finite_count]
    return max(-1e9, min(logs)) if logs else None


def _rms_cell(many: Sequence[Statistics | None]) -> Cell:
    text = rms_text(many[0]) if len(many) == 1 else rms_range(many)
    hint = ""
    if len(many) == 1 and many[0] is not None and many[0].count:
        s = many[0]
        hint = (
            f"mean {scientific(s.mean)}, mean |x| {scientific(s.mean_abs)}, std {scientific(s.std)}, "
            f"max |x| {scientific(s.max_abs)}, zeros {percent(s.zero_fraction)}, {s.count:,} elements"
        )
    tone: Tone = "critical" if text == "0 (exact)" else "muted" if text == "-" else "plain"
    return Cell(text, sort=_sort_key(many), hint=hint, tone=tone)


def _notes(layers: Sequence[LayerProfile], owned: Sequence[ParameterProfile]) -> tuple[str, Tone]:
    many = len(layers) > 1
    critical: list[str] = []
    plain: list[str] = []
    for what, statistics in (
        ("activ.", [layer.activation for layer in layers]),
        ("grad.", [layer.gradient for layer in layers if layer.gradient is not None]),
        ("param. grad.", [p.gradient for p in owned if p.gradient is not None]),
    ):
        total = Statistics.merge(statistics)
        bad = [f"{n:,} {name}" for n, name in ((total.nan_count, "NaN"), (total.inf_count, "inf")) if n]
        if bad:
            critical.append(f"{what}: {', '.join(bad)} of {total.count:,}")
    missing = [layer for layer in layers if layer.gradient is None]
    if missing:
        reasons = dict.fromkeys(layer.gradient_missing or "no gradient" for layer in missing)
        plain.append((f"{len(missing)} without gradient: " if many else "") + ", ".join(reasons))
    zero = [layer for layer in layers if _is_zero(layer.gradient)]
    if zero and many:
        critical.append(f"{len(zero)} with exactly zero gradient")
    for name, values in (
        ("dead", [layer.dead_fraction for layer in layers]),
        ("saturated", [layer.saturated_fraction for layer in layers]),
    ):
        worst = max((v for v in values if v is not None), default=0.0)
        if worst >= _SHOWN_FRACTION:
            plain.append(f"{'≤' if many else ''}{percent(worst)} {name}")
    sparse = [
        layer.gradient.zero_fraction for layer in layers if layer.gradient is not None and not _is_zero(layer.gradient)
    ]
    if not many and sparse and sparse[0] >= _MOSTLY_ZERO:
        plain.append(f"{percent(sparse[0])} of grad. exactly 0")
    states: dict[str, list[str]] = {}
    for p in owned:
        if p.state not in ("finite", "nonfinite"):
            states.setdefault(p.state, []).append(p.name.rsplit(".", 1)[-1])
    for state, names in states.items():
        plain.append(f"{_STATES[state]}: {', '.join(dict.fromkeys(names))}")
    shared = [p for p in owned if p.aliases]
    if shared and not many:
        plain.append(f"shared: {', '.join(p.name.rsplit('.', 1)[-1] + ' = ' + ', '.join(p.aliases) for p in shared)}")
    tone: Tone = "critical" if critical or (zero and not many) else "plain"
    return "; ".join(critical + plain), tone


def _is_zero(statistics: Statistics | None) -> bool:
    return statistics is not None and bool(statistics.finite_count) and statistics.rms_log10 == -math.inf


def parameter_table(profile: Profile, parameters: Sequence[ParameterProfile], of: int | None = None) -> Table:
    """Some or all parameters of a profile.

    Args:
        profile: the record.
        parameters: the rows.
        of: None when these are all; else how many parameters belong to no layer row, of which these are the first.

    Returns:
        The table.
    """
    columns = (
        Column("parameter", priority=9, shrink=True, hint="in the execution order of its first use"),
        Column("role", priority=4),
        Column("shape", priority=2),
        Column("value\nrms", "right", "√mean(value²)", 5),
        Column("gradient\nrms", "right", "√mean((∂L/∂value)²)", 9),
        Column("gradient\nmean |·|", "right", "mean(|∂L/∂value|)", 5),
        Column("gradient\nL2 norm", "right", "√Σ(∂L/∂value)²", 3),
        Column("gradient\nmax |·|", "right", "largest |∂L/∂value|", 2),
        Column("exact\nzeros", "right", "share of gradient elements that are exactly 0", 3),
        Column("state", priority=8, wrap=True),
    )
    rows = []
    for order, p in enumerate(parameters):
        g = p.gradient
        numbers = [
            Cell("-", tone="muted") if v is None or math.isnan(v) else Cell(scientific(v), sort=v)
            for v in (None if g is None else getattr(g, name) for name in ("mean_abs", "l2_norm", "max_abs"))
        ]
        state = p.state.replace("_", " ")
        if p.name in profile.coverage.missing:
            state += f": {profile.coverage.missing[p.name]}"
        if g is not None and g.nonfinite_count:
            state += f": {g.nan_count:,} NaN, {g.inf_count:,} inf of {g.count:,}"
        name = f"{p.name} (= {', '.join(p.aliases)})" if p.aliases else p.name
        tone: Tone = "plain" if p.state == "finite" else "muted" if p.state == "frozen" else "warning"
        rows.append(
            (
                Cell(name, sort=order),
                Cell(p.role, tone="muted"),
                Cell(shape_text(p.shape), tone="muted"),
                _rms_cell([p.value]),
                _rms_cell([g]),
                *numbers,
                Cell("-", tone="muted") if g is None else Cell(percent(g.zero_fraction), sort=g.zero_fraction),
                Cell(state, tone=tone),
            )
        )
    caption = (
        "Each counted once, however many modules share it. Compare within a role: weights, biases and normalization "
        "are different populations."
    )
    if of is not None:
        caption = "Parameters that belong to no layer above."
        if of > len(rows):
            caption += f" The first {len(rows)} of {of}; to_csv() has all."
    return Table(
        columns,
        tuple(rows),
        title=counted(len(rows), "parameter"),
        caption=caption,
        collapsed=len(rows) > MAX_ROWS // 2,
    )
