"""The pictures of a diagnosis: the budget as a waterfall, and the profile with the places of the findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from headwater.errors import InputError
from headwater.records import Budget, Diagnosis, Finding, Severity
from headwater.records.displayed_kinds import KIND_WORDS
from headwater.reports.budget_table import BudgetPart, budget_parts, budget_sentence, signed
from headwater.reports.document import Template
from headwater.reports.figures import PALETTE, escape, finish, name_axis
from headwater.reports.profile_figures import profile_figure

__all__ = ["budget_figure", "diagnosis_figure"]

_WHAT = ("budget", "profile")
_COLORS = {
    "weights": "blue", "activation": "orange", "normalization": "green", "residual": "purple", "attention": "sky",
    "recurrent": "vermillion", "loss": "gray",
}  # fmt: skip
_PATTERNS = {
    "embedding": "/", "pooling": "x", "dropout": ".", "scale": "\\", "branches": "+", "reshape": "-", "other": "|",
}  # fmt: skip
PARTS = 24
"""Parts of the waterfall before repeated blocks are folded: with two kinds each, bars stay 10 pixels wide. Chosen by us."""
_LABELLED = 24  # bars with their number written on them; chosen by us
_MARK = {Severity.CRITICAL: ("triangle-down", "vermillion"), Severity.WARNING: ("diamond", "orange"),
         Severity.INFO: ("circle", "gray")}  # fmt: skip
_MARKED = 8  # findings with a mark in the picture, worst first; chosen by us


def diagnosis_figure(
    diagnosis: Diagnosis,
    *,
    template: Template = "dark",
    what: str = "budget",
    height: int | None = None,
    **options: Any,
) -> Any:
    """Draw a diagnosis.

    Args:
        diagnosis: the record.
        template: ``dark`` or ``light``.
        what: ``budget`` (the gradient from the loss to the first layer as a waterfall) or ``profile`` (the profile with
            the places of the findings).
        height: of the plot, in pixels.
        **options: for ``profile``, what the figure of a profile takes: ``statistic``, ``band``.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: an option is unknown, or there is nothing to draw.
    """
    if what not in _WHAT:
        raise InputError(f"what is {what!r}; it can be {', '.join(map(repr, _WHAT))}")
    if what == "profile":
        return _profile_with_places(diagnosis, template, height, options)
    if options:
        raise InputError(f"the budget's figure takes no option {', '.join(sorted(options))}")
    title = f"Gradient budget of {diagnosis.profile.model_type}"
    return budget_figure(diagnosis.budget, title=title, template=template, height=height or 420)


def budget_figure(
    budget: Budget, *, title: str = "Gradient budget", template: Template = "dark", height: int = 420
) -> Any:
    """Draw a budget as a waterfall: one bar per step, or per kind within a folded block.

    Args:
        budget: the record.
        title: of the figure.
        template: ``dark`` or ``light``.
        height: of the plot, in pixels.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: no gradient travels along the trunk, so there is no budget.
    """
    if not budget.steps:
        raise InputError("no gradient travels along the trunk, so there is no budget to draw; use what='profile'")
    parts = budget_parts(budget, PARTS)
    bars = list(_bars(parts))
    figure = go.Figure()
    kinds = list(dict.fromkeys(kind for _, kind, _, _ in bars))
    for kind in kinds:
        own = [(x, part, before, change) for x, (part, k, before, change) in enumerate(bars) if k == kind]
        figure.add_trace(
            go.Bar(
                x=[x for x, *_ in own], y=[change for *_, change in own], base=[before for _, _, before, _ in own],
                name=KIND_WORDS.get(kind, kind), width=0.8,
                marker={
                    "color": PALETTE[_COLORS.get(kind, "gray")], "line": {"width": 0},
                    "pattern": {"shape": _PATTERNS.get(kind, ""), "solidity": 0.4},
                },
                text=[signed(change) for *_, change in own] if len(bars) <= _LABELLED else None,
                textposition="outside", constraintext="none", cliponaxis=False,
                hovertext=[_hover(part, kind, before, change) for _, part, before, change in own], hoverinfo="text",
            )
        )  # fmt: skip
    _add_level(figure, bars)
    total = budget.total_decades
    figure.add_trace(
        go.Bar(
            x=[len(bars)], y=[total], base=[0.0], name="in all", width=0.8, textposition="outside", constraintext="none",
            cliponaxis=False,
            text=[signed(total)], hovertext=[f"<b>in all</b><br>{signed(total)} decades"], hoverinfo="text",
            marker={"color": "rgba(138,138,138,0.25)", "line": {"width": 1.5, "color": PALETTE["gray"]}},
        )
    )  # fmt: skip
    levels = [0.0, *(before + change for _, _, before, change in bars)]
    room = 0.12 * max(2.0, max(levels) - min(levels))
    figure.update_yaxes(
        title={"text": "decades relative to the loss<br>(log10 of rms ∂L/∂h, no unit)", "standoff": 10},
        range=[min(levels) - room, max(levels) + room], automargin=True, zeroline=True,
    )  # fmt: skip
    names = [*(part.label for part, *_ in bars), "in all"]
    figure.update_xaxes(**name_axis(names, "from the loss (left) to the first layer (right)"))
    figure.update_layout(barmode="overlay", bargap=0.1)
    return finish(figure, title=title, reading=budget_sentence(budget), template=template, height=height)


def _bars(parts: Sequence[BudgetPart]) -> Iterable[tuple[BudgetPart, str, float, float]]:
    """One bar per kind of every part: the part, the kind, the level before, the change."""
    for part in parts:
        level = part.before
        for kind, change in part.by_kind().items():
            yield part, kind, level, change
            level += change


def _hover(part: BudgetPart, kind: str, before: float, change: float) -> str:
    many = f" ({sum(step.kind == kind for step in part.steps)} steps)" if len(part.steps) > 1 else ""
    return (
        f"<b>{escape(part.label)}</b><br>{KIND_WORDS.get(kind, kind)}{many}: {signed(change)} decades"
        f"<br>so far {signed(before)} → {signed(before + change)}"
    )


def _add_level(figure: Any, bars: Sequence[tuple[BudgetPart, str, float, float]]) -> None:
    """The thin line that leads from the end of one bar to the beginning of the next."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for x, (_, _, before, change) in enumerate(bars):
        xs += [x + 0.4, x + 1 - 0.4, None]
        ys += [before + change, before + change, None]
    figure.add_trace(
        go.Scatter(
            x=xs, y=ys, mode="lines", line={"color": PALETTE["gray"], "width": 1}, hoverinfo="skip", showlegend=False
        )
    )


# -------------------------------------------------------------------- the profile with places


def _profile_with_places(diagnosis: Diagnosis, template: Template, height: int | None, options: dict[str, Any]) -> Any:
    profile = diagnosis.profile
    unknown = sorted(set(options) - {"statistic", "band"})
    if unknown:
        raise InputError(f"the profile's figure takes no option {', '.join(unknown)}; it takes statistic and band")
    figure = profile_figure(profile, template=template, height=height, **options)
    position: dict[str, int] = {}
    for index, row in enumerate(profile.layers):
        for name in (row.name, *row.aliases, row.name.split("#")[0]):
            position.setdefault(name, index)
    owner = {q.name: q.layer for q in profile.parameters}
    low, high = figure.layout.yaxis.range
    root = diagnosis.root
    shown = sorted(diagnosis.findings, key=lambda f: (f is not root, -f.severity.rank))[:_MARKED]
    step = 0.05 * (high - low)
    for number, finding in enumerate(shown):
        found = _positions(finding, position, owner)
        if not found:
            continue
        if finding is root:
            for first, last in _runs(found):
                figure.add_vrect(
                    x0=first - 0.5, x1=last + 0.5, fillcolor=PALETTE["purple"], opacity=0.16, line={"width": 0},
                    layer="below", row=1, col=1,
                )  # fmt: skip
        symbol, color = _MARK[finding.severity]
        name = escape(f"{finding.code} {finding.defect}")
        figure.add_trace(
            go.Scatter(
                x=found, y=[10.0 ** (high + (number + 0.7) * step)] * len(found), mode="markers", name=name,
                marker={"symbol": symbol, "color": PALETTE[color], "size": 9 if len(found) <= 150 else 5},
                hovertext=[f"<b>{name}</b><br>{escape(profile.layers[i].name)}" for i in found], hoverinfo="text",
            ),
            row=1, col=1,
        )  # fmt: skip
    figure.update_yaxes(row=1, col=1, range=[low, high + (len(shown) + 0.7) * step])
    subtitle = figure.layout.title.subtitle.text or ""
    lines = subtitle.count("<br>") + 1
    before = figure.layout.margin.t
    title = f"Gradient profile of {profile.model_type}, and where the findings are"
    finish(figure, title=title, reading="", template=template, height=figure.layout.height - before)
    figure.layout.title.subtitle.text = subtitle
    figure.layout.margin.t += 19 * lines
    figure.layout.height += 19 * lines
    return figure


def _positions(finding: Finding, position: dict[str, int], owner: dict[str, str | None]) -> list[int]:
    """Columns of the picture that a finding's layers and parameters are in."""
    found = set()
    for name in finding.where:
        layer: str | None = name if name in position else owner.get(name)
        if layer is not None and layer in position:
            found.add(position[layer])
    return sorted(found)


def _runs(positions: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Neighbouring positions together; a gap of one (the activation between two layers) does not end a run."""
    first = last = positions[0]
    for place in positions[1:]:
        if place - last > 2:
            yield first, last
            first = place
        last = place
    yield first, last
