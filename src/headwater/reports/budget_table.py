"""The gradient budget as tables: the way from the loss to the first layer, and what each weight's gradient is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headwater.records import Budget, BudgetStep, WeightShare
from headwater.records.displayed_kinds import KIND_WORDS
from headwater.reports.document import Bar, Cell, Column, Table
from headwater.reports.folding import Fold, fold_rows
from headwater.reports.marks import literal
from headwater.reports.notation import power

__all__ = ["BudgetPart", "budget_parts", "budget_sentence", "budget_table", "hidden_signal", "signed", "weight_table"]

TERMINAL_ROWS = 14
"""Steps that a terminal lists one by one: with the rest of the answer they fit on one screen. Chosen by us."""
_KIND_COLUMNS = 4  # kinds of operations with a column of their own; the smaller ones share one. Chosen by us.
_NOTHING = 0.005  # decades; below, a part rounds to 0.00
# A weight-gradient profile hides a change of the signal when it shows less than half of it, and the change is at least
# two decades. Chosen by us.
_HIDDEN_SHARE = 0.5
_HIDDEN_DECADES = 2.0


@dataclass(frozen=True, slots=True)
class BudgetPart:
    """Neighbouring steps of the budget shown as one.

    Attributes:
        label: the name of the step, or the folded names of several.
        steps: the steps, loss side first.
        before: decades relative to the gradient at the loss, before the first of them.
    """

    label: str
    steps: tuple[BudgetStep, ...]
    before: float

    @property
    def decades(self) -> float:
        """Change of log10 rms over the part."""
        return math.fsum(step.decades for step in self.steps)

    @property
    def after(self) -> float:
        """Decades relative to the gradient at the loss, after the last step."""
        return self.before + self.decades

    def by_kind(self) -> dict[str, float]:
        """Decades per kind, in the order in which the gradient meets them; they sum to :attr:`decades`."""
        kinds: dict[str, list[float]] = {}
        for step in self.steps:
            kinds.setdefault(step.kind, []).append(step.decades)
        return {kind: math.fsum(values) for kind, values in kinds.items()}


def budget_parts(budget: Budget, max_rows: int | None = TERMINAL_ROWS) -> list[BudgetPart]:
    """The steps of a budget, repeated blocks folded when there are more than ``max_rows``.

    Args:
        budget: the record.
        max_rows: how many parts to aim at; None folds nothing.

    Returns:
        The parts, loss side first; together they hold every step once, so their decades sum to the total.
    """
    parts: list[BudgetPart] = []
    passed: list[float] = []
    for row in fold_rows(budget.steps, lambda step: step.name, lambda step: step.kind, max_rows):
        steps = row.rows if isinstance(row, Fold) else (row,)
        label = row.label if isinstance(row, Fold) else row.name
        parts.append(BudgetPart(label, steps, math.fsum(passed)))
        passed += [step.decades for step in steps]
    return parts


def signed(decades: float) -> str:
    """Decades with their sign.

    Args:
        decades: a difference of two log10 values.

    Returns:
        Such as ``−0.85``; ``0.00`` below half a hundredth.

    Example:
        >>> signed(-0.846), signed(0.3), signed(-0.001)
        ('−0.85', '+0.30', '0.00')
    """
    return "0.00" if abs(decades) < _NOTHING else f"{decades:+.2f}".replace("-", "−")


def budget_sentence(budget: Budget) -> str:
    """The whole way in one sentence, by kind.

    Args:
        budget: the record.

    Returns:
        Prose.
    """
    if not budget.steps:
        return "No gradient travels along the trunk."
    parts = [
        f"{KIND_WORDS.get(kind, kind)} {signed(value)}"
        for kind, value in budget.by_kind().items()
        if abs(value) >= _NOTHING
    ]
    end = "the first layer" if budget.cut_at is None else f"the last tensor before `{literal(budget.cut_at)}`"
    text = f"From the loss to {end} the gradient changes by {signed(budget.total_decades)} decades"
    text += f": {', '.join(parts)}." if parts else "."
    if budget.cut_at is not None:
        text += f" At `{literal(budget.cut_at)}` it is exactly zero or not finite, and the account ends."
    return text


def budget_table(
    budget: Budget, *, max_rows: int | None = TERMINAL_ROWS, start_log10: float | None = None, collapsed: bool = False
) -> Table:
    """The budget as a waterfall: what each part of the way adds or takes, and what is left after it.

    Args:
        budget: the record, with at least one step.
        max_rows: parts to aim at; None lists every step.
        start_log10: log10 rms of the gradient at the loss, when the level after each part is to be shown.
        collapsed: whether a page shows it folded up.

    Returns:
        The table; its last row is the sum.
    """
    parts = budget_parts(budget, max_rows)
    folded = any(len(part.steps) > 1 for part in parts)
    totals = budget.by_kind()
    kinds = _shown_kinds(totals) if folded else []
    levels = [0.0, *(part.after for part in parts)]
    low, high = min(levels), max(levels)
    if high - low < 2.0:  # a flat budget should look flat
        low = high - 2.0
    columns = [
        Column("gradient\npasses", priority=9, shrink=True, hint="loss side first"),
        *(
            [Column("through", priority=6)]
            if not folded
            else [Column("steps", "right", "steps folded into the row", 3)]
        ),
        *(Column(word.replace(" ", "\n", 1), "right", "decades", 5) for word in (_word(kind) for kind in kinds)),
        Column("decades", "right", "change of log10 rms(∂L/∂h)", 9),
        Column("sum\nso far", "right", "relative to the gradient at the loss, decades", 4),
        *([Column("rms\nafter", "right", "rms of ∂L/∂h after this part", 2)] if start_log10 is not None else []),
        Column("what is left", priority=7, axis=(f"{low:.1f}".replace("-", "−"), f"{high:.1f}".replace("-", "−"))),
    ]
    rows = []
    for order, part in enumerate(parts):
        values = part.by_kind()
        middle = (
            [Cell(str(len(part.steps)), sort=len(part.steps), tone="muted")]
            if folded
            else [Cell(_word(part.steps[0].kind), tone="muted")]
        )
        middle += [_number(_of(values, kind, kinds), blank=True) for kind in kinds]
        ends = sorted(max(0.0, min(1.0, (v - low) / (high - low))) for v in (part.before, part.after))
        rows.append(
            (
                Cell(part.label, sort=order),
                *middle,
                _number(part.decades),
                Cell(signed(part.after), sort=part.after, tone="muted"),
                *([Cell(power(start_log10 + part.after), tone="muted")] if start_log10 is not None else []),
                Cell("", bar=Bar(ends[0], ends[1] if ends[1] > ends[0] else None), sort=part.after),
            )
        )
    total = [Cell(str(len(budget.steps)) if folded else "")] + [_number(_of(totals, kind, kinds)) for kind in kinds]
    rows.append(
        (
            Cell("in all", sort=len(parts)),
            *total,
            Cell(signed(budget.total_decades), sort=budget.total_decades),
            Cell(""),
            *([Cell("")] if start_log10 is not None else []),
            Cell(""),
        )
    )
    caption = "Decades of rms(∂L/∂h), from the loss to the first layer; the parts sum to the whole."
    caption += " Bars: solid is what is left, faint is what the part took or added."
    if folded:
        caption += f" The {len(budget.steps)} steps are folded by block."
    return Table(tuple(columns), tuple(rows), title="Gradient budget", caption=caption, collapsed=collapsed)


def _shown_kinds(totals: Mapping[str, float]) -> list[str]:
    """Kinds with a column: the largest, and ``""`` for the others together."""
    moving = [kind for kind, value in totals.items() if abs(value) >= _NOTHING] or list(totals)[:1]
    return moving if len(moving) <= _KIND_COLUMNS else [*moving[: _KIND_COLUMNS - 1], ""]


def _word(kind: str) -> str:
    return KIND_WORDS.get(kind, kind) if kind else "the others"


def _of(values: Mapping[str, float], kind: str, kinds: Sequence[str]) -> float | None:
    if kind:
        return values.get(kind)
    rest = [value for name, value in values.items() if name not in kinds]
    return math.fsum(rest) if rest else None


def _number(value: float | None, *, blank: bool = False) -> Cell:
    if value is None:
        return Cell("")
    return Cell("" if blank and value == 0.0 else signed(value), sort=value)


# -------------------------------------------------------------------- weights


def hidden_signal(weights: Sequence[WeightShare]) -> str:
    """Say when weight gradients look even although activation and gradient do not.

    Args:
        weights: in execution order.

    Returns:
        A sentence, or an empty string when nothing is hidden.
    """
    if len(weights) < 3:
        return ""
    spans = {
        name: max(values) - min(values)
        for name, values in (
            ("weight", [w.weight_gradient_log10 for w in weights]),
            ("activation", [w.activation_log10 for w in weights]),
            ("gradient", [w.gradient_log10 for w in weights]),
        )
    }
    # One of the two must fall where the other rises: two changes in one direction add up and are seen.
    change = {
        name: getattr(weights[-1], name) - getattr(weights[0], name) for name in ("activation_log10", "gradient_log10")
    }
    opposed = change["activation_log10"] * change["gradient_log10"] < 0
    largest = max(spans["activation"], spans["gradient"])
    if not opposed or largest < _HIDDEN_DECADES or spans["weight"] > _HIDDEN_SHARE * largest:
        return ""
    return (
        f"The weight gradients span {spans['weight']:.1f} decades only, and hide a change of the signal: activations change by "
        f"{signed(change['activation_log10'])} decades from the first of these weights to the last, ∂L/∂output by "
        f"{signed(change['gradient_log10'])}."
    )


def weight_table(
    weights: Sequence[WeightShare], *, max_rows: int | None = TERMINAL_ROWS, collapsed: bool = True
) -> Table:
    """What makes up the gradient of each weight.

    Args:
        weights: in execution order.
        max_rows: rows to aim at; repeated blocks above are folded to ranges. None lists every weight.
        collapsed: whether a page shows it folded up.

    Returns:
        The table.
    """
    columns = (
        Column("weight", priority=9, shrink=True),
        Column("∂L/∂W", "right", "log10 rms(∂L/∂W)", 9),
        Column("activation", "right", "log10 rms of what enters the layer", 7),
        Column("∂L/∂output", "right", "log10 rms(∂L/∂output)", 8),
        Column("alignment", "right", "the rest: how samples and positions add up", 6),
    )
    rows = []
    for order, row in enumerate(fold_rows(weights, lambda w: w.name, lambda _: "weight", max_rows)):
        some = row.rows if isinstance(row, Fold) else (row,)
        parts = [(w.weight_gradient_log10, w.activation_log10, w.gradient_log10, w.alignment_log10) for w in some]
        rows.append(
            (
                Cell(row.label if isinstance(row, Fold) else row.name, sort=order),
                *(_span(values) for values in zip(*parts, strict=True)),
            )
        )
    caption = "log10 of each rms: ∂L/∂W = activation + ∂L/∂output + alignment, exactly."
    return Table(
        columns, tuple(rows), title="What makes up each weight's gradient", caption=caption, collapsed=collapsed
    )


def _span(values: Sequence[float]) -> Cell:
    low, high = (f"{v:z.2f}".replace("-", "−") for v in (min(values), max(values)))
    return Cell(low if low == high else f"{low}..{high}", sort=min(values))
