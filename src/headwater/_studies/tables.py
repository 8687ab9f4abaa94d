"""The tables that belong to one study: gains, variance rules, shortcuts."""

from __future__ import annotations

import math

import torch

from headwater._studies.run import StudyRun
from headwater._studies.trends import interval_of_mean
from headwater._studies.words import decades, percent, signed
from headwater.records.study import Cell, StudyTable
from headwater.studies import INITIALIZATIONS, Initialization
from headwater.theory.gain import gain, gain_table, torch_gain

__all__ = ["gain_comparison", "grid_table", "rules_table", "shortcut_gain_table"]


def shortcut_gain_table(run: StudyRun) -> StudyTable | None:
    """With against without the shortcut, layer by layer, over seeds: the ensembles share weights and data.

    Args:
        run: the study, run.

    Returns:
        The table; None when one of the two networks is missing.
    """
    without, with_ = run.get("without"), run.get("with")
    if without is None or with_ is None:
        return None
    rows: list[tuple[Cell, ...]] = []
    for i, figure in enumerate(without.result.figures):
        paired = with_.ensemble.statistic[:, i] - without.ensemble.statistic[:, i]
        paired = paired[torch.isfinite(paired)]
        mean, low, high = interval_of_mean(paired)
        one_seed = math.log10(with_.result.figures[i].value / figure.value)
        rows.append((figure.parameter, one_seed, mean, low, high, float((paired > 0).double().mean())))
    first, last = rows[0], rows[-1]
    means = (float(first[2] or 0.0), float(last[2] or 0.0))
    return StudyTable(
        title="What the shortcut gains, in decades of mean |∂L/∂W|",
        columns=(
            "parameter", f"seed {run.seed}", f"mean over\n{run.draws:,} seeds", "95 % low", "95 % high",
            "share of seeds\nthat gain",
        ),
        rows=tuple(rows),
        reading=f"Over {run.draws:,} seeds the shortcut gains {signed(means[0])} decades in the first layer and "
        f"{signed(means[1])} in the last; {percent(float(first[5] or 0.0))} of the seeds gain in the first.",
    )  # fmt: skip


def grid_table(run: StudyRun) -> StudyTable | None:
    """Every cell of the shortcut grid.

    Args:
        run: the study, run.

    Returns:
        The table; None without a grid.
    """
    if not run.grid or run.study.grid is None:
        return None
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            cell.initialization, cell.width, cell.depth, cell.decades["plain"], cell.decades["shortcut"],
            cell.decades["scaled"], cell.gain, cell.gain_low, cell.gain_high,
        )
        for cell in run.grid
    )  # fmt: skip
    lowest = min(run.grid, key=lambda c: c.gain)
    highest = max(run.grid, key=lambda c: c.gain)
    return StudyTable(
        title="What reaches the first layer at useful sizes: decades of rms ∂L/∂x₁ over rms ∂L/∂x_L",
        columns=(
            "initialisation", "width", "depth", "plain", "x + f(x)", "x + f(x)/√L", "gain of x + f(x)", "95 % low",
            "95 % high",
        ),
        rows=rows,
        reading=f"The shortcut gains between {decades(lowest.gain)} decades (width {lowest.width}, depth "
        f"{lowest.depth}, {lowest.initialization}) and {decades(highest.gain)} (width {highest.width}, depth "
        f"{highest.depth}, {highest.initialization}); means over {run.study.grid.draws} draws of the weights, the same "
        "in all three networks.",
    )  # fmt: skip


def rules_table(run: StudyRun) -> StudyTable:
    """The variance rules of the initialisers, what each preserves, and what each did here.

    Args:
        run: the study, run.

    Returns:
        The table.
    """
    width = next(iter(run)).variant.network.width
    groups: dict[tuple[float, str], list[Initialization]] = {}
    for rule in INITIALIZATIONS.values():  # normal and uniform draws of one variance are one rule
        groups.setdefault((rule.weight_std(width, width + 1), rule.preserves), []).append(rule)
    rows: list[tuple[Cell, ...]] = []
    for rules in groups.values():
        names = [rule.name for rule in rules]
        measured = "; ".join(
            f"{one.result.activation} {signed(trend.decades_per_layer)}"
            for one in run
            if one.result.initialization in names and (trend := one.result.trend("∂L/∂h")) is not None
        )
        variance = rules[0].weight_std(width, width) ** 2
        preserves = rules[0].preserves or "nothing: σ_w² = 1/3 at every width"
        rows.append((", ".join(names), rules[0].formula, variance, preserves, measured or None))
    return StudyTable(
        title="Variance rules",
        columns=(
            "name", "rule", f"Var(W) at\n{width} × {width}", "what it preserves", "measured ∂L/∂h,\ndecades per layer",
        ),
        rows=tuple(rows),
        reading="Xavier averages 1/n_in, which keeps the signal going forward, and 1/n_out, which keeps the gradient "
        "coming back, for a slope of 1; He doubles 1/n_in because ReLU passes half of the second moment.",
    )  # fmt: skip


def gain_comparison(run: StudyRun) -> StudyTable:
    """The gain that preserves the gradient, by quadrature, beside torch's ``calculate_gain``.

    Args:
        run: the study, run; its own activations come first.

    Returns:
        The table; the last column is what torch's gain does to ∂L/∂h per layer at unit variance.
    """
    used = list(dict.fromkeys(one.result.activation for one in run))
    rows: list[tuple[Cell, ...]] = []
    named = {row.name: row for row in gain_table()}
    for name in [*used, *(n for n in named if n not in used)]:
        row = named.get(name)
        if row is not None:
            backward, forward, torch_value = row.backward, row.forward, row.torch
        else:
            activation = next(one.variant.network.activation for one in run if one.result.activation == name)
            backward, forward, torch_value = gain(activation), gain(activation, "forward"), torch_gain(activation)
        lost = None if torch_value is None else math.log10(torch_value / backward)
        rows.append((name, backward, forward, torch_value, lost))
    worst = max((row for row in rows if row[4] is not None), key=lambda row: abs(float(row[4] or 0.0)))
    return StudyTable(
        title="The gain that preserves the gradient (Var(W) = gain²/n), pre-activations of variance 1",
        columns=(
            "activation", "keeps the\ngradient", "keeps the\nsignal", "calculate_gain",
            "decades of ∂L/∂h per\nlayer with calculate_gain",
        ),
        rows=tuple(rows),
        reading=f"torch's gain is furthest from keeping the gradient for {worst[0]}: {float(worst[3] or 0.0):.3g} "
        f"instead of {float(worst[1] or 0.0):.3g}, {signed(float(worst[4] or 0.0))} decades per layer.",
    )  # fmt: skip
